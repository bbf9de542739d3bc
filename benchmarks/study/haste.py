"""How many rounds a mixture of experts needs, with and without what insights tell of clients."""

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.study.outcomes import Records
from benchmarks.study.runs import QUIET, Run
from benchmarks.tables import Sheet

_EXPERIMENT = (
    "+experiment=regimes/permuted", "strategy=fedmoe", "training.learning_rate=0.5",
    "evaluate_every=1",
)  # fmt: skip
ROUNDS = 100  # of the experiment
_POLICIES = {
    "fedmoe": (),
    "with expert_assignment": ("meta_learner=expert_assignment",),
    "with expert_assignment and gaussians": (
        "meta_learner=[expert_assignment,gaussians]", "meta_learner.gaussians.strength=1",
    ),
}  # fmt: skip
_TARGETS = (0.90, 0.94, 0.95)


def haste_runs(seeds: Sequence[int]) -> dict[str, list[Run]]:
    """The runs of each row."""
    return {
        name: [
            Run(
                setting="permuted", method=name, configuration=(),
                words=(*_EXPERIMENT, *words, f"seed={seed}", *QUIET),
            )
            for seed in seeds
        ]
        for name, words in _POLICIES.items()
    }  # fmt: skip


def haste_sheet(runs: Mapping[str, Sequence[Run]], records: Records) -> Sheet:
    """Rounds until the clients' test accuracy first reached a target: medians, and each seed."""
    rows = []
    for name, own in runs.items():
        cells = []
        for target in _TARGETS:
            rounds = [_reached(run, records, target) for run in own]
            each = " ".join("-" if one > ROUNDS else str(one) for one in rounds)
            middle = median(rounds)
            cells.append(f"**{middle:g}** ({each})" if middle <= ROUNDS else f"**-** ({each})")
        rows.append([name, *cells])
    return Sheet("", ["", *(f"rounds to {target:.2f}" for target in _TARGETS)], rows)


def _reached(run: Run, records: Records, target: float) -> int:
    good = (point.round for point in records[run].course if point.test >= target)
    return next(good, ROUNDS + 1)
