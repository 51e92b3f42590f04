"""The one exception that ends the program without a traceback."""


class UserError(Exception):
    """A mistake the user can mend: one line with what is wrong, where, and what would be right.

    `python -m bottleneck` prints the message to standard error and exits with code 2.
    """
