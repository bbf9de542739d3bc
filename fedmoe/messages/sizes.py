"""How many bytes a message's records take up when serialised."""

from flwr.app import ArrayRecord, RecordDict

from fedmoe.messages.arrays import stack_of
from fedmoe.messages.seams import RecordType


def content_bytes(records: RecordDict) -> int:
    """Bytes of a message's content: arrays as serialised, numbers and words with their keys."""
    return sum(record_bytes(record) for record in records.values())


def record_bytes(record: RecordType) -> int:
    """Bytes of one record."""
    if isinstance(record, ArrayRecord):
        stacked = stack_of(record)
        if stacked is not None:
            return stacked[0].bytes_per_client
        return sum(len(array.data) for array in record.values())
    total = 0
    for key, value in record.items():
        values = value if isinstance(value, list) else [value]
        total += len(key.encode())
        total += sum(
            len(v) if isinstance(v, bytes) else len(v.encode()) if isinstance(v, str) else 8
            for v in values
        )
    return total
