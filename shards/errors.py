"""The one exception that is the user's to mend."""


class InputError(ValueError):
    """Bad input: a file, key or setting.  The message says what was wrong, what was found and what to do.

    The command line prints it without a traceback and leaves with exit code 2.
    """


class UnreachableError(InputError):
    """A server does not answer at its address: a wrong address at first, later as likely an outage that passes."""
