"""The command: runs, goes on, and writes what it says."""

import io
import os
from pathlib import Path

import pytest
from rich.console import Console
from study_fakes import execute, execute_or_fail, forbidden

from benchmarks.regimes import main, plan_of, read_options
from benchmarks.study.command import INTERRUPTED
from benchmarks.study.methods import METHODS
from benchmarks.study.runs import FIRST_TUNING_SEED
from benchmarks.study.settings import SETTINGS
from benchmarks.study.showing import Display


@pytest.fixture(autouse=True)
def _no_keys_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FED_MOE_")]:
        monkeypatch.delenv(name)


def words(folder: Path, *more: str) -> list[str]:
    return [
        "--settings", "permuted", "iid", "--methods", "local", "ifca", "fedmoe", "fedmoe_random",
        "--seeds", "2", "--workers", "1", "--out", str(folder / "out"),
        "--records", str(folder / "records.jsonl"), *more,
    ]  # fmt: skip


def test_the_same_command_goes_on_and_writes_the_same(tmp_path: Path) -> None:
    assert main(words(tmp_path), execute) == 0
    out = tmp_path / "out"
    pages = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(pages) == {
        "regimes.md", "regimes_details.md", "regimes.png", "regimes_bytes.png",
    }  # fmt: skip
    # Three tuned methods of six configurations and four methods of two seeds, in two settings.
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 2 * (3 * 6 + 4 * 2)
    assert main(words(tmp_path), forbidden) == 0
    for name in ("regimes.md", "regimes_details.md"):
        assert (out / name).read_bytes() == pages[name]
    text = pages["regimes.md"].decode()
    assert "python benchmarks/regimes.py --settings permuted iid" in text
    assert "6 configurations of each method in each setting, seed 100" in text
    assert "fedmoe 0.1.0" in text
    assert "| *fedmoe_random* |" in text
    assert "*fedmoe_random*: fedmoe whose router" in text
    assert "## permuted" in pages["regimes_details.md"].decode()


def test_an_interrupted_study_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = words(tmp_path, "--seeds", "4")
    assert main(more, execute_or_fail) == INTERRUPTED
    assert "goes on from here" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(more, execute) == 0


def test_the_whole_study_is_the_default() -> None:
    plan = plan_of(read_options([]))
    assert list(plan.settings) == list(SETTINGS)
    assert list(plan.methods) == list(METHODS)
    assert len(plan.seeds) == 5
    assert list(plan.tuning_seeds) == [FIRST_TUNING_SEED]
    assert read_options([]).out == Path("docs/results")


def test_quick_writes_elsewhere_and_can_be_changed() -> None:
    options = read_options(["--quick", "--tuning-seeds", "2", "--methods", "ifca"])
    plan = plan_of(options)
    assert options.out == Path("runs/regimes")
    assert list(plan.tuning_seeds) == [FIRST_TUNING_SEED, FIRST_TUNING_SEED + 1]
    assert (plan.methods, plan.configurations, plan.extra) == (["ifca"], 2, ("rounds=20",))


@pytest.mark.parametrize(
    "wrong", [["--seeds", "0"], ["--settings", "nowhere"], ["--methods", "nobody"]]
)
def test_a_wrong_word_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(wrong)
    assert wrong[0] in capsys.readouterr().err


def test_keys_in_the_environment_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FED_MOE_ROUNDS", "3")
    with pytest.raises(SystemExit):
        read_options([])
    assert "FED_MOE_ROUNDS is set" in capsys.readouterr().err


def test_progress_without_a_terminal_is_some_lines() -> None:
    stream = io.StringIO()
    with Display(Console(file=stream, width=100), total=400, done=100) as display:
        for _ in range(100):
            display.advance()
        display.phase("table", 300)
        for _ in range(100):
            display.advance()
    lines = stream.getvalue().splitlines()
    assert [line.partition(" ")[0] for line in lines] == [
        str(number) for number in (*range(120, 201, 20), *range(320, 401, 20))
    ]
    assert all("min left" in line for line in lines)
