"""Reads run folders and shows what is in them; needs no mesh, no optimizer, no accelerator."""
