"""Errors that a user can act on."""


class UserError(Exception):
    """What was found, what was expected, and what mends it, in a sentence.

    The command line prints the message without a traceback and exits with status 2.
    """
