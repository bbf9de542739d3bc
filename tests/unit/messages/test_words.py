"""Insights and guidance in Flower's records."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedmoe.insight import Guidance, Insight
from fedmoe.messages import words
from fedmoe.messages.arrays import Records, Stack
from fedmoe.messages.parts import Part

INSIGHT = Insight(
    client_id=1,
    round=2,
    num_examples=3,
    epochs_trained=1,
    final_loss=0.25,
    loss_improvement=0.5,
    mean_grad=1.0,
    std_grad=0.0,
    uncertainty=0.1,
    volatility=0.0,
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
    record.metric_records["insight"]["schema_version"] = 2
    with pytest.raises(ValueError, match="schema version 2 is unknown"):
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


def test_guidance_that_changes_nothing_is_not_sent() -> None:
    assert words.guidance_record(Guidance()) is None
    assert words.get_guidance(RecordDict()) is None


def test_guidance_survives() -> None:
    given = Guidance(prior_mean=np.ones((3, 1), np.float32), prior_ratio=2.5)
    record = words.guidance_record(given)
    assert record is not None
    received = words.get_guidance(RecordDict({"guidance": record}))
    assert received is not None and received.prior_ratio == 2.5
    np.testing.assert_array_equal(received.arrays()["prior_mean"], np.ones((3, 1)))


def test_guidance_with_unknown_parts_is_refused() -> None:
    record = ArrayRecord({"weights": Array(np.ones(3))})
    with pytest.raises(ValueError, match="unknown parts"):
        words.get_guidance(RecordDict({"guidance": record}))
