"""Insights beside weights, and clients that lie in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from federation_runs import CLASSES, RUNS, all_lines, lines, run
from flwr.app import Context, Message, MessageType, MetricRecord
from test_run_faults import ROUNDS, client_of, use

from fedmoe.clients import answer
from fedmoe.tracking import load_checkpoint

# Every strategy of ours that sends weights or means, and the control that sends nothing.
STRATEGIES = [
    "local", "fedavg", "fedprox", "fedadam", "fedem", "ifca", "local-global", "fedmoe",
    "fedmoe-some", "fedavg-finetune", "ditto", "fedrep", "fedproto", "mixture-of-experts",
]  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES)
def test_insights_alone_change_no_number(name: str, tmp_path: Path) -> None:
    found: list[Any] = []
    for words in ([], ["insight.payloads=[scalars]"]):
        path = tmp_path / str(len(found))
        run(RUNS[name], path, "rounds=4", *words)
        weights = {
            key: array.tobytes()
            for key, array in load_checkpoint(path).arrays.items()
            if not key.startswith("strategy/exchange/")
        }
        found.append((without_bytes(path), weights))
        assert bool(lines(path, "insights.jsonl")) == bool(words)
    assert found[0] == found[1]


def without_bytes(path: Path) -> Any:
    """What a run has recorded, but for insights and traffic."""
    records = all_lines(path)
    del records["insights.jsonl"]
    records.pop("findings.jsonl", None)
    for one in records["metrics.jsonl"]:
        del one["bytes"]
    for one in records["clients.jsonl"]:
        del one["bytes_up"], one["bytes_down"]
    return records


@pytest.mark.parametrize("strategy", ["fedavg", "fedmoe"])
def test_guidance_changes_what_a_weight_sharing_strategy_learns(
    strategy: str, tmp_path: Path
) -> None:
    """From the second round on, when there is some."""
    words = [*CLASSES, f"strategy={strategy}"]
    losses: list[list[float]] = []
    for more in ([], ["meta_learner=prototypes"]):
        path = tmp_path / str(len(losses))
        run(words, path, "rounds=3", *more)
        losses.append([one["train"]["loss"] for one in lines(path, "metrics.jsonl")])
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] != losses[1][1]


LIES: dict[int, tuple[str, float, str]] = {
    0: ("uncertainty", -0.5, "insight uncertainty=-0.5: must not be negative"),
    2: ("round", 7, "insight of round 7 in round "),
    3: ("client_id", 4, "client id 4 does not belong to node 5"),
}


@pytest.mark.parametrize("name", ["insight", "guided"])
def test_liars_are_named_and_the_run_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second round on: in the first, who is who is not known yet."""
    words = {
        "insight": RUNS["insight"],
        "guided": [*CLASSES, "strategy=fedavg", "meta_learner=prototypes", "data.num_clients=5"],
    }
    trained: list[int] = []

    def lies(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        replies = answer(messages, contexts)
        trained.append(len(replies))
        for reply in replies:
            if reply.metadata.message_type == MessageType.TRAIN and len(trained) > 1:
                field, value, _ = LIES.get(client_of(reply), ("schema_version", 2, ""))
                cast(MetricRecord, reply.content["insight"])[field] = value
        return replies

    use(lies, monkeypatch)
    summary = run(words[name], tmp_path / "run", f"rounds={ROUNDS}")
    assert (summary["status"], summary["insights"]) == ("completed", 5 + 2 * (ROUNDS - 1))
    for one in lines(tmp_path / "run", "clients.jsonl"):
        lie = LIES.get(one["client"]) if one["round"] > 1 else None
        assert one["status"] == ("failed" if lie else "ok")
        assert one["reason"] is None if lie is None else one["reason"].startswith(lie[2])
    told = [(one["round"], one["client_id"]) for one in lines(tmp_path / "run", "insights.jsonl")]
    assert told == [(r, c) for r in range(1, ROUNDS + 1) for c in range(5) if r == 1 or c in (1, 4)]
    for record in lines(tmp_path / "run", "metrics.jsonl"):
        assert record["train"]["void"] is False
