import io
import math
import pickle
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from fedmoe.config import load_config
from fedmoe.guard import Inspection, ReplyGuard
from fedmoe.messages import words
from fedmoe.messages.arrays import CohortRecord, Stack, stack_of, to_record
from fedmoe.messages.seams import ensure_task_identity, set_message_id
from fedmoe.messages.sizes import content_bytes
from fedmoe.schema import RuntimeBase

NODES = (2, 3, 4, 5)
LIMITS = replace(load_config().runtime, max_reply_bytes=10_000, max_examples=1000)
Arrays = dict[str, NDArray[Any]]
Contents = dict[int, RecordDict]
Pack = Callable[[dict[int, Arrays]], dict[int, ArrayRecord]]


def weights(node: int) -> Arrays:
    return {
        "weight": np.full((2, 3), node, dtype=np.float32),
        "bias": np.array([node, -node], dtype=np.float32),
    }


def as_plain(arrays: dict[int, Arrays]) -> dict[int, ArrayRecord]:
    return {node: to_record(own) for node, own in arrays.items()}


def as_cohorts(arrays: dict[int, Arrays]) -> dict[int, ArrayRecord]:
    """Clients whose arrays have the same names, shapes and dtypes share a stack."""
    groups: dict[str, list[int]] = {}
    for node, own in arrays.items():
        kind = str(sorted((name, a.shape, str(a.dtype)) for name, a in own.items()))
        groups.setdefault(kind, []).append(node)
    records: dict[int, ArrayRecord] = {}
    for nodes in groups.values():
        names = arrays[nodes[0]]
        stack = Stack(
            {name: torch.from_numpy(np.stack([arrays[n][name] for n in nodes])) for name in names}
        )
        records |= {node: CohortRecord(stack, row) for row, node in enumerate(nodes)}
    return records


PACKS: list[Pack] = [as_plain, as_cohorts]


@pytest.fixture(autouse=True)
def _identity() -> None:
    ensure_task_identity()


def requests(
    kind: str = MessageType.TRAIN, arrays: bool = True, nodes: Sequence[int] = NODES
) -> list[Message]:
    model = to_record(weights(0))
    sent = [
        Message(RecordDict({words.ARRAYS: model} if arrays else {}), node, kind) for node in nodes
    ]
    for number, message in enumerate(sent):
        set_message_id(message, str(number))
    return sent


def contents(pack: Pack = as_plain, arrays: dict[int, Arrays] | None = None) -> Contents:
    records = pack(arrays if arrays is not None else {node: weights(node) for node in NODES})
    return {
        node: RecordDict(
            {
                words.ARRAYS: record,
                words.METRICS: MetricRecord({words.NUM_EXAMPLES: 10 * node, words.LOSS: 0.5}),
            }
        )
        for node, record in records.items()
    }


def scores(nodes: Sequence[int] = NODES) -> Contents:
    """What clients answer to an evaluation."""
    own = {words.NUM_EXAMPLES: 0, "test-num-examples": 0, "validation-num-examples": 7}
    return {n: RecordDict({words.METRICS: MetricRecord({**own, "loss": 1.0})}) for n in nodes}


def metrics(content: RecordDict) -> MetricRecord:
    return cast(MetricRecord, content[words.METRICS])


def replies_to(sent: Sequence[Message], held: Contents) -> list[Message]:
    return [
        Message(held[message.metadata.dst_node_id], reply_to=message)
        for message in sent
        if message.metadata.dst_node_id in held
    ]


def inspect(
    held: Contents, sent: list[Message] | None = None, limits: RuntimeBase = LIMITS
) -> Inspection:
    sent = requests() if sent is None else sent
    return ReplyGuard(limits, FedAvg()).inspect(sent, replies_to(sent, held)[::-1])


def nodes_of(messages: Sequence[Message]) -> list[int]:
    return [message.metadata.src_node_id for message in messages]


def assert_only_bad(result: Inspection, bad: int, reason: str) -> None:
    others = [node for node in NODES if node != bad]
    assert nodes_of(result.good) == others
    assert list(result.bytes_up) == others
    assert list(result.failures) == [bad]
    assert reason in result.failures[bad]
    assert_fit_for_a_log(result.failures[bad])


def assert_fit_for_a_log(reason: str) -> None:
    assert 0 < len(reason) <= 300
    assert reason.isprintable()


# ---------------------------------------------------------------------------- good replies


@pytest.mark.parametrize("pack", PACKS)
def test_good_replies_pass_in_node_order_and_are_weighed(pack: Pack) -> None:
    held = contents(pack)
    result = inspect(held)
    assert nodes_of(result.good) == list(NODES)
    assert result.failures == {}
    numbers = len("num-examples") + len("loss") + 16
    for node, content in held.items():
        stacked = stack_of(cast(ArrayRecord, content[words.ARRAYS]))
        assert (stacked is not None) == (pack is as_cohorts)  # the guard made no arrays
        arrays = cast(ArrayRecord, content[words.ARRAYS])
        assert result.bytes_up[node] == numbers + sum(len(a.data) for a in arrays.values())


@pytest.mark.parametrize("pack", PACKS)
def test_huge_finite_weights_are_the_strategys_business(pack: Pack) -> None:
    arrays = {node: weights(node) for node in NODES}
    arrays[3]["weight"][:] = np.finfo(np.float32).max
    assert inspect(contents(pack, arrays)).failures == {}


def test_fortran_order_is_no_fault() -> None:
    held = contents()
    held[3][words.ARRAYS] = to_record(
        {"weight": np.asfortranarray(weights(3)["weight"]), "bias": weights(3)["bias"]}
    )
    assert inspect(held).failures == {}


def test_limits_are_inclusive() -> None:
    held = contents()
    metrics(held[3])[words.NUM_EXAMPLES] = 1000
    metrics(held[4])[words.NUM_EXAMPLES] = 1
    largest = content_bytes(held[2])
    result = inspect(held, limits=replace(LIMITS, max_reply_bytes=largest))
    assert result.failures == {}
    result = inspect(held, limits=replace(LIMITS, max_reply_bytes=largest - 1))
    assert result.good == []
    assert result.failures[2] == f"{largest} bytes, at most {largest - 1} are allowed"


# ------------------------------------------------------------------------------- bad weights


def set_to(name: str, value: float) -> Callable[[Arrays], None]:
    def spoil(arrays: Arrays) -> None:
        arrays[name].flat[-1] = value

    return spoil


def replaced(name: str, array: NDArray[Any]) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.update({name: array})


BAD_WEIGHTS: list[Any] = [
    pytest.param(set_to("weight", math.nan), ": not finite", id="nan"),
    pytest.param(set_to("bias", math.inf), ": not finite", id="inf"),
    pytest.param(set_to("bias", -math.inf), ": not finite", id="minus-inf"),
    pytest.param(
        replaced("weight", np.ones((3, 2), np.float32)),
        "arrays: weight is float32[3, 2], expected float32[2, 3]",
        id="wrong-shape",
    ),
    pytest.param(
        replaced("bias", np.ones(1, np.float32)),
        "arrays: bias is float32[1], expected float32[2]",
        id="length-1-would-broadcast",
    ),
    pytest.param(
        replaced("bias", np.array(1, np.float32)),
        "arrays: bias is float32[], expected float32[2]",
        id="scalar-would-broadcast",
    ),
    pytest.param(
        replaced("extra", np.ones(2, np.float32)), "arrays: has unknown extra", id="extra-key"
    ),
    pytest.param(lambda arrays: arrays.pop("bias"), "arrays: lacks bias", id="missing-key"),
    pytest.param(
        replaced("weight", np.ones((2, 3), np.int64)),
        "arrays: weight is int64[2, 3], expected float32[2, 3]",
        id="int-dtype",
    ),
    pytest.param(
        replaced("weight", np.ones((2, 3), np.float64)),
        "arrays: weight is float64[2, 3], expected float32[2, 3]",
        id="float64",
    ),
]


@pytest.mark.parametrize("bad", [2, 4])
@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize(("spoil", "reason"), BAD_WEIGHTS)
def test_bad_weights_are_one_clients_failure(
    spoil: Callable[[Arrays], None], reason: str, pack: Pack, bad: int
) -> None:
    arrays = {node: weights(node) for node in NODES}
    spoil(arrays[bad])
    assert_only_bad(inspect(contents(pack, arrays)), bad, reason)


@pytest.mark.parametrize("pack", PACKS)
def test_weights_that_did_not_come(pack: Pack) -> None:
    held = contents(pack)
    del held[3][words.ARRAYS]
    assert_only_bad(inspect(held), 3, "the reply has no arrays")


def test_weights_that_are_no_arrays() -> None:
    held = contents()
    del held[3][words.ARRAYS]
    held[3][words.ARRAYS] = MetricRecord({"weight": 1.0})
    assert_only_bad(inspect(held), 3, "the reply has no arrays")


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("sent", [(MessageType.TRAIN, False), (MessageType.EVALUATE, True)])
def test_weights_that_nobody_asked_for(sent: tuple[str, bool], pack: Pack) -> None:
    held = scores()
    for content in held.values():
        metrics(content)[words.NUM_EXAMPLES] = 5
    held[3][words.ARRAYS] = contents(pack)[3][words.ARRAYS]
    assert_only_bad(inspect(held, requests(*sent)), 3, "weights were not asked for")


@pytest.mark.parametrize(
    "record", [to_record(weights(1)), MetricRecord({"x": 1.0}), ConfigRecord({"x": 1})]
)
def test_a_record_that_the_others_lack_would_void_the_round_of_a_stock_strategy(
    record: ArrayRecord | MetricRecord | ConfigRecord,
) -> None:
    held = contents()
    held[3]["surplus"] = record
    assert_only_bad(inspect(held), 3, "differs from the other replies in surplus")


# ------------------------------------------------------------------------------- bad metrics


def metric(name: str, value: Any) -> Callable[[RecordDict], None]:
    return lambda content: metrics(content).update({name: value})


def without(name: str) -> Callable[[RecordDict], None]:
    return lambda content: metrics(content).__delitem__(name)


def true_examples(content: RecordDict) -> None:
    metrics(content).__dict__["_data"][words.NUM_EXAMPLES] = True  # past Flower's own check


def metrics_as_config(content: RecordDict) -> None:
    del content[words.METRICS]
    content[words.METRICS] = ConfigRecord({words.NUM_EXAMPLES: 3, words.LOSS: 1.0})


MUST_BE = "must be a whole number 1..1000"
BAD_METRICS: list[Any] = [
    pytest.param(metric("num-examples", 10**12), f"num-examples={10**12}: {MUST_BE}", id="1e12"),
    pytest.param(metric("num-examples", 1001), f"num-examples=1001: {MUST_BE}", id="too-many"),
    pytest.param(metric("num-examples", -30), f"num-examples=-30: {MUST_BE}", id="negative"),
    pytest.param(metric("num-examples", 0), f"num-examples=0: {MUST_BE}", id="zero"),
    pytest.param(metric("num-examples", 2.5), f"num-examples=2.5: {MUST_BE}", id="fraction"),
    pytest.param(metric("num-examples", 4.0), f"num-examples=4.0: {MUST_BE}", id="float"),
    pytest.param(metric("num-examples", [4]), f"num-examples=[4]: {MUST_BE}", id="list"),
    pytest.param(metric("num-examples", math.nan), f"num-examples=nan: {MUST_BE}", id="nan"),
    pytest.param(true_examples, f"num-examples=True: {MUST_BE}", id="bool"),
    pytest.param(without("num-examples"), f"num-examples=None: {MUST_BE}", id="no-weight"),
    pytest.param(without("loss"), "differs from the other replies in loss", id="metric-missing"),
    pytest.param(
        metric("client_id", 1), "differs from the other replies in client_id", id="metric-extra"
    ),
    pytest.param(metric("loss", math.nan), "metric loss=nan: must be finite", id="loss-nan"),
    pytest.param(metric("loss", -math.inf), "metric loss=-inf: must be finite", id="loss-inf"),
    pytest.param(metric("loss", [0.5]), "metric loss: must be one number", id="loss-list"),
    pytest.param(metric("loss", []), "metric loss: must be one number", id="loss-empty"),
    pytest.param(metric("loss", 10**400), "OverflowError", id="loss-overflows"),
    pytest.param(
        lambda content: content.__delitem__(words.METRICS), "has no metrics", id="no-record"
    ),
    pytest.param(metrics_as_config, "has no metrics", id="another-record"),
]


@pytest.mark.parametrize("bad", [2, 4])
@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize(("spoil", "reason"), BAD_METRICS)
def test_bad_metrics_are_one_clients_failure(
    spoil: Callable[[RecordDict], None], reason: str, pack: Pack, bad: int
) -> None:
    held = contents(pack)
    spoil(held[bad])
    assert_only_bad(inspect(held), bad, reason)


def test_all_metrics_of_all_records_must_be_finite() -> None:
    held = contents()
    for node, content in held.items():
        content[words.INSIGHT] = MetricRecord({"curve": [1.0, math.nan if node == 4 else 2.0]})
    assert_only_bad(inspect(held), 4, "metric curve=[1.0, nan]: must be finite")


def test_an_evaluation_may_have_no_examples() -> None:
    assert inspect(scores(), requests(MessageType.EVALUATE)).failures == {}


@pytest.mark.parametrize("name", ["num-examples", "test-num-examples", "validation-num-examples"])
@pytest.mark.parametrize("value", [-5, 10**12, 1.5])
def test_counts_that_weigh_the_scores_are_bounded(name: str, value: float) -> None:
    held = scores()
    metrics(held[4])[name] = value
    reason = f"{name}={value}: must be a whole number 0..1000"
    assert_only_bad(inspect(held, requests(MessageType.EVALUATE)), 4, reason)


def test_the_most_usual_metrics_win_wherever_they_stand() -> None:
    held = contents()
    for node in (2, 5):
        metrics(held[node])["own"] = 1.0
    metrics(held[2])["more"] = 1.0
    result = inspect({node: held[node] for node in (2, 3, 4, 5)})
    assert nodes_of(result.good) == [3, 4]
    assert result.failures == {
        2: "differs from the other replies in more, own",
        5: "differs from the other replies in own",
    }
    assert list(result.bytes_up) == [3, 4]


def test_a_failure_has_no_say_in_what_is_usual() -> None:
    sent, held = requests(), contents()
    for node in (2, 3):
        metrics(held[node])["own"] = 1.0
    replies = [*replies_to(sent, held), *replies_to(sent[:1], held)]  # node 2 answers twice
    result = ReplyGuard(LIMITS, FedAvg()).inspect(sent, replies)
    assert nodes_of(result.good) == [4, 5]
    assert result.failures == {
        2: "more than one reply",
        3: "differs from the other replies in own",
    }


# ---------------------------------------------------------------------- what did or did not come


def test_an_error_reply() -> None:
    sent, held = requests(), contents()
    good = [r for r in replies_to(sent, held) if r.metadata.src_node_id != 4]
    for error, reason in [
        (Error(2, "CUDA out of memory"), "CUDA out of memory"),
        (Error(7, ""), "error code 7"),
        (Error(7), "error code 7"),
    ]:
        replies = [*good, Message(error, reply_to=sent[2])]
        assert_only_bad(ReplyGuard(LIMITS, FedAvg()).inspect(sent, replies), 4, reason)


def test_no_reply() -> None:
    held = contents()
    del held[5]
    assert_only_bad(inspect(held), 5, "no reply before the deadline")


def test_no_reply_of_anybody() -> None:
    result = inspect({})
    assert (result.good, result.bytes_up) == ([], {})
    assert list(result.failures) == list(NODES)


@pytest.mark.parametrize("second", ["good", "error", "nan"])
@pytest.mark.parametrize("first", [True, False])
def test_two_replies_of_one_node(second: str, first: bool) -> None:
    sent = requests()
    replies = replies_to(sent, contents())
    arrays = {node: weights(node) for node in NODES}
    if second == "nan":
        arrays[3]["bias"][0] = math.nan
    again: RecordDict | Error = Error(2, "x") if second == "error" else contents(arrays=arrays)[3]
    replies.insert(0 if first else len(replies), Message(cast(RecordDict, again), reply_to=sent[1]))
    assert_only_bad(ReplyGuard(LIMITS, FedAvg()).inspect(sent, replies), 3, "more than one reply")


def test_a_reply_of_a_node_that_was_not_asked_is_nobodys_failure() -> None:
    asked, stranger = requests(), requests(nodes=[9])
    replies = [
        *replies_to(asked, contents()),
        *replies_to(stranger, {9: contents()[2]}),
    ]
    result = ReplyGuard(LIMITS, FedAvg()).inspect(asked, iter(replies))
    assert nodes_of(result.good) == list(NODES)
    assert result.failures == {}
    assert 9 not in result.bytes_up


@pytest.mark.parametrize("pack", PACKS)
def test_an_oversized_reply(pack: Pack) -> None:
    arrays = {node: weights(node) for node in NODES}
    arrays[3]["weight"] = np.zeros((100, 100), np.float32)
    assert_only_bad(inspect(contents(pack, arrays)), 3, "bytes, at most 10000 are allowed")


def test_an_oversized_reply_of_words_and_numbers() -> None:
    held = contents()
    held[3]["words"] = ConfigRecord({"x": "y" * 10_000})
    assert_only_bad(inspect(held), 3, "bytes, at most 10000 are allowed")
    held = contents()
    held[3]["numbers"] = MetricRecord({"x": [1.0] * 1250})
    assert_only_bad(inspect(held), 3, "bytes, at most 10000 are allowed")


# -------------------------------------------------------------------- bytes that lie about arrays


def npy(array: NDArray[Any], allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def npz(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", npy(array))
    return buffer.getvalue()


def promising(shape: tuple[int, ...]) -> bytes:
    """A header that declares another shape, before the data of six numbers."""
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + bytes(24)


WEIGHT = weights(3)["weight"]
DATA = npy(WEIGHT)
ODD_START = "weight: its data do not start as float32[2, 3] do"
LIES: list[Any] = [
    pytest.param({"data": DATA[:-1]}, "151 bytes of data, expected 152", id="too-short"),
    pytest.param({"data": DATA + b"\0"}, "153 bytes of data, expected 152", id="too-long"),
    pytest.param({"data": b""}, "0 bytes of data, expected 152", id="empty"),
    pytest.param({"data": npy(np.ones((3, 2), np.float32))}, ODD_START, id="other-shape"),
    pytest.param({"data": npy(np.ones(6, np.float32))}, ODD_START, id="flat"),
    pytest.param({"data": npy(np.ones((2, 3), np.int32))}, ODD_START, id="other-dtype"),
    pytest.param({"data": npy(np.ones((2, 3), ">f4"))}, ODD_START, id="byte-order"),
    pytest.param({"data": promising((9, 9))}, ODD_START, id="header-promises-more"),
    pytest.param({"data": promising((2, 3 * 10**13))}, ODD_START, id="header-promises-terabytes"),
    pytest.param({"data": b"x" * 152}, ODD_START, id="not-npy"),
    pytest.param({"data": npz(WEIGHT).ljust(152, b"\0")[:152]}, ODD_START, id="zip"),
    pytest.param(
        {"data": pickle.dumps(["x" * 200]).ljust(152, b".")[:152]}, ODD_START, id="pickle"
    ),
    pytest.param({"stype": "torch.tensor"}, "torch.tensor", id="other-serialisation"),
    pytest.param({"shape": (2, 3, 10**12)}, "", id="declares-terabytes"),
    pytest.param({"shape": (-2, -3)}, "", id="negative-shape"),
    pytest.param({"shape": (2,) * 70, "data": b""}, "", id="too-many-axes"),
    pytest.param({"dtype": "no-such-type"}, "", id="unknown-dtype"),
    pytest.param({"dtype": "object"}, "", id="object"),
    pytest.param({"dtype": "<U1"}, "", id="text"),
    pytest.param({"dtype": "bool", "data": npy(np.ones((2, 3), bool))}, "bool", id="bool"),
    pytest.param(
        {"dtype": "complex64", "data": npy(WEIGHT.astype(np.complex64))}, "complex64", id="complex"
    ),
]


@pytest.mark.parametrize("key", [words.ARRAYS, words.PAYLOAD])
@pytest.mark.parametrize(("lie", "reason"), LIES)
def test_bytes_that_contradict_what_is_declared(lie: dict[str, Any], reason: str, key: str) -> None:
    held = contents()
    if key == words.PAYLOAD:  # nothing is known about its shapes beforehand
        for node, content in held.items():
            content[key] = to_record(weights(node))
    true = {"dtype": "float32", "shape": (2, 3), "stype": "numpy.ndarray", "data": DATA}
    cast(ArrayRecord, held[4][key])["weight"] = Array(**{**true, **lie})
    if key == words.ARRAYS and {"dtype", "shape"} & lie.keys():
        reason = "arrays: weight is "
    assert_only_bad(inspect(held), 4, reason)


def test_arrays_in_fortran_order_are_as_good() -> None:
    held = contents()
    for node, content in held.items():
        content[words.PAYLOAD] = to_record({"weight": np.asfortranarray(weights(node)["weight"])})
    result = inspect(held)
    assert not result.failures
    assert np.load(io.BytesIO(npy(np.asfortranarray(WEIGHT)))).flags.f_contiguous


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("key", [words.ARRAYS, words.PAYLOAD])
@pytest.mark.parametrize("dtype", ["object", "float32"])
def test_pickled_data_is_never_unpickled(tmp_path: Path, dtype: str, key: str) -> None:
    mark = tmp_path / "it-went-off"
    data = npy(np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    np.load(io.BytesIO(data), allow_pickle=True)
    assert mark.exists()  # it is live
    mark.unlink()

    data = data.ljust(len(data) + (-len(data)) % 8, b".")  # pickle ignores what follows its end
    shape = ((len(data) - 128) // (8 if dtype == "object" else 4),)
    hostile = Array(dtype=dtype, shape=shape, stype="numpy.ndarray", data=data)
    held = contents()
    if key == words.PAYLOAD:
        for node, content in held.items():
            content[key] = to_record(weights(node))
    cast(ArrayRecord, held[3][key])["weight"] = hostile
    result = inspect(held)
    assert not mark.exists()
    reason = {
        (words.ARRAYS, "object"): "arrays: weight is object",
        (words.ARRAYS, "float32"): "arrays: weight is float32",
        (words.PAYLOAD, "object"): "payload/weight: dtype object is not a number",
        (words.PAYLOAD, "float32"): "its data do not start as float32",
    }[key, dtype]
    assert_only_bad(result, 3, reason)


def test_a_raw_pickle_is_never_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "it-went-off"
    data = pickle.dumps(Bomb(mark))
    size = 128 + 4 * len(data)
    hostile = Array(
        dtype="float32", shape=(len(data),), stype="numpy.ndarray", data=data.ljust(size, b".")
    )
    held = contents()
    for node, content in held.items():
        content[words.PAYLOAD] = to_record(weights(node))
    cast(ArrayRecord, held[3][words.PAYLOAD])["weight"] = hostile
    result = inspect(held)
    assert not mark.exists()
    assert_only_bad(result, 3, "")


@pytest.mark.parametrize("pack", PACKS)
def test_arrays_besides_the_weights_must_be_finite(pack: Pack) -> None:
    held = contents()
    payload = {node: {"statistics": np.ones(2, np.float32)} for node in NODES}
    payload[4]["statistics"][1] = math.nan
    for node, record in pack(payload).items():
        held[node][words.PAYLOAD] = record
    assert_only_bad(inspect(held), 4, "not finite")


# --------------------------------------------------------------------- a check of the strategy's


class Picky(FedAvg):
    """Raises for one node."""

    def __init__(self, node: int, error: Exception) -> None:
        super().__init__()
        self.node, self.error = node, error

    def check_reply(self, reply: Message) -> None:
        if reply.metadata.src_node_id == self.node:
            raise self.error


ERRORS: list[tuple[Exception, str]] = [
    (ValueError("stale\ninsight"), "stale insight"),
    (ValueError(), "ValueError"),
    (KeyError("loss"), "KeyError('loss')"),
    (RuntimeError("it\nbroke"), "RuntimeError('it\\nbroke')"),
    (AssertionError(), "AssertionError()"),
    (RecursionError("deep"), "RecursionError('deep')"),
    (StopIteration(), "StopIteration()"),
    (MemoryError(), "MemoryError()"),
]


@pytest.mark.parametrize(("error", "reason"), ERRORS, ids=[type(e).__name__ for e, _ in ERRORS])
def test_whatever_the_strategys_own_check_raises(error: Exception, reason: str) -> None:
    sent = requests()
    result = ReplyGuard(LIMITS, Picky(4, error)).inspect(sent, replies_to(sent, contents()))
    assert_only_bad(result, 4, reason)
    assert result.failures[4] == reason


def test_the_strategys_own_check_is_about_training() -> None:
    sent = requests(MessageType.EVALUATE)
    guard = ReplyGuard(LIMITS, Picky(4, ValueError("no")))
    assert guard.inspect(sent, replies_to(sent, scores())).failures == {}


# --------------------------------------------------------------------------------- the reasons


@pytest.mark.parametrize(
    "text", ["a\nb\r\n\tc", "x" * 5000, "\x1b[31mred\x1b[0m", "\x00\x07", "\n" * 4000 + "late"]
)
def test_a_reason_is_one_short_printable_line(text: str) -> None:
    sent, held = requests(), contents()
    metrics(held[3])[text] = 1.0
    metrics(held[4])[text] = math.nan
    replies = replies_to(sent, held)
    replies[3] = Message(Error(2, text), reply_to=sent[3])
    result = ReplyGuard(LIMITS, FedAvg()).inspect(sent, replies)
    assert sorted(result.failures) == [3, 4, 5]
    for reason in result.failures.values():
        assert_fit_for_a_log(reason)


def test_a_reason_keeps_its_words() -> None:
    sent = requests()
    replies = replies_to(sent, contents())
    replies[0] = Message(Error(2, "RuntimeError:\n  out of\tmemory  \n"), reply_to=sent[0])
    result = ReplyGuard(LIMITS, FedAvg()).inspect(sent, replies)
    assert result.failures == {2: "RuntimeError: out of memory"}
