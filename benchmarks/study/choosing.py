"""Choosing configurations: by validation data of the tuning seeds, never by test data."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from benchmarks.study.methods import Words
from benchmarks.study.outcomes import Outcome, Records
from benchmarks.study.runs import Cell, Run


def choose(runs: Sequence[Run], records: Records) -> dict[Cell, Words]:
    """Each method's best configuration in each setting.

    Args:
        runs: the tuning runs, all finished.
        records: what came of them.
    """
    tried: dict[Cell, dict[Words, list[Outcome]]] = {}
    for run in runs:
        configurations = tried.setdefault((run.setting, run.method), {})
        configurations.setdefault(run.configuration, []).append(records[run])
    return {cell: best(configurations) for cell, configurations in tried.items()}


def best(tried: Mapping[Words, Sequence[Outcome]]) -> Words:
    """The configuration with the highest mean validation accuracy; the first of equals.

    One of which a run failed is worse than any of which none did.
    """

    def worth(configuration: Words) -> tuple[int, float]:
        accuracies = [outcome.validation for outcome in tried[configuration]]
        there = [accuracy for accuracy in accuracies if accuracy is not None]
        return len(there) - len(accuracies), fmean(there) if there else 0.0

    return max(tried, key=worth)
