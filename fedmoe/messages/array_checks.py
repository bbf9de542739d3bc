"""Arrays that came over a network: what their bytes say must be what their records say."""

import math

import numpy as np
from flwr.app import Array, ArrayRecord

from fedmoe.errors import ReplyError
from fedmoe.messages.arrays import Signature, npy_headers, stack_of


def check_arrays(key: str, record: ArrayRecord, expected: Signature | None) -> None:
    """Check one record of a reply.

    Args:
        key: the record's name, for the message.
        record: what came.
        expected: names, shapes and dtypes it must have; `None` checks finiteness alone.

    Raises:
        ReplyError: says what is wrong.
    """
    stacked = stack_of(record)
    if stacked is not None:
        stack, row = stacked
        if expected is not None and stack.signature != expected:
            raise ReplyError(f"{key}: {difference(stack.signature, expected)}")
        if not stack.finite_C[row]:
            raise ReplyError(f"{key}: not finite")
        return
    received = {name: (tuple(array.shape), array.dtype) for name, array in record.items()}
    if expected is not None and received != expected:
        raise ReplyError(f"{key}: {difference(received, expected)}")
    for name, array in record.items():
        _check_array(f"{key}/{name}", array)


def _check_array(name: str, array: Array) -> None:
    """What the bytes say must be what the record says; declared sizes are not believed."""
    if np.dtype(array.dtype).kind not in "fiu":
        raise ReplyError(f"{name}: dtype {array.dtype} is not a number")
    size = math.prod(array.shape) * np.dtype(array.dtype).itemsize
    headers = npy_headers(tuple(array.shape), array.dtype)
    expected = len(headers[0]) + size
    if len(array.data) != expected:
        raise ReplyError(f"{name}: {len(array.data)} bytes of data, expected {expected}")
    # Before NumPy sees it: what it is told to make room for is what the header says.
    if not array.data.startswith(headers):
        raise ReplyError(f"{name}: its data do not start as {array.dtype}{list(array.shape)} do")
    values = array.numpy()
    if not np.isfinite(values).all():
        raise ReplyError(f"{name}: not finite")


def difference(received: Signature, expected: Signature) -> str:
    """The first difference, in words."""
    if missing := sorted(expected.keys() - received.keys()):
        return f"lacks {', '.join(missing)}"
    if extra := sorted(received.keys() - expected.keys()):
        return f"has unknown {', '.join(extra)}"
    name = next(name for name in expected if received[name] != expected[name])
    return f"{name} is {_kind(received[name])}, expected {_kind(expected[name])}"


def _kind(signature: tuple[tuple[int, ...], str]) -> str:
    shape, dtype = signature
    return f"{dtype}{list(shape)}"
