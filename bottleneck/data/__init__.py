"""Text to batches: corpus, tokenizer, token cache, batches. Nothing here touches an accelerator."""
