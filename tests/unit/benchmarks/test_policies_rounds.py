"""Rounds to a target: what counts, how sure it is, and the document."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from study_fakes import forbidden, outcome

from benchmarks import policies
from benchmarks.policies import cell, interval, main
from benchmarks.policy_cases import Case, rate_cases, selection_cases
from benchmarks.study.command import INTERRUPTED
from benchmarks.study.outcomes import Outcome, Point, Records
from benchmarks.study.runs import Run
from fedmoe.config import load_config

CASES = [*rate_cases(), *selection_cases()]


@pytest.fixture(autouse=True)
def _no_keys_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FED_MOE_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_a_configuration(case: Case) -> None:
    for policy in case.policies:
        config = load_config(case.run(policy, 3).words)
        assert (config.seed, config.rounds, config.evaluate_every) == (3, case.rounds, 1)
        assert config.stopping.target == case.target


def test_the_first_round_that_is_good_enough_counts() -> None:
    case = CASES[0]
    points = [Point(r, 0.0, v, 0.0) for r, v in ((1, 0.1), (2, 0.85), (3, 0.2), (4, 0.9))]
    reached = Outcome(last={}, best={}, up=0.0, down=0.0, course=points, seconds=0.0)
    assert case.reached(reached) == 2
    assert case.reached(Outcome.failed("void", 0.0)) == case.rounds + 1


def test_the_interval_is_that_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 200)
    low, high = interval(values.tolist())
    half = 1.96 * values.std() / np.sqrt(200)
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)
    assert interval([3, 3, 3]) == (3.0, 3.0)


@pytest.mark.parametrize(
    ("own", "without", "expected"),
    [
        ([3, 3], [9, 9], "**3.0** [3.0, 3.0]"),
        ([9, 9], [3, 3], "~~9.0~~ [9.0, 9.0]"),
        ([3, 3], [3, 3], "3.0 [3.0, 3.0]"),
        ([61, 61], [61, 61], "61.0 [61.0, 61.0], 0 of 2"),
    ],
)
def test_a_cell_is_marked_where_intervals_do_not_overlap(
    own: list[int], without: list[int], expected: str
) -> None:
    assert cell(own, without, 60) == expected


def execute(words: Sequence[str]) -> Outcome | None:
    return outcome(0.9, 0.9 if "meta_learner=step_size" in words else 0.3)


def interrupted(words: Sequence[str]) -> Outcome | None:
    return None


def test_the_same_command_goes_on_and_writes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serially(
        runs: Sequence[Run], records: Records, workers: int, on_done: Any, execute: Any
    ) -> None:
        for run in runs:
            if run not in records:
                found = execute(run.words)
                if found is None:
                    raise KeyboardInterrupt
                records.add(run, found)
                on_done()

    monkeypatch.setattr(policies, "run_all", serially)
    words = ["--quick", "--out", str(tmp_path), "--records", str(tmp_path / "records.jsonl")]
    assert main(words, interrupted) == INTERRUPTED
    assert main(words, execute) == 0
    text = (tmp_path / "policies.md").read_text()
    assert main(words, forbidden) == 0
    assert (tmp_path / "policies.md").read_text() == text
    assert "python benchmarks/policies.py --quick" in text
    assert "- `step_size`: better in 2 of 2, worse in 0" in text
    assert (
        "| digits, iid: 0.01 | 0.85 | 61.0 [61.0, 61.0], 0 of 3 | **10.0** [10.0, 10.0] |" in text
    )
