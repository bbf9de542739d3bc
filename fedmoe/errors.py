"""Every error that fedmoe raises on purpose.

A user's mistake reaches the console as one line and the exit code of its class; a
traceback means a defect of ours.
"""


class FedmoeError(Exception):
    """Base of all; `exit_code` is what the process ends with."""

    exit_code = 1


class ConfigError(FedmoeError):
    """A key, type or value in the configuration that is not allowed."""

    exit_code = 2


class DataError(FedmoeError):
    """Data that cannot be had, read, or partitioned as asked."""

    exit_code = 2


class RunError(FedmoeError):
    """A run that cannot start or go on: a bad checkpoint, no usable reply."""


class ReplyError(FedmoeError):
    """One client's reply that may not reach the strategy; names what is wrong with it."""
