"""How a client's connection can end, but by its own farewell."""


class LostError(Exception):
    """The server is not to be reached, or does not know this node (any more)."""


class StrangersError(LostError):
    """Server and client do not know each other, which will not change by itself."""


class RejectedError(LostError):
    """The server is there, and will not have this."""


class RunOverError(Exception):
    """The run that a message belongs to has ended."""
