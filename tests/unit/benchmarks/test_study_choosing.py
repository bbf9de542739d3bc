"""Configurations are chosen by validation data of the tuning seeds, and by nothing else."""

import random
from pathlib import Path

import pytest
from study_fakes import outcome

from benchmarks.study.choosing import best, choose
from benchmarks.study.methods import Words
from benchmarks.study.outcomes import Outcome, Records
from benchmarks.study.runs import Plan

PLAN = Plan(
    settings=("clustered", "iid"), methods=("fedavg", "ditto", "fedmoe_random"), seeds=(0, 1),
    tuning_seeds=(100, 101, 102),
)  # fmt: skip


def test_choice_is_that_of_a_loop_over_validation_accuracies(tmp_path: Path) -> None:
    random_numbers, records = random.Random(0), Records(tmp_path / "records.jsonl")
    runs = PLAN.tuning_runs()
    for run in runs:
        validation = random_numbers.random()
        records.add(run, outcome(test=1 - validation, validation=validation))
    chosen = choose(runs, records)
    assert set(chosen) == {
        (s, m) for s in PLAN.settings for m in ("fedavg", "ditto", "fedmoe")
    }  # the random router takes over what is chosen for fedmoe, which has to be tuned for it
    for (setting, method), configuration in chosen.items():
        means = {}
        for tried in PLAN.candidates(setting, method):
            total = 0.0
            for run in runs:
                if (run.setting, run.method, run.configuration) == (setting, method, tried):
                    value = records[run].validation
                    assert value is not None
                    total += value
            means[tried] = total / 3
        assert means[configuration] == max(means.values())


def test_test_accuracy_decides_nothing() -> None:
    tried: dict[Words, list[Outcome]] = {
        ("a",): [outcome(test=0.99, validation=0.5)],
        ("b",): [outcome(test=0.10, validation=0.6)],
    }
    assert best(tried) == ("b",)


def test_it_is_the_mean_over_the_tuning_seeds() -> None:
    tried: dict[Words, list[Outcome]] = {
        ("a",): [outcome(0.9), outcome(0.2)],
        ("b",): [outcome(0.6), outcome(0.6)],
        ("c",): [outcome(0.3), outcome(0.7)],
    }
    assert best(tried) == ("b",)


def test_a_configuration_that_failed_once_is_worse_than_any_that_did_not() -> None:
    failed = Outcome.failed("diverged", 1.0)
    tried: dict[Words, list[Outcome]] = {
        ("fast",): [outcome(0.9), failed],
        ("worse",): [failed, failed],
        ("slow",): [outcome(0.2), outcome(0.2)],
    }
    assert best(tried) == ("slow",)
    del tried["slow",]
    assert best(tried) == ("fast",)
    del tried["fast",]
    assert best({**tried, ("two",): [failed, failed]}) == ("worse",)


@pytest.mark.parametrize("number", [1, 2])
def test_the_first_of_equals(number: int) -> None:
    tried: dict[Words, list[Outcome]] = {
        ("a",): [outcome(0.5)] * number,
        ("b",): [outcome(0.5)] * number,
    }
    assert best(tried) == ("a",)
