"""Insights and guidance in Flower's records."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedmoe.insight import Guidance, Insight
from fedmoe.messages import words
from fedmoe.messages.arrays import Records, Stack
from fedmoe.messages.parts import Part

INSIGHT = Insight(
    client_id=1,
    round=2,
    num_examples=3,
    epochs_trained=1,
    steps=2,
    guidance_parts=1,
    final_loss=0.25,
    loss_improvement=0.5,
    mean_grad=1.0,
    std_grad=0.0,
    distance=0.5,
    validation_examples=1,
    validation_loss=0.25,
    uncertainty=0.1,
    volatility=0.0,
    calibration_error=0.0,
    payload={"prototype_count": np.array([1.0, 2.0], np.float32)},
)


def content() -> RecordDict:
    """As it comes from a cohort of one."""
    numbers = {name: np.array([value]) for name, value in INSIGHT.scalars().items()}
    payload = {name: torch.from_numpy(a)[None] for name, a in INSIGHT.payload.items()}
    records: Records = {
        words.INSIGHT: words.insight_numbers(numbers),
        words.PAYLOAD: Stack(payload),
    }
    return Part(np.array([0]), records).content(0)


def test_an_insight_survives() -> None:
    received = words.get_insight(content())
    assert received.scalars() == INSIGHT.scalars()
    np.testing.assert_array_equal(received.payload["prototype_count"], [1.0, 2.0])


def test_unknown_versions_are_refused() -> None:
    record = content()
    record.metric_records["insight"]["schema_version"] = 1
    with pytest.raises(ValueError, match="schema version 1 is unknown, expected 2"):
        words.get_insight(record)


@pytest.mark.parametrize(
    "broken",
    [
        RecordDict(),
        RecordDict({"insight": ConfigRecord({"final_loss": 1.0})}),
        RecordDict({"insight": MetricRecord({"final_loss": 1.0})}),
    ],
)
def test_missing_insights_are_refused(broken: RecordDict) -> None:
    with pytest.raises(ValueError, match=r"no insight|version"):
        words.get_insight(broken)


def test_a_payload_of_the_wrong_kind_is_refused() -> None:
    record = content()
    del record["payload"]
    record["payload"] = MetricRecord({"x": 1})
    with pytest.raises(ValueError, match="no insight"):
        words.get_insight(record)


@pytest.mark.parametrize("payloads", [(), ("prototypes",), ("prototypes", "statistics")])
def test_what_is_asked_for_survives(payloads: tuple[str, ...]) -> None:
    asked = RecordDict({"insight": words.insight_request(payloads)})
    assert words.wanted_payloads(asked) == payloads


def test_nothing_may_be_asked_for() -> None:
    assert words.wanted_payloads(RecordDict()) is None


@pytest.mark.parametrize(
    "record", [MetricRecord({"payloads": 1}), ConfigRecord(), ConfigRecord({"payloads": [1]})]
)
def test_a_malformed_request_is_refused(record: ConfigRecord | MetricRecord) -> None:
    with pytest.raises(ValueError, match="record 'insight' must hold 'payloads', one text"):
        words.wanted_payloads(RecordDict({"insight": record}))


def test_guidance_that_changes_nothing_is_not_sent() -> None:
    assert words.guidance_records({}, {}) == {}
    assert words.get_guidance(RecordDict()) == Guidance()


def test_guidance_survives() -> None:
    mean = np.arange(3, dtype=np.float32)[:, None]
    records = words.guidance_records({"prior_mean": mean}, {"scale": 2.5})
    received = words.get_guidance(RecordDict(records))
    np.testing.assert_array_equal(received.parts["prior_mean"], mean)
    assert (set(received.parts), dict(received.numbers)) == ({"prior_mean"}, {"scale": 2.5})


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"guidance": MetricRecord({"x": 1})}, "guidance must be arrays and numbers"),
        ({"advice": MetricRecord({"x": 1})}, "guidance must be arrays and numbers"),
        ({"advice": ConfigRecord({"x": "far"})}, "guidance x='far': must be a number"),
        ({"advice": ConfigRecord({"x": True})}, "guidance x=True: must be a number"),
    ],
)
def test_malformed_guidance_is_refused(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        words.get_guidance(RecordDict(record))
