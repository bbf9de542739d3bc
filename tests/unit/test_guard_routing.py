"""What a client says of its router is refused unless its samples could have made it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import MessageType
from numpy.typing import NDArray

from fedmoe.config import load_config
from fedmoe.guard import Inspection, ReplyGuard
from fedmoe.guard.routing import RoutingCheck
from fedmoe.messages import words
from fedmoe.messages.arrays import Records, Stack
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import ensure_task_identity
from fedmoe.models.router_metrics import MOST, TOTALS, RouterKind

LIMITS = replace(load_config().runtime, max_reply_bytes=10_000, max_examples=1000)
E, OUT, COUNT, CLIENTS = 3, 2, 5, 4
Floats = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _identity() -> None:
    ensure_task_identity()


def make_kind(has_classes: bool = True, has_answers: bool = True) -> RouterKind:
    classes = OUT if has_classes else 1
    return RouterKind(
        num_experts=E, num_classes=classes, has_classes=has_classes, has_answers=has_answers
    )


def honest(kind: RouterKind, count: int = COUNT) -> Floats:
    """What as many samples add up to: each to the first two experts, of the first class."""
    totals = {
        "answered": count, "gate_entropy": count * np.log(E), "compared": count, "changed": count,
        "errors": count * kind.has_answers, "random_errors": count * kind.has_answers,
        "similarity": count * E**2 * kind.has_answers,
    }  # fmt: skip
    class_load = np.zeros((kind.num_classes, E))
    class_load[0, :2] = 0.25 * count, 0.75 * count
    load = [count, count, 0]
    return np.array([*load, *(totals[name] for name in TOTALS), *class_load.ravel()], np.float32)


def inspect_both(
    kind: RouterKind | None, records: Records, counts: list[int] | None = None
) -> Inspection:
    """The verdicts on the columns, which must be those on the messages."""
    guard = ReplyGuard(LIMITS, routing=None if kind is None else RoutingCheck(kind))
    count_C = np.array([COUNT] * CLIENTS if counts is None else counts)
    sent = Broadcast(range(2, 2 + len(count_C)), MessageType.EVALUATE, {})
    metrics: Records = {words.METRICS: {words.NUM_EXAMPLES: count_C}}
    replies = Replies(sent, [Part(np.arange(len(count_C)), {**metrics, **records})], {})
    columns = guard.inspect(sent, replies)
    messages = guard.inspect(sent, list(replies))
    assert columns.failures == messages.failures
    assert columns.bytes_up == messages.bytes_up
    return columns


def as_record(sums_CJ: Floats) -> Records:
    return {words.ROUTING: Stack({words.SUMS: torch.from_numpy(sums_CJ)})}


def inspect_one(kind: RouterKind, sums_J: Floats, count: int = COUNT) -> str | None:
    """Why the second of several clients is refused, if it is; the others are honest."""
    sums_CJ = np.stack([honest(kind)] * CLIENTS)
    sums_CJ[1] = sums_J
    counts = [COUNT] * CLIENTS
    counts[1] = count
    failures = inspect_both(kind, as_record(sums_CJ), counts).failures
    assert failures.keys() <= {3}
    return failures.get(3)


KINDS = [
    make_kind(has_classes, has_answers)
    for has_classes in (True, False)
    for has_answers in (True, False)
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_samples_may_add_up_to_is_accepted(kind: RouterKind) -> None:
    assert inspect_one(kind, honest(kind)) is None
    assert inspect_one(kind, np.zeros(kind.size, np.float32)) is None
    assert inspect_one(kind, np.zeros(kind.size, np.float32), count=0) is None
    # Sums of weights and entropies in single precision.
    rounded = honest(kind) * np.float32(1 + 1e-5)
    rounded[: E + len(TOTALS)] = honest(kind)[: E + len(TOTALS)]
    assert inspect_one(kind, rounded) is None


def place_of(name: str) -> int:
    places = ["load"] * E + list(TOTALS) + ["class_load"]
    return places.index(name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["load", "class_load", *TOTALS])
@pytest.mark.parametrize("value", [-0.01, np.nan, np.inf, -np.inf, 3e38])
def test_no_sum_is_negative_infinite_or_huge(kind: RouterKind, name: str, value: float) -> None:
    sums_J = honest(kind)
    sums_J[place_of(name)] = value
    reason = inspect_one(kind, sums_J)
    assert reason is not None
    if np.isfinite(value):
        assert reason == f"routing {name}: not what 5 samples add up to"
    else:
        assert "not finite" in reason


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["load", "class_load", *TOTALS])
def test_no_sum_is_more_than_the_samples_make(kind: RouterKind, name: str) -> None:
    sums_J, place = honest(kind), place_of(name)
    most = {"gate_entropy": COUNT * np.log(E), "similarity": COUNT * E**2}.get(name, COUNT)
    if name in ("errors", "random_errors") and not kind.has_classes:
        most = COUNT * MOST
    if name in ("errors", "random_errors", "similarity") and not kind.has_answers:
        most = 0
    if name == "class_load":
        sums_J[E + len(TOTALS) :] = 0
    sums_J[place] = most
    assert inspect_one(kind, sums_J) is None
    sums_J[place] = most * 1.01 + 0.02
    assert inspect_one(kind, sums_J) == f"routing {name}: not what 5 samples add up to"


def test_sums_must_agree_with_each_other() -> None:
    kind = make_kind()
    sums_J = honest(kind)
    sums_J[place_of("compared")] = 3
    reason = "routing changed or class_load: not what 5 samples add up to"
    assert inspect_one(kind, sums_J) == reason
    sums_J = honest(kind)
    sums_J[-1] = 1.0  # besides the weight of all samples
    assert inspect_one(kind, sums_J) == reason


def test_the_count_is_the_one_that_the_reply_tells() -> None:
    kind = make_kind()
    assert inspect_one(kind, honest(kind), count=COUNT - 1) is not None
    assert inspect_one(kind, honest(kind), count=0) is not None
    assert inspect_one(kind, honest(kind), count=COUNT + 1) is None


@pytest.mark.parametrize(
    ("sums", "reason"),
    [
        (np.zeros((CLIENTS, 5), np.float32), "sums is float32[5], expected float32[16]"),
        (np.zeros((CLIENTS, 16), np.float64), "sums is float64[16], expected float32[16]"),
        (np.zeros((CLIENTS, 4, 4), np.float32), "sums is float32[4, 4], expected float32[16]"),
    ],
)
def test_another_shape_or_dtype_is_refused(sums: Floats, reason: str) -> None:
    assert make_kind().size == 16
    failures = inspect_both(make_kind(), as_record(sums)).failures
    assert failures == dict.fromkeys(range(2, 2 + CLIENTS), f"routing: {reason}")


def test_other_arrays_or_numbers_are_refused() -> None:
    more = Stack({words.SUMS: torch.zeros(CLIENTS, 16), "extra": torch.zeros(CLIENTS, 1)})
    failures = inspect_both(make_kind(), {words.ROUTING: more}).failures
    assert set(failures.values()) == {"routing: has unknown extra"}
    numbers: Records = {words.ROUTING: {"load": np.zeros(CLIENTS)}}
    failures = inspect_both(make_kind(), numbers).failures
    assert set(failures.values()) == {"routing must be arrays"}


def test_one_client_without_sums_differs_from_the_others() -> None:
    kind = make_kind()
    guard = ReplyGuard(LIMITS, routing=RoutingCheck(kind))
    sent = Broadcast(range(2, 6), MessageType.EVALUATE, {})
    first: Records = {
        words.METRICS: {words.NUM_EXAMPLES: np.array([COUNT] * 3)},
        **as_record(np.stack([honest(kind)] * 3)),
    }
    second: Records = {words.METRICS: {words.NUM_EXAMPLES: np.array([COUNT])}}
    replies = Replies(sent, [Part(np.arange(3), first), Part(np.array([3]), second)], {})
    assert guard.inspect(sent, replies).failures == {
        5: "differs from the other replies in routing (arrays)"
    }


def test_without_a_router_nothing_is_asked_of_such_a_record() -> None:
    record = as_record(np.full((CLIENTS, 2), -1, np.float32))
    assert not inspect_both(None, record).failures
    record = as_record(np.full((CLIENTS, 2), np.nan, np.float32))
    assert len(inspect_both(None, record).failures) == CLIENTS
