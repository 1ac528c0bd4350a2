"""Errors that the command line tells in one line."""


class ReportedError(Exception):
    """A failure that a person can act on: the message is the one line that the command line prints; exit code 2."""


class UserError(ReportedError):
    """Bad input: the message says what is wrong, what is expected and the next step."""
