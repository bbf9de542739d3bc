"""Contents packed into one value, and back."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

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
    assert len(get_all_nested_objects(packed)) == 2  # requests, besides that for the message
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
        ConfigRecord({"bytes": b"\xff" * 3}),
        ConfigRecord({"bytes": b"\0" * 3 * MOST_PACKED}),
        ConfigRecord({"bytes": "text"}),
        ConfigRecord({"other": b""}),
    ],
)
def test_what_is_not_packed_is_refused(record: ArrayRecord | MetricRecord | ConfigRecord) -> None:
    with pytest.raises(ValueError):
        unpack(RecordDict({PACKED: record}))


def test_nothing_stands_beside_what_is_packed() -> None:
    both = pack(content())
    both["metrics"] = MetricRecord({"loss": 1.0})
    with pytest.raises(ValueError, match="nothing else"):
        unpack(both)
