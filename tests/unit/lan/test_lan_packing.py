"""Contents packed into one array, and back."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedmoe.lan.packing import MOST_PACKED, PACKED, is_packed, pack, unpack
from fedmoe.messages.arrays import to_record


def content(size: int = 3) -> RecordDict:
    return RecordDict(
        {
            "arrays": to_record({"w": np.arange(size, dtype=np.float32), "b": np.zeros(())}),
            "metrics": MetricRecord({"loss": 0.25, "num-examples": 7}),
            "config": ConfigRecord({"name": "x", "on": True}),
        }
    )


def test_a_content_comes_back_as_it_was() -> None:
    packed = pack(content())
    assert is_packed(packed) and list(packed) == [PACKED]
    found = unpack(packed)
    assert list(found) == ["arrays", "metrics", "config"]
    assert found.object_id == content().object_id  # a digest of everything


def test_large_and_foreign_contents_stay_as_they_are() -> None:
    large = content(MOST_PACKED)
    assert not is_packed(pack(large))
    assert unpack(large) is large


@pytest.mark.parametrize(
    "record",
    [
        MetricRecord({"bytes": 1}),
        to_record({"bytes": np.zeros(3)}),
        to_record({"bytes": np.full(3, 255, dtype=np.uint8)}),
        to_record({"bytes": np.zeros(3 * MOST_PACKED, dtype=np.uint8)}),
        to_record({"other": np.zeros(3, dtype=np.uint8)}),
        ArrayRecord({"bytes": Array("uint8", (2, 2), "numpy.ndarray", b"nonsense")}),
    ],
)
def test_what_is_not_packed_is_refused(record: ArrayRecord | MetricRecord) -> None:
    with pytest.raises(ValueError):
        unpack(RecordDict({PACKED: record}))


def test_nothing_stands_beside_what_is_packed() -> None:
    both = pack(content())
    both["metrics"] = MetricRecord({"loss": 1.0})
    with pytest.raises(ValueError, match="nothing else"):
        unpack(both)
