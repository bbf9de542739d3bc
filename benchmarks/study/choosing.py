"""Choosing configurations: by validation data of the tuning seeds, never by test data."""

import math
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
    """The configuration with the highest mean validation accuracy.

    Among equals, which are many where there are few samples, the one with the lowest mean
    validation loss; then the first. One of which a run failed is worse than any of which none did.
    """

    def worth(configuration: Words) -> tuple[int, float, float]:
        outcomes = tried[configuration]
        accuracies = [one.validation for one in outcomes if one.validation is not None]
        losses = [math.inf if one.validation_loss is None else one.validation_loss
                  for one in outcomes]  # fmt: skip
        accuracy = fmean(accuracies) if accuracies else 0.0
        return len(accuracies) - len(outcomes), accuracy, -fmean(losses)

    return max(tried, key=worth)
