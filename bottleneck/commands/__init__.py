"""The verbs of `python -m bottleneck`, one module each; a new module is a new verb.

A verb has `main(argv)`, which returns the exit code and raises `UserError` for a user's mistake.
The first line of its docstring is its line in `--help`. It parses flags, imports what it needs
once they are right, and calls the packages. `flags` and `parsing` hold what verbs share.
"""
