"""The memory is bounded, ordered, and survives a save."""

from dataclasses import replace

import numpy as np
from test_insight_record import GOOD

from fedmoe.insight import Memory


def test_five_clients_and_five_rounds_make_25_insights() -> None:
    memory = Memory(max_rounds=5)
    for round in range(1, 6):
        memory.add([replace(GOOD, client_id=c, round=round) for c in range(5)])
    assert len(memory) == 25


def test_old_rounds_are_forgotten_but_each_client_keeps_its_latest_payload() -> None:
    memory = Memory(max_rounds=2)
    memory.add([replace(GOOD, client_id=c, round=1) for c in (0, 1)])
    for round in (2, 3):
        memory.add([replace(GOOD, client_id=0, round=round, final_loss=round)])
    assert [one.round for one in memory.history] == [2, 3]
    assert all(not one.payload for one in memory.history)
    assert [(one.client_id, one.round) for one in memory.current()] == [(0, 3), (1, 1)]
    assert all("prototype_sum" in one.payload for one in memory.current())


def test_state_restores_exactly() -> None:
    memory = Memory(max_rounds=3)
    sums = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    for round in (1, 2):
        memory.add(
            [
                replace(
                    GOOD,
                    client_id=c,
                    round=round,
                    payload={"prototype_sum": sums * (c + 1), "prototype_count": np.ones(2)},
                )
                for c in (11, 2)
            ]
        )
    arrays, values = memory.state()
    other = Memory(max_rounds=3)
    other.restore(arrays, values)
    assert other.history == memory.history
    assert [one.scalars() for one in other.current()] == [one.scalars() for one in memory.current()]
    for mine, theirs in zip(memory.current(), other.current(), strict=True):
        assert np.array_equal(mine.payload["prototype_sum"], theirs.payload["prototype_sum"])
