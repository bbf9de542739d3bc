import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federation_runs import RUNS, all_lines, assert_same_checkpoint, lines, resume, run
from flwr.serverapp.strategy import FedAvgM

import fedmoe.run
from fedmoe.errors import RunError
from fedmoe.messages.arrays import to_record
from fedmoe.simulate import main
from fedmoe.strategies.state import restore_strategy, strategy_state
from fedmoe.tracking import load_checkpoint

KEPT = ("status", "rounds", "final", "best", "objective", "bytes", "data", "seed")


def summary(path: Path) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return whole


def cut(
    words: list[str], path: Path, monkeypatch: pytest.MonkeyPatch, *more: str, after: int
) -> None:
    """A run that is interrupted once round `after` is recorded, before its checkpoint."""

    class Cutting:
        def update(self, metrics: dict[str, Any]) -> None:
            if metrics["round"] == after:
                raise KeyboardInterrupt

    @contextmanager
    def open_progress(*arguments: object) -> Iterator[Cutting]:
        yield Cutting()

    with monkeypatch.context() as patch:
        patch.setattr(fedmoe.run, "open_progress", open_progress)
        with pytest.raises(KeyboardInterrupt):
            run(words, path, *more)
    assert summary(path)["status"] == "interrupted"
    assert lines(path, "metrics.jsonl")[-1]["round"] == after


def assert_same_run(one: Path, other: Path) -> None:
    assert all_lines(one) == all_lines(other)
    assert {k: summary(one)[k] for k in KEPT} == {k: summary(other)[k] for k in KEPT}
    assert_same_checkpoint(one, other)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Six rounds of FedAvg in one go."""
    run(RUNS["fedavg"], tmp_path / "whole", "rounds=6")
    return tmp_path / "whole"


@pytest.mark.parametrize("name", RUNS)
def test_a_cut_run_ends_as_if_it_had_not_been_cut(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = RUNS[name]
    run(words, tmp_path / "whole", "rounds=6")
    more = ("rounds=6", "tracking.checkpoint_every=1")
    cut(words, tmp_path / "cut", monkeypatch, *more, after=4)
    assert load_checkpoint(tmp_path / "cut").round == 3  # and the records of round 4 are there
    resume(words, tmp_path / "cut", *more)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_lists_and_records_of_arrays_belong_to_a_strategys_state() -> None:
    """As in Flower's FedAvgM, whose `current_arrays` need not be the global model."""
    strategy = FedAvgM(server_momentum=0.5)
    strategy.current_arrays = to_record({"b/0": np.ones(2), "a": np.zeros((), np.float32)})
    strategy.momentum_vector = [np.full(2, index, np.float32) for index in range(12)]
    arrays, values = strategy_state(strategy)
    other = FedAvgM(server_momentum=0.5)
    restore_strategy(other, arrays, json.loads(json.dumps(values)))
    assert other.current_arrays == strategy.current_arrays
    assert list(other.current_arrays or ()) == ["b/0", "a"]
    assert [array.tolist() for array in other.momentum_vector or ()] == [
        [float(index)] * 2 for index in range(12)
    ]


def test_rounds_since_the_last_checkpoint_are_made_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("rounds=6", "tracking.checkpoint_every=2")
    cut(RUNS["fedavg"], tmp_path / "cut", monkeypatch, *more, after=4)
    assert load_checkpoint(tmp_path / "cut").round == 2
    cut_again = tmp_path / "cut"
    resume(RUNS["fedavg"], cut_again, *more)
    assert_same_run(cut_again, whole)


def test_a_run_may_be_cut_and_continued_again_and_again(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*RUNS["fedavg"], "tracking.checkpoint_every=1"]
    run(words, tmp_path / "cut", "rounds=1")
    for rounds in (2, 3, 5, 6):
        resume(words, tmp_path / "cut", f"rounds={rounds}")
    assert_same_run(tmp_path / "cut", whole)


def test_a_torn_last_line_does_no_harm(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("rounds=6", "tracking.checkpoint_every=1")
    cut(RUNS["fedavg"], tmp_path / "cut", monkeypatch, *more, after=4)
    for file in ("metrics.jsonl", "clients.jsonl"):
        with (tmp_path / "cut" / file).open("a") as stream:
            stream.write('{"round": 5, "to')
    resume(RUNS["fedavg"], tmp_path / "cut", *more)
    assert_same_run(tmp_path / "cut", whole)


@pytest.mark.parametrize("file", ["safetensors", "json"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    file: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("rounds=6", "tracking.checkpoint_every=1")
    cut(RUNS["fedavg"], tmp_path / "cut", monkeypatch, *more, after=5)
    newest = tmp_path / "cut" / "checkpoints" / f"round-00004.{file}"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    newest.write_bytes(content)
    assert load_checkpoint(tmp_path / "cut").round == 3
    resume(RUNS["fedavg"], tmp_path / "cut", *more)
    assert_same_run(tmp_path / "cut", whole)


def test_a_finished_run_is_left_as_it_is(whole: Path) -> None:
    before = all_lines(whole)
    again = resume(RUNS["fedavg"], whole, "rounds=6")
    assert all_lines(whole) == before
    assert {k: again[k] for k in KEPT} == {k: summary(whole)[k] for k in KEPT}
    assert again["status"] == "completed"


def test_a_resumed_run_is_judged_by_the_new_stopping_rule(tmp_path: Path) -> None:
    words = RUNS["insight"]
    run(words, tmp_path / "run", "rounds=3")
    more = ("rounds=9", "stopping.patience=2", "stopping.min_delta=1000000")
    again = resume(words, tmp_path / "run", *more)
    assert again["status"] == "stopped: no improvement in 2 evaluations"
    assert again["rounds"] == 5


def test_without_a_checkpoint_there_is_nothing_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(RUNS["fedavg"], tmp_path / "run", monkeypatch, "tracking.checkpoint_every=0", after=2)
    before = all_lines(tmp_path / "run")
    with pytest.raises(RunError, match=r"^no checkpoint in "):
        resume(RUNS["fedavg"], tmp_path / "run")
    assert all_lines(tmp_path / "run") == before
    assert summary(tmp_path / "run")["status"] == "interrupted"


# ------------------------------------------------------------------------ as a command


@pytest.fixture
def three_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run"
    assert main([*RUNS["fedavg"], "rounds=3", f"hydra.run.dir={path}"]) == 0
    return path


def test_more_rounds_by_command(
    three_rounds: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"resume={three_rounds.name}", "rounds=6"]) == 0  # a path from here
    assert_same_run(three_rounds, whole)
    assert json.loads((three_rounds / "config.json").read_text())["rounds"] == 6
    assert not list(tmp_path.glob("runs/*/*"))  # no second run directory
    assert "fedavg: completed after 6 rounds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "code", "reason"),
    [
        (["seed=1"], 2, "seed=1: cannot change when a run is resumed; allowed: rounds,"),
        (["training.epochs=9"], 2, "training.epochs=9: cannot change when a run is resumed"),
        (["strategy=local"], 2, "strategy=local: cannot change when a run is resumed"),
        (["resume=elsewhere"], 1, "elsewhere: not a run directory (no config.json)"),
        (["resume=."], 1, "not a run directory (no config.json)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_resumed_is_one_line(
    more: list[str], code: int, reason: str, three_rounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = all_lines(three_rounds), summary(three_rounds)
    capsys.readouterr()
    where = [] if more[0].startswith("resume") else [f"resume={three_rounds}"]
    assert main([*where, *more]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("fedmoe: error: ")
    assert reason in err
    assert (all_lines(three_rounds), summary(three_rounds)) == before


def test_a_folder_that_only_looks_like_a_run(
    three_rounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (three_rounds / "RUN").unlink()
    capsys.readouterr()
    assert main([f"resume={three_rounds}"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_damaged_checkpoints_are_one_line(
    three_rounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (three_rounds / "checkpoints").glob("*.safetensors"):
        path.write_bytes(b"")
    capsys.readouterr()
    assert main([f"resume={three_rounds}", "rounds=6"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedmoe: error: damaged checkpoint ")
