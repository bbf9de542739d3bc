"""Small contents travel as one array: Flower asks for every array of a message by itself.

A message of ten arrays is some 25 objects, each a request over HTTP; packed, it is 5 whatever it
holds. Bytes are counted, and replies are judged, on what was packed.
"""

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from fedmoe.messages.arrays import plain
from fedmoe.messages.seams import records_from_wire, records_to_wire
from fedmoe.messages.sizes import content_bytes

PACKED = "packed"
MOST_PACKED = 1_000_000  # bytes; larger contents gain nothing, and may share arrays
_BYTES = "bytes"


def pack(content: RecordDict) -> RecordDict:
    """The content as one array of bytes, or as it is where that would be a large one."""
    records = plain(content)
    if content_bytes(records) > MOST_PACKED:
        return records
    array = Array(np.frombuffer(records_to_wire(records), dtype=np.uint8))
    return RecordDict({PACKED: ArrayRecord({_BYTES: array})})


def is_packed(content: RecordDict) -> bool:
    """Whether `pack` made one array of it."""
    return PACKED in content


def unpack(content: RecordDict) -> RecordDict:
    """Undo `pack`; a content that is not packed is returned as it is.

    Raises:
        ValueError: it says that it is packed, and is not.
    """
    if not is_packed(content):
        return content
    record = content[PACKED]
    array = record.get(_BYTES) if isinstance(record, ArrayRecord) else None
    if array is None or len(content) != 1 or len(array.data) > 2 * MOST_PACKED:
        raise ValueError(f"a content with {PACKED!r} must hold nothing else, and be small")
    values = array.numpy()
    if values.dtype != np.uint8 or values.ndim != 1:
        raise ValueError(f"{PACKED!r} must be bytes, got {values.dtype} of shape {values.shape}")
    return records_from_wire(values.tobytes())
