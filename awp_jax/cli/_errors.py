"""What a command says about a command line."""


class UsageError(Exception):
    """The command line is not understood; the message is one sentence."""
