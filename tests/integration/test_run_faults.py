"""Real runs in which some clients misbehave."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from federation_runs import REGRESSION, RUNS, lines, run
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord

import fedmoe.simulations
from fedmoe.clients import Experiment, answer
from fedmoe.config import to_json
from fedmoe.errors import RunError
from fedmoe.messages.arrays import CohortRecord, Stack, gather
from fedmoe.simulate import main
from fedmoe.simulations import ContextGrid
from fedmoe.tracking import load_checkpoint

Replies = list[Message]
Tamper = Callable[[Sequence[Message], Sequence[Context]], Replies]
BAD = 2  # the client at fault
ROUNDS = 3
FEDAVG = [
    *(word for word in REGRESSION if word != "partition=natural"), "strategy=fedavg",
    "partition=quantity", "partition.num_clients=5", "partition.min_samples=6",
]  # fmt: skip


def client_of(message: Message) -> int:
    metadata = message.metadata
    node = metadata.src_node_id if metadata.reply_to_message_id else metadata.dst_node_id
    return node - 2


def use(tamper: Tamper, monkeypatch: pytest.MonkeyPatch) -> list[Replies]:
    """Let a run's clients answer by `tamper` when they train; collects the replies by round."""
    trained: list[Replies] = []

    def tampered(messages: Sequence[Message], contexts: Sequence[Context]) -> Replies:
        if messages[0].metadata.message_type != MessageType.TRAIN:
            return answer(messages, contexts)
        trained.append(tamper(messages, contexts))
        return trained[-1]

    class Grid(ContextGrid):
        def __init__(self, experiment: Experiment) -> None:
            super().__init__(to_json(experiment.config), experiment.data.num_clients, tampered)

    monkeypatch.setattr(fedmoe.simulations, "InProcessGrid", Grid)
    return trained


def raises(messages: Sequence[Message], contexts: Sequence[Context]) -> Replies:
    for message in messages:
        if client_of(message) == BAD:
            cast(ConfigRecord, message.content["config"])["server-round"] = "one"
    return answer(messages, contexts)


def is_silent(messages: Sequence[Message], contexts: Sequence[Context]) -> Replies:
    return [reply for reply in answer(messages, contexts) if client_of(reply) != BAD]


def sends_nan(messages: Sequence[Message], contexts: Sequence[Context]) -> Replies:
    replies = answer(messages, contexts)
    for reply in replies:
        if client_of(reply) == BAD:
            spoilt = gather([cast(ArrayRecord, reply.content["arrays"])])
            spoilt["weight"][0, 0, 0] = torch.nan
            reply.content["arrays"] = CohortRecord(Stack(spoilt), 0)
    return replies


def claims_too_much(messages: Sequence[Message], contexts: Sequence[Context]) -> Replies:
    replies = answer(messages, contexts)
    for reply in replies:
        if client_of(reply) == BAD:
            cast(MetricRecord, reply.content["metrics"])["num-examples"] = 10**12
    return replies


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (raises, "ValueError: config 'server-round' must be a number, got 'one'"),
        (is_silent, "no reply before the deadline"),
        (sends_nan, "arrays: not finite"),
        (claims_too_much, "num-examples=1000000000000: must be a whole number 1..10000000"),
    ],
)
def test_the_others_go_on(
    tamper: Tamper, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = use(tamper, monkeypatch)
    path = tmp_path / "run"
    summary = run(FEDAVG, path, f"rounds={ROUNDS}", "tracking.checkpoint_every=1")
    assert summary["status"] == "completed"
    told = lines(path, "clients.jsonl")
    assert [(t["round"], t["client"]) for t in told] == [
        (r, c) for r in range(1, ROUNDS + 1) for c in range(5)
    ]
    for line in told:
        bad = line["client"] == BAD
        assert (line["status"], line["reason"]) == (("failed", reason) if bad else ("ok", None))
        assert (line["bytes_up"] == 0) == (line["loss"] is None) == bad
    for record in lines(path, "metrics.jsonl"):
        train = record["train"]
        assert (train["clients"], train["failures"], train["void"]) == (4, 1, False)

    # The oracle: the last round's good replies, averaged one by one in float64.
    good = [reply for reply in trained[-1] if client_of(reply) != BAD]
    counts = [cast(MetricRecord, reply.content["metrics"])["num-examples"] for reply in good]
    assert len(set(map(str, counts))) > 2  # or else the weights show nothing
    for name, array in load_checkpoint(path).arrays.items():
        key = name.removeprefix("global/")
        values = [cast(ArrayRecord, r.content["arrays"])[key].numpy() for r in good]
        mean = np.average(np.stack(values).astype(np.float64), axis=0, weights=counts)
        np.testing.assert_allclose(array, mean, rtol=1e-6, atol=1e-7)


def test_one_bad_client_changes_nothing_for_those_that_train_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*REGRESSION, "strategy=local", "rounds=3"]
    run(words, tmp_path / "healthy")
    use(raises, monkeypatch)
    run(words, tmp_path / "faulty")
    healthy, faulty = (lines(tmp_path / name, "clients.jsonl") for name in ("healthy", "faulty"))
    for one, other in zip(healthy, faulty, strict=True):
        if one["client"] == BAD:
            assert other["status"] == "failed"
        else:
            # Another cohort is padded otherwise, so its sums may end in another last bit.
            assert other.pop("loss") == pytest.approx(one.pop("loss"), rel=1e-5)
            assert one == other


@pytest.mark.parametrize("name", ["insight", "stock-yogi", "stock-momentum", "fedadam", "ifca"])
def test_every_strategy_survives_a_client_that_fails(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(raises, monkeypatch)
    run(RUNS[name], tmp_path / "run", f"rounds={ROUNDS}")
    for record in lines(tmp_path / "run", "metrics.jsonl"):
        assert (record["train"]["failures"], record["train"]["void"]) == (1, False)
    insights = lines(tmp_path / "run", "insights.jsonl")
    clients = [c for c in range(5) if c != BAD]
    expected = [(r, c) for r in range(1, ROUNDS + 1) for c in clients] if name == "insight" else []
    assert [(one["round"], one["client_id"]) for one in insights] == expected


# ------------------------------------------------------------------------ failed runs


def failed(words: list[str], path: Path) -> dict[str, Any]:
    """Exit code 1, and what the run leaves."""
    assert main([*words, f"rounds={ROUNDS}", f"hydra.run.dir={path}"]) == 1
    summary: dict[str, Any] = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "failed"
    return summary


def assert_all_void(path: Path, good: int) -> None:
    records = lines(path, "metrics.jsonl")
    assert [record["round"] for record in records] == list(range(1, ROUNDS + 1))
    for record in records:
        assert record["train"]["void"]
        assert record["train"]["loss"] is None
        assert record["train"]["clients"] == good
    losses = [record["test"]["global"]["mse"]["mean"] for record in records]
    assert len(set(losses)) == 1  # the weights never changed


def test_a_run_without_a_valid_round_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(raises, monkeypatch)
    summary = failed([*FEDAVG, "runtime.min_replies=5"], tmp_path / "run")
    assert summary["reason"].startswith(
        "every round was void; the last one: 4 good replies, 5 needed (client 2: ValueError: "
    )
    assert summary["rounds"] == ROUNDS
    assert_all_void(tmp_path / "run", good=4)
    assert capsys.readouterr().err.splitlines()[-1] == f"fedmoe: error: {summary['reason']}"


def test_training_that_diverges_fails_with_a_reason(tmp_path: Path) -> None:
    failed([*FEDAVG, "training.learning_rate=1e30"], tmp_path / "run")
    assert_all_void(tmp_path / "run", good=0)
    reasons = {line["reason"] for line in lines(tmp_path / "run", "clients.jsonl")}
    assert all(reason.endswith("finite") for reason in reasons)


def test_no_test_data_is_no_reason_to_fail(tmp_path: Path) -> None:
    """Flower's strategies divide by the number of test examples."""
    for strategy in (["strategy=fedavg"], ["strategy=stock", "strategy.class_name=FedMedian"]):
        words = [*REGRESSION, *strategy, "data.test_fraction=0.0", "rounds=2"]
        summary = run(words, tmp_path / "run")
        assert summary["status"] == "completed"
        assert summary["final"] == {"global": None, "personalised": None}
        assert summary["objective"] is not None


def test_data_that_cannot_be_had_leave_a_summary_that_says_so(tmp_path: Path) -> None:
    path = tmp_path / "run"
    words = ["data=table", "data.path=nowhere.csv", "data.target=y"]
    code = main([*words, f"hydra.run.dir={path}"])
    summary = json.loads((path / "summary.json").read_text())
    assert code == 2
    assert summary["status"] == "failed" and "nowhere.csv" in summary["reason"]
    assert json.loads((path / "config.json").read_text())["data"]["name"] == "table"


def test_without_validation_data_there_is_a_final_but_no_best_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run([*FEDAVG, "data.validation_fraction=0"], tmp_path / "run")
    assert summary["best"] == {"global": None, "personalised": None, "round": None}
    assert summary["final"]["global"]["mse"]["mean"] > 0
    assert "final round" in capsys.readouterr().out
    assert main(["stopping.patience=2", "data.validation_fraction=0"]) == 2
    assert capsys.readouterr().err.startswith(
        "fedmoe: error: stopping.patience and stopping.target"
    )


def test_a_file_that_changed_between_two_runs_is_read_again(tmp_path: Path) -> None:
    table, errors = tmp_path / "mine.csv", []
    words = ["data=table", f"data.path={table}", "data.target=y", "partition=iid",
             "partition.num_clients=2", "model=linear", "rounds=1"]  # fmt: skip
    for slope in (1.0, 9.0):
        rows = [f"{x / 10},{slope * x / 10}" for x in range(60)]
        table.write_text("x,y\n" + "\n".join(rows) + "\n")
        summary = run(words, tmp_path / f"run{slope}")
        errors.append(summary["final"]["global"]["mse"]["mean"])
    assert errors[1] > 5 * errors[0]


@pytest.mark.parametrize("option", ["min_train_nodes", "min_available_nodes", "min_evaluate_nodes"])
def test_a_strategy_that_would_wait_for_ever_is_refused(option: str, tmp_path: Path) -> None:
    words = [
        *FEDAVG,
        "strategy=stock",
        "strategy.class_name=FedAvg",
        f"strategy.options.{option}=6",
    ]
    with pytest.raises(RunError, match=f"{option} is 6, but 5 are connected"):
        run(words, tmp_path / "run")


def test_clients_that_a_strategy_did_not_ask_are_missing_from_the_scores(tmp_path: Path) -> None:
    words = [*FEDAVG, "strategy=stock", "strategy.class_name=FedAvg",
             "strategy.options.fraction_evaluate=0.4"]  # fmt: skip
    assert run(words, tmp_path / "run")["missing"] == 3


def test_the_log_file_tells_the_story_of_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run([*FEDAVG, "rounds=2", "tracking.log_level=INFO"], tmp_path / "run")
    story = [line.split(" - ")[1:] for line in (tmp_path / "run/run.log").read_text().splitlines()]
    assert [name for name, *_ in story] == [
        "fedmoe.run.FederationRun", "fedmoe.rounds.RoundLoop", "fedmoe.rounds.RoundLoop",
        "fedmoe.run.FederationRun", "fedmoe.run.FederationRun",
    ]  # fmt: skip
    assert story[1][-1] == "round 1: 5 clients trained, 0 failed"
    assert story[-1][-1] == "completed after round 2"
    assert "clients trained" not in capsys.readouterr().err  # the console has its own lines


def test_a_run_cannot_be_resumed_to_end_before_where_it_is(tmp_path: Path) -> None:
    run([*FEDAVG, "rounds=3"], tmp_path / "run")
    assert main([f"resume={tmp_path / 'run'}", "rounds=2"]) == 2
    assert json.loads((tmp_path / "run" / "config.json").read_text())["rounds"] == 3
