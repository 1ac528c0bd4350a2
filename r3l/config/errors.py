"""What goes wrong by a user's hand."""


class UserError(Exception):
    """Bad input: the message is the one line a user reads (what, expected, next step); exit code 2."""
