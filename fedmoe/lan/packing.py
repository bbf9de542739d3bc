"""Small contents travel as one value: Flower asks for every part of a message by itself.

A message of ten arrays is some 25 objects, each a request over HTTP; packed, it is 3 whatever it
holds. Bytes are counted, and replies are judged, on what was packed.
"""

from flwr.app import ConfigRecord, RecordDict

from fedmoe.messages.arrays import plain
from fedmoe.messages.seams import records_from_wire, records_to_wire
from fedmoe.messages.sizes import content_bytes

PACKED = "packed"
MOST_PACKED = 1_000_000  # bytes; larger contents gain nothing, and may share arrays
_BYTES = "bytes"


def pack(content: RecordDict) -> RecordDict:
    """The content as one value of bytes, or as it is where that would be a large one."""
    records = plain(content)
    if content_bytes(records) > MOST_PACKED:
        return records
    return RecordDict({PACKED: ConfigRecord({_BYTES: records_to_wire(records)})})


def is_packed(content: RecordDict) -> bool:
    """Whether `pack` made one value of it."""
    return PACKED in content


def unpack(content: RecordDict) -> RecordDict:
    """Undo `pack`; a content that is not packed is returned as it is.

    Raises:
        ValueError: it says that it is packed, and is not.
    """
    if not is_packed(content):
        return content
    record = content[PACKED]
    packed = record.get(_BYTES) if isinstance(record, ConfigRecord) else None
    if not isinstance(packed, bytes) or len(content) != 1 or len(packed) > 2 * MOST_PACKED:
        raise ValueError(f"a content with {PACKED!r} must hold nothing else, and few bytes")
    return records_from_wire(packed)
