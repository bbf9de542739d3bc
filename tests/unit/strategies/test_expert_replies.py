"""What clients may say about the experts in their replies, as messages and as columns."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message
from mixture_runs import SIZES, experiment_of
from numpy.typing import NDArray

from fedmoe.config import load_config
from fedmoe.guard import Inspection, ReplyGuard
from fedmoe.messages.arrays import Records, Stack, plain, tensors_of, to_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import with_content
from fedmoe.simulations import InProcessGrid
from fedmoe.strategies import Ifca
from fedmoe.strategies.experts import ExpertAveraging

LIMITS = replace(load_config().runtime, max_reply_bytes=10_000, max_examples=1000)
CLIENTS, EXPERTS, EXAMPLES, SPOILT = len(SIZES), 3, 12, 2
Held = dict[str, dict[str, NDArray[Any]]]  # records of one client; `metrics` are numbers
Spoil = Callable[[Held], object]


def sent_by(strategy: ExpertAveraging) -> Broadcast:
    experiment = experiment_of(["strategy=ifca", "strategy.num_clusters=3"])
    arrays = to_record(experiment.shared)
    sent = strategy.configure_train(1, arrays, ConfigRecord(), InProcessGrid(experiment))
    assert isinstance(sent, Broadcast)
    return sent


def healthy(sent: Broadcast, client: int, held: Sequence[int]) -> Held:
    """A reply with some of the experts."""
    arrays = tensors_of(sent.records["arrays"])  # type: ignore[arg-type]
    return {
        "arrays": {n: np.full_like(a.numpy()[: len(held)], client) for n, a in arrays.items()},
        "experts": {
            "index": np.array(held, dtype=np.int64),
            "examples": np.full(len(held), EXAMPLES - client, dtype=np.float32),
        },
        "metrics": {"num-examples": np.array(EXAMPLES), "loss": np.array(0.5)},
    }


def kind(held: Held) -> tuple[object, ...]:
    """Replies of one kind can be stacked."""
    return tuple((k, n, str(a.dtype), a.shape) for k, own in held.items() for n, a in own.items())


def columns(sent: Broadcast, held: Sequence[Held]) -> Replies:
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, own in enumerate(held):
        groups.setdefault(kind(own), []).append(row)
    parts = []
    for rows in groups.values():
        records: Records = {}
        for key, first in held[rows[0]].items():
            table = {name: np.stack([held[row][key][name] for row in rows]) for name in first}
            stack = Stack({name: torch.from_numpy(values) for name, values in table.items()})
            records[key] = table if key == "metrics" else stack
        parts.append(Part(np.array(rows), records))
    return Replies(sent, parts, {})


def inspected(
    strategy: ExpertAveraging, held: Sequence[Held], sent: Broadcast, why: str | None = None
) -> Inspection:
    """The verdict on columns, which must be that on messages as they come over a network."""
    guard = ReplyGuard(LIMITS, strategy)
    verdicts = [
        guard.inspect(sent, columns(sent, held)),
        guard.inspect(sent, [over_network(reply) for reply in columns(sent, held)]),
    ]
    merged = []
    for one in verdicts:
        assert one.failures.keys() | set(one.bytes_up) == set(sent.nodes)
        assert all(why is not None and why in reason for reason in one.failures.values())
        merged.append(strategy.aggregate_train(1, one.good)[0])
    mine, theirs = verdicts
    assert mine.failures.keys() == theirs.failures.keys()
    assert mine.bytes_up == theirs.bytes_up
    assert merged[0] is not None and merged[1] is not None
    for name, value in tensors_of(merged[0]).items():
        torch.testing.assert_close(tensors_of(merged[1])[name], value)
    return mine


def over_network(reply: Message) -> Message:
    return with_content(reply, plain(reply.content))


def experts(name: str, value: Any) -> Spoil:
    return lambda held: held["experts"].update({name: np.asarray(value)})


def without(key: str, name: str | None = None) -> Spoil:
    return lambda held: held.pop(key) if name is None else held[key].pop(name)


def rows(count: int) -> Spoil:
    """So many experts in the arrays."""

    def spoil(held: Held) -> None:
        for name, value in held["arrays"].items():
            held["arrays"][name] = np.repeat(value[:1], count, axis=0)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    def spoil(held: Held) -> None:
        for one in spoils:
            one(held)

    return spoil


def broken_array(held: Held) -> None:
    held["arrays"]["experts.bias"][0] = np.nan


F32 = np.float32
ONE_OF = "expected one of [0, 1, 2], int64, with 0 to 12 examples each, float"
ALL_OF = "expected all of [0, 1, 2], int64, with 0 to 12 examples each, float"
SAYS = "the reply does not say which experts it holds"
HOLDS = "record experts must hold index and examples"

OF_EXAMPLES: list[tuple[str, Any, str | None]] = [
    ("negative", -1.0, "examples float32[-1.0]"),
    ("nan", np.nan, "not finite"),
    ("infinite", np.inf, "not finite"),
    ("huge", 1e30, "examples float32["),
    ("more-than-there-are", 13.0, "examples float32[13.0]"),
    ("rounded-up", 12.0001, None),
    ("none", 0.0, None),
]
OF_ONE: list[tuple[str, Spoil, str | None]] = [
    ("another", experts("index", [2]), None),
    ("float64-examples", experts("examples", [3.0]), None),
    ("out-of-range", experts("index", [3]),
     f"experts int64[3] with examples float32[10.0]: {ONE_OF}"),
    ("far-out", experts("index", [2**62]), ONE_OF),
    ("below-0", experts("index", [-1]), "experts int64[-1]"),
    ("int32", experts("index", np.array([0], np.int32)), "experts int32[0]"),
    ("float-index", experts("index", np.array([0.0], F32)), "experts float32[0.0]"),
    ("scalar-index", experts("index", 0), "experts int640 with"),
    ("two-indices", experts("index", [0, 1]), "experts int64[0, 1]"),
    ("no-index", experts("index", np.zeros(0, np.int64)), "experts int64[]"),
    ("whole-examples", experts("examples", [3]), "examples int64[3]"),
    ("scalar-examples", experts("examples", F32(3)), "examples float323.0"),
    ("two-examples", experts("examples", np.ones(2, F32)), "examples float32[1.0, 1.0]"),
    ("table-of-examples", experts("examples", np.ones((1, 1), F32)), "examples float32[[1.0]]"),
    ("silent", without("experts"), SAYS),
    ("only-examples", without("experts", "index"), HOLDS),
    ("only-index", without("experts", "examples"), HOLDS),
    ("more-than-asked", experts("bias", np.zeros(1, F32)), HOLDS),
    ("all-models", rows(3),
     "arrays: experts.weight is float32[3, 3, 4], expected float32[1, 3, 4]"),
    ("two-models", both(rows(2), experts("index", [0, 1])), "is float32[2, 3, 4], expected"),
    ("no-model", rows(0), "is float32[0, 3, 4], expected"),
    ("diverged", broken_array, "not finite"),
    *((name, experts("examples", np.array([v], F32)), why) for name, v, why in OF_EXAMPLES),
]  # fmt: skip
OF_ALL: list[tuple[str, Spoil, str | None]] = [
    ("repeated", experts("index", [0, 1, 1]), f"experts int64[0, 1, 1] with examples "
     f"float32[10.0, 10.0, 10.0]: {ALL_OF}"),
    ("descending", experts("index", [2, 1, 0]), "experts int64[2, 1, 0]"),
    ("out-of-range", experts("index", [0, 1, 3]), "experts int64[0, 1, 3]"),
    ("fewer", both(rows(2), experts("index", [0, 1]), experts("examples", np.ones(2, F32))),
     "arrays: experts.weight is float32[2, 3, 4], expected float32[3, 3, 4]"),
    ("fewer-indices", experts("index", [0, 1]), "experts int64[0, 1]"),
    ("one-negative", experts("examples", np.array([1, -1, 1], F32)), "float32[1.0, -1.0, 1.0]"),
    ("silent", without("experts"), SAYS),
    ("as-many-as-there-are", experts("examples", np.full(3, 12, F32)), None),
]  # fmt: skip


def check(strategy: ExpertAveraging, held: Sequence[int], spoil: Spoil, why: str | None) -> None:
    sent = sent_by(strategy)
    all_held = [healthy(sent, client, held) for client in range(CLIENTS)]
    spoil(all_held[SPOILT])
    result = inspected(strategy, all_held, sent, why)
    bad = sent.nodes[SPOILT]
    if why is None:
        assert result.failures == {}
        return
    assert result.failures.keys() == {bad}
    assert bad not in [message.metadata.src_node_id for message in result.good]


@pytest.mark.parametrize(("name", "spoil", "why"), OF_ONE, ids=[one[0] for one in OF_ONE])
def test_a_reply_of_ifca_s_is_one_model(name: str, spoil: Spoil, why: str | None) -> None:
    check(Ifca(), [1], spoil, why)


@pytest.mark.parametrize(("name", "spoil", "why"), OF_ALL, ids=[one[0] for one in OF_ALL])
def test_a_reply_with_all_experts(name: str, spoil: Spoil, why: str | None) -> None:
    check(ExpertAveraging(), [0, 1, 2], spoil, why)


def test_a_record_of_numbers_says_nothing_about_experts() -> None:
    strategy = Ifca()
    sent = sent_by(strategy)
    replies = columns(sent, [healthy(sent, client, [1]) for client in range(CLIENTS)])
    replies.parts[0].records["experts"] = {"index": np.ones(CLIENTS), "examples": np.ones(CLIENTS)}
    result = ReplyGuard(LIMITS, strategy).inspect(sent, replies)
    assert set(result.failures.values()) == {SAYS}


def test_the_others_of_a_round_are_merged() -> None:
    """As if the one who failed had not been asked."""
    strategy = Ifca()
    sent = sent_by(strategy)
    held = [healthy(sent, client, [client % 2]) for client in range(CLIENTS)]
    held[SPOILT]["experts"]["index"][:] = 7
    result = inspected(strategy, held, sent, ONE_OF)
    merged, _ = strategy.aggregate_train(1, result.good)
    assert merged is not None
    before = tensors_of(sent.records["arrays"])  # type: ignore[arg-type]
    for name, value in tensors_of(merged).items():
        for expert, clients in enumerate(([0, 4], [1, 3, 5])):
            counts = [EXAMPLES - client for client in clients]
            mean = sum(n * c for n, c in zip(counts, clients, strict=True)) / sum(counts)
            torch.testing.assert_close(value[expert], torch.full_like(value[expert], mean))
        assert torch.equal(value[2], before[name][2])
