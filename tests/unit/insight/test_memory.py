"""The memory is bounded, ordered, and survives a save."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_insight_record import GOOD

from fedmoe.insight import Insight, Memory, RoundInsights
from fedmoe.insight.columns import PayloadColumns
from fedmoe.insight.insight import SCALARS, WHOLE


def insight(client: int, round: int, scale: float | None = None, **fields: Any) -> Insight:
    """With a payload that is to be told from others, or none."""
    payload = {} if scale is None else {n: scale * a for n, a in GOOD.payload.items()}
    return replace(GOOD, client_id=client, round=round, payload=payload, **fields)


def sums(memory: Memory) -> dict[int, float]:
    """What is left of each client's payload."""
    clients, arrays = memory.collect("prototype_sum", "prototype_count")
    if not arrays:
        return {}
    assert (arrays["prototype_count"][:, 0] == 4 * arrays["prototype_sum"][:, 0, 0]).all()
    return dict(zip(clients.tolist(), arrays["prototype_sum"][:, 0, 0].tolist(), strict=True))


def test_five_clients_and_five_rounds_make_25_insights() -> None:
    memory = Memory(max_rounds=5)
    for round in range(1, 6):
        memory.add([replace(GOOD, client_id=c, round=round) for c in range(5)])
    assert len(memory) == 25


def test_old_rounds_are_forgotten_but_each_client_keeps_its_latest_payload() -> None:
    memory = Memory(max_rounds=2)
    memory.add([insight(c, 1, scale=c + 1) for c in (0, 1)])
    for round in (2, 3):
        memory.add([insight(0, round, final_loss=round)])
    assert [one.round for one in memory.history] == [2, 3]
    assert all(not one.payload for one in memory.history)
    assert [(one.client_id, one.round) for one in memory.current()] == [(0, 3)]
    assert sums(memory) == {0: 1, 1: 2}
    assert memory.current()[0].payload["prototype_sum"][0, 0] == 1


def test_each_clients_newest_numbers() -> None:
    memory = Memory(max_rounds=3)
    assert memory.newest("final_loss")["final_loss"].shape == (0,)
    memory.add([insight(c, 1, final_loss=c) for c in (4, 2, 9)])
    memory.add([insight(c, 2, final_loss=10 + c) for c in (9, 3)])
    newest = memory.newest("final_loss", "round")
    assert newest["client_id"].tolist() == [2, 3, 4, 9]
    assert newest["final_loss"].tolist() == [2, 13, 4, 19]
    assert newest["round"].tolist() == [1, 2, 1, 2]
    memory.add([insight(c, 3, final_loss=20 + c) for c in (9, 3)])
    memory.add([insight(c, 4, final_loss=30 + c) for c in (9, 3)])  # round 1 is dropped
    assert memory.newest("final_loss")["final_loss"].tolist() == [33, 39]


def test_newer_payloads_replace_older_ones() -> None:
    memory = Memory()
    memory.add([insight(c, 1, scale=c) for c in (5, 1)])
    assert sums(memory) == {1: 1, 5: 5}
    before = memory.revision("prototype_sum")
    memory.add([insight(5, 2), insight(1, 2)])
    assert memory.revision("prototype_sum") == before
    memory.add([insight(c, 3, scale=10 + c) for c in (7, 5)])
    assert sums(memory) == {1: 1, 5: 15, 7: 17}
    assert memory.revision("prototype_sum") != before
    assert memory.payload_of(7)["prototype_count"].tolist() == [68, 102]
    assert memory.payload_of(8) == {}


def test_what_is_told_again_is_nothing_new() -> None:
    memory = Memory()
    memory.add([insight(c, 1, scale=c, num_examples=8) for c in (5, 1)])
    before = memory.revision("prototype_sum")
    memory.add([insight(c, 2, scale=c, num_examples=9) for c in (1, 5)])
    assert memory.revision("prototype_sum") == before
    assert memory.examples_of("prototype_sum", [5, 1]).tolist() == [9, 9]
    memory.add([insight(5, 3, scale=4, num_examples=9)])
    assert memory.revision("prototype_sum") != before


def test_what_is_kept_is_a_copy() -> None:
    rows = np.ones((2, 3), np.float32)
    memory, numbers = Memory(), RoundInsights.of([insight(0, 1), insight(1, 1)]).numbers
    memory.add(RoundInsights(numbers, [PayloadColumns(np.array([0, 1]), {"logits": rows})]))
    memory.collect("logits")[1]["logits"][:] = 7
    rows[:] = 8
    assert (memory.collect("logits")[1]["logits"] == 1).all()
    assert memory.collect("logits", "prototype_sum")[1] == {}


def test_it_is_known_of_how_many_samples_a_payload_was_made() -> None:
    memory = Memory()
    memory.add([insight(3, 1, scale=1, num_examples=30), insight(2, 1, scale=1, num_examples=20)])
    memory.add([insight(3, 2, num_examples=31), insight(2, 2, scale=1, num_examples=21)])
    assert memory.examples_of("prototype_sum", [1, 2, 3]).tolist() == [-1, 21, 30]
    assert memory.examples_of("sketch", [3]).tolist() == [-1]


def columns(round: int, clients: int) -> RoundInsights:
    rng = np.random.default_rng(round)
    numbers = {
        n: rng.integers(1, 9, clients) if n in WHOLE else rng.random(clients) for n in SCALARS
    }
    numbers |= {"client_id": np.arange(clients), "round": np.full(clients, round)}
    rows = rng.random((clients, 10, 64), dtype=np.float32)
    return RoundInsights(numbers, [PayloadColumns(np.arange(clients), {"logits": rows})])


@pytest.mark.parametrize("max_bytes", [2**20, 8 * 2**20, 64 * 2**20])
def test_a_thousand_clients_and_a_hundred_rounds_stay_within_bounds(max_bytes: int) -> None:
    memory = Memory(max_rounds=50, max_bytes=max_bytes)
    expected = dict.fromkeys(SCALARS, 0.0)
    for round in range(1, 101):
        told = columns(round, 1000)
        memory.add(told)
        assert memory.nbytes <= max_bytes
        for name in SCALARS:
            expected[name] += float(told.numbers[name].sum())
    assert len(memory.rounds) == {2**20: 1, 8 * 2**20: 45, 64 * 2**20: 50}[max_bytes]
    assert [int(c["round"][0]) for c in memory.rounds] == [*range(101 - len(memory.rounds), 101)]
    assert memory.dropped["rounds"] == 100 - len(memory.rounds)
    assert memory.dropped["insights"] + len(memory) == 100_000
    for name in set(SCALARS) - set(WHOLE):
        kept = sum(float(numbers[name].sum()) for numbers in memory.rounds)
        assert memory.dropped[name] + kept == pytest.approx(expected[name])
    assert memory.dropped.keys() - {"rounds", "insights", "payloads"} == set(SCALARS) - set(WHOLE)


def test_of_payloads_those_told_first_go_first() -> None:
    one = insight(0, 1, scale=1)
    size = sum(a.nbytes for a in one.payload.values()) + 4 * 8  # and whose they are
    memory = Memory(max_bytes=8 * len(SCALARS) + 3 * size)
    for round, client in enumerate([0, 1, 0, 2, 3, 4], start=1):
        memory.add([insight(client, round, scale=client + 1)])
        assert memory.nbytes <= memory.max_bytes
        assert len(sums(memory)) <= 3 and (client != 3 or sums(memory).keys() == {0, 2, 3})
    assert sums(memory) == {2: 3, 3: 4, 4: 5}  # 1 was told first, then 0
    assert memory.dropped["payloads"] == 2
    memory.add([insight(1, 7, scale=9)])
    assert sums(memory) == {1: 9, 3: 4, 4: 5}


def test_the_last_round_stays_whatever_room_there_is() -> None:
    memory = Memory(max_bytes=1)
    for round in (1, 2):
        memory.add([insight(0, round, scale=1)])
    assert [one.round for one in memory.history] == [2]
    assert (sums(memory), memory.latest) == ({}, {})


def test_state_restores_exactly() -> None:
    memory = Memory(max_rounds=2)
    for round in (1, 2, 3):
        memory.add([insight(c, round, scale=c * round if c > 2 else None) for c in (11, 2, 5)])
    other = Memory(max_rounds=2)
    other.add([insight(1, 1, scale=99)])  # is to be forgotten
    other.restore(*memory.state())
    for _ in range(2):
        assert other.history == memory.history
        assert other.dropped == memory.dropped
        assert sums(other) == sums(memory)
        assert [o.scalars() for o in other.current()] == [o.scalars() for o in memory.current()]
        for one in (memory, other):
            one.max_bytes = one.nbytes  # so that something has to go, and the same
            one.add([insight(c, 4, scale=c) for c in (5, 7)])


def test_nothing_can_be_saved_too() -> None:
    memory = Memory()
    memory.restore(*Memory().state())
    assert (len(memory), sums(memory)) == (0, {})
