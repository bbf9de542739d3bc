"""Real runs in which a client's replies are refused until it is not asked any more."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from federation_runs import RUNS, lines, resume, run
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord
from test_run_faults import BAD, FEDAVG, client_of, use
from test_run_resume import assert_same_run, cut

from fedmoe.clients import answer
from fedmoe.messages.arrays import plain, to_record
from fedmoe.tracking import load_checkpoint

Spoil = Callable[[Message], Message | None]
STRIKES = ["runtime.max_strikes=2", "runtime.max_reply_bytes=4000"]


def arrays_of(reply: Message) -> dict[str, Any]:
    return {
        name: a.numpy().copy() for name, a in cast(ArrayRecord, reply.content["arrays"]).items()
    }


def changed(change: Callable[[Any], Any]) -> Spoil:
    """Change each array of a reply."""

    def spoil(reply: Message) -> None:
        reply.content["arrays"] = to_record({k: change(a) for k, a in arrays_of(reply).items()})

    return spoil


def lies_about_size(reply: Message) -> None:
    """Terabytes by the header, a few bytes in truth."""
    arrays = cast(ArrayRecord, reply.content["arrays"])
    for name, array in list(arrays.items()):
        arrays[name] = Array(array.dtype, (10**6, 10**6), array.stype, array.data)


def claims(count: float) -> Spoil:
    def spoil(reply: Message) -> None:
        metrics = dict(cast(MetricRecord, reply.content["metrics"]))
        reply.content["metrics"] = MetricRecord({**metrics, "num-examples": count})

    return spoil


def with_extra(reply: Message) -> None:
    cast(ArrayRecord, reply.content["arrays"])["own"] = Array(np.zeros(2, np.float32))


def without_arrays(reply: Message) -> None:
    del reply.content["arrays"]


class Replayed:
    """Sends its first reply again and again."""

    def __init__(self) -> None:
        self.first: Message | None = None

    def __call__(self, reply: Message) -> Message:
        if self.first is None:
            self.first = copy.deepcopy(reply)
        return self.first


def spoilt(spoil: Spoil) -> Callable[[Sequence[Message], Sequence[Context]], list[Message]]:
    def tamper(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        replies = answer(messages, contexts)
        for place, reply in enumerate(replies):
            if client_of(reply) == BAD:
                reply.content = plain(reply.content)
                replies[place] = spoil(reply) or reply
        return replies

    return tamper


FAULTS: list[tuple[str, Spoil, str]] = [
    ("nan", changed(lambda a: a * np.nan), "not finite"),
    ("infinite", changed(lambda a: a + np.inf), "not finite"),
    ("far", changed(lambda a: a + 1e6), "its update is 2e+06 long, at most 1000 is allowed"),
    ("shape", changed(lambda a: a[..., None]), "expected float32"),
    ("dtype", changed(lambda a: a.astype(np.float64)), "is float64[1, 3], expected float32[1, 3]"),
    ("oversized", changed(lambda a: np.zeros(10_000, np.float32)), "at most 4000 are allowed"),
    ("declared", lies_about_size, "expected float32[1, 3]"),
    ("weight", claims(10**9), "num-examples=1000000000: must be a whole number 1..10000000"),
    ("negative", claims(-5), "num-examples=-5: must be a whole number"),
    ("fraction", claims(0.5), "num-examples=0.5: must be a whole number"),
    ("extra", with_extra, "has unknown own"),
    ("nothing", without_arrays, "the reply has no arrays"),
]


@pytest.mark.parametrize(("spoil", "reason"), [pytest.param(s, r, id=i) for i, s, r in FAULTS])
def test_who_is_refused_again_and_again_is_not_asked_any_more(
    spoil: Spoil, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(spoilt(spoil), monkeypatch)
    words = [*FEDAVG, *STRIKES, "runtime.max_update_norm=1000.0", "rounds=4"]
    summary = run(words, tmp_path / "run")
    assert summary["status"] == "completed"
    assert summary["strikes"] == {BAD: 2}
    told = lines(tmp_path / "run", "clients.jsonl")
    bad = [(t["round"], t["status"]) for t in told if t["client"] == BAD]
    assert bad == [(1, "failed"), (2, "failed")]
    assert all(reason in t["reason"] for t in told if t["client"] == BAD)
    others = [t["status"] for t in told if t["client"] != BAD]
    assert others == ["ok"] * 16
    missing = [record["missing"] for record in lines(tmp_path / "run", "metrics.jsonl")]
    assert missing == [0, 1, 1, 1]
    assert np.isfinite(summary["final"]["global"]["mse"]["mean"])


def test_a_reply_that_is_sent_again_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(spoilt(Replayed()), monkeypatch)
    summary = run([*FEDAVG, *STRIKES, "rounds=4"], tmp_path / "run")
    told = [t for t in lines(tmp_path / "run", "clients.jsonl") if t["client"] == BAD]
    assert [(t["round"], t["status"]) for t in told] == [(1, "ok"), (2, "failed"), (3, "failed")]
    assert "which is not this round's" in told[1]["reason"]
    assert summary["strikes"] == {BAD: 2}


def test_who_fails_without_fault_is_asked_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        return [reply for reply in answer(messages, contexts) if client_of(reply) != BAD]

    use(silent, monkeypatch)
    summary = run([*FEDAVG, *STRIKES, "rounds=4"], tmp_path / "run")
    told = lines(tmp_path / "run", "clients.jsonl")
    assert [t["status"] for t in told if t["client"] == BAD] == ["failed"] * 4
    assert "strikes" not in summary


def test_without_a_limit_clients_are_asked_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(spoilt(claims(-1)), monkeypatch)
    summary = run([*FEDAVG, "runtime.max_strikes=null", "rounds=5"], tmp_path / "run")
    told = lines(tmp_path / "run", "clients.jsonl")
    assert [t["status"] for t in told if t["client"] == BAD] == ["failed"] * 5
    assert summary["strikes"] == {BAD: 5}


@pytest.mark.parametrize("name", ["fedavg", "insight", "ifca"])
def test_a_run_that_is_cut_remembers_the_strikes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(spoilt(claims(-1)), monkeypatch)
    words = [*RUNS[name], *STRIKES]
    run(words, tmp_path / "whole", "rounds=6")
    more = ("rounds=6", "tracking.checkpoint_every=1")
    for after in (2, 4):  # with one strike on record, and after the last
        path = tmp_path / f"cut{after}"
        cut(words, path, monkeypatch, *more, after=after)
        kept = load_checkpoint(path).state["standing"]["strikes"]
        assert kept == {str(BAD): min(after - 1, 2)}
        resume(words, path, *more)
        assert_same_run(path, tmp_path / "whole")
        asked = [t["round"] for t in lines(path, "clients.jsonl") if t["client"] == BAD]
        assert asked == [1, 2]
