"""Runs are done once, kept at once, and what is kept is what the run's files say."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from study_fakes import execute, execute_or_fail, forbidden, outcome

from benchmarks.study.execution import (
    execute_run,
    outcome_of,
    own_loss,
    run_all,
    scores_of,
    training_traffic,
)
from benchmarks.study.outcomes import Outcome, Records, Score
from benchmarks.study.runs import Plan, Run

PLAN = Plan(settings=("iid",), methods=("local",), seeds=range(5), tuning_seeds=(100,))
RUNS = [PLAN.run("iid", "local", ("training.learning_rate=0.5",), seed) for seed in range(5)]


def run_all_of(runs: list[Run], records: Records, execute_one: object = execute) -> int:
    done: list[int] = []
    run_all(runs, records, 1, lambda: done.append(1), execute_one)  # type: ignore[arg-type]
    return len(done)


def test_only_what_is_missing_is_run(tmp_path: Path) -> None:
    path = tmp_path / "new" / "records.jsonl"
    records = Records(path)
    assert run_all_of([RUNS[0], RUNS[1], RUNS[0]], records) == 2
    assert records[RUNS[1]] == execute(RUNS[1].words)
    again = Records(path)
    assert all(run in again for run in RUNS[:2])
    assert RUNS[2] not in again
    assert again.of(RUNS[:2]) == [execute(run.words) for run in RUNS[:2]]
    assert run_all_of(RUNS[:2], again, forbidden) == 0
    assert run_all_of(RUNS[:3], again) == 1
    assert len(path.read_text().splitlines()) == 3


def test_what_had_finished_before_an_interrupt_is_kept(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    with pytest.raises(KeyboardInterrupt):
        run_all_of(RUNS, records, execute_or_fail)
    kept = Records(records.path)
    assert RUNS[3] not in kept
    assert all(kept[run] == execute(run.words) for run in RUNS[:3] if run in kept)


def test_other_code_runs_all_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(tmp_path / "records.jsonl")
    records.add(RUNS[0], outcome(0.5))
    assert RUNS[0] in records
    monkeypatch.setattr("benchmarks.study.runs.code_version", lambda: "another")
    assert RUNS[0] not in records
    assert RUNS[0] not in Records(records.path)


def test_a_line_that_was_cut_off_is_run_again(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    for run in RUNS[:2]:
        records.add(run, outcome(0.5))
    records.path.write_text(records.path.read_text()[:-20])
    again = Records(records.path)
    assert (RUNS[0] in again, RUNS[1] in again) == (True, False)
    again.add(RUNS[1], outcome(0.6))
    assert Records(records.path).of(RUNS[:2]) == [outcome(0.5), outcome(0.6)]


def test_outcomes_survive_json() -> None:
    whole = replace(outcome(0.7, alive=[0.5, 0.5]), best_round=None)
    for one in (whole, Outcome.failed("diverged", 2.0)):
        assert Outcome.from_json(json.loads(json.dumps(asdict(one)))) == one


def test_alive_experts_are_those_that_are_not_dead() -> None:
    assert outcome(0.5, alive=[0.9, 0.1, 0.0], dead=1).alive == 2
    assert outcome(0.5).alive is None
    unknown = replace(outcome(0.5), routing={"load": None, "dead_experts": None})
    assert unknown.alive is None


SMALL = [
    "+experiment=regimes/clustered", "data.num_clients=4", "data.samples_per_client=40",
    "rounds=4", "evaluate_every=2", "training.epochs=1", "tracking.plots=false",
    "tracking.progress=none", "tracking.log_level=ERROR",
]  # fmt: skip


def test_what_is_kept_of_a_real_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = execute_run([*SMALL, "strategy=fedavg_finetune"])
    assert found is not None
    assert capsys.readouterr().out == ""
    assert found.reason is None
    assert set(found.last) == {"global", "personalised"}
    assert found.own == found.last["personalised"]
    assert [point.round for point in found.course] == [2, 4]
    assert found.course[-1].test == found.last["personalised"].mean
    assert found.course[-1].validation == found.validation
    assert found.validation_loss is not None
    assert 0 < found.validation_loss < 2
    assert found.course[1].bytes == pytest.approx(4 * (found.up + found.down))
    # 2 x 50 weights and 2 biases, in four bytes each, and what is said besides.
    assert 408 < found.down < 1000
    assert 408 < found.up < 1000
    assert found.best_round in (2, 4)


def test_a_run_that_fails_is_an_outcome() -> None:
    found = execute_run([*SMALL, "strategy=fedavg", "partition.min_samples=50"])
    assert found is not None
    assert found.own is None
    assert "min_samples" in (found.reason or "")


def line(number: int, traffic: tuple[int, int], accuracy: float | None) -> dict[str, Any]:
    scores = None if accuracy is None else {
        "global": None,
        "personalised": {"accuracy": {"mean": accuracy, "worst_decile": 0.1, "std": 0.2}},
    }  # fmt: skip
    up, down = traffic
    return {"round": number, "bytes": {"up": up, "down": down}, "test": scores,
            "validation": scores}  # fmt: skip


def test_training_traffic_leaves_evaluation_out() -> None:
    lines = [line(1, (9, 90), 0.1), line(2, (3, 5), None), line(3, (4, 6), None),
             line(4, (9, 90), 0.2)]  # fmt: skip
    assert training_traffic(lines) == [(3, 5), (3, 5), (4, 6), (4, 6)]
    every = [line(1, (9, 90), 0.1), line(2, (8, 80), 0.1)]
    assert training_traffic(every) == [(9, 90), (9, 90)]


def summary_of(lines: list[dict[str, Any]], missing: int = 0) -> dict[str, Any]:
    return {
        "data": {"clients": 2},
        "final": lines[-1]["test"],
        "missing": missing,
        "best": {**(lines[-1]["test"] or {}), "round": 2},
    }


def test_bytes_are_those_of_a_client() -> None:
    lines = [line(1, (2, 4), None), line(2, (20, 40), 0.5)]
    found = outcome_of(summary_of(lines), lines, 1.0)
    assert (found.up, found.down) == (1, 2)
    assert found.course == [(2, 6.0, 0.5, 0.5)]


def test_scores_without_all_clients_or_that_are_no_numbers_are_failures() -> None:
    lines = [line(1, (2, 4), 0.5)]
    assert "2 clients" in (outcome_of(summary_of(lines, missing=2), lines, 1.0).reason or "")
    lines = [line(1, (2, 4), 0.5), line(2, (2, 4), float("nan"))]
    assert "finite" in (outcome_of(summary_of(lines), lines, 1.0).reason or "")


def test_loss_is_that_of_the_same_model() -> None:
    both = {"global": {"loss": {"mean": 1.0}}, "personalised": {"loss": {"mean": 2.0}}}
    assert own_loss(both) == 2.0
    assert own_loss({**both, "personalised": None}) == 1.0
    assert own_loss({"global": {"loss": {"mean": float("nan")}}}) is None


def test_a_model_without_numbers_has_no_score() -> None:
    error = {"mean": 1.0, "worst_decile": 3.0, "std": 0.5}
    scores = {"global": None, "personalised": {"mse": error, "loss": {"mean": 7.0}}}
    assert scores_of(scores) == {"personalised": Score(1.0, 3.0, 0.5)}
    assert scores_of({"global": {"loss": {"mean": 7.0}}}) == {}
    bad = {"accuracy": {"mean": None, "worst_decile": None, "std": None}}
    assert scores_of({"global": bad}) == {}
