"""The published first trial on the synthetic clients, and ours with its settings.

Its figures are means and deviations over three seeds of an independent NumPy program: 40 clients,
50 features, three components, 100 rounds of one full-batch step each at a logistic learning rate
of 1.0 (0.5 for two logits), as many components or clusters as there are, nothing tuned.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.study.comparison import Spread
from benchmarks.study.methods import Words
from benchmarks.study.outcomes import Outcome, Records
from benchmarks.study.runs import Plan, Run

SEEDS = tuple(range(20))
_TRAINING = ("training.epochs=1", "training.learning_rate=0.5", "evaluate_every=${rounds}")
_METHODS: dict[str, Words] = {
    "local": (),
    "fedavg": (),
    "ifca": ("strategy.num_clusters=3", "strategy.restarts=1"),
    "fedem": ("strategy.num_components=3",),
}
REFERENCE: dict[str, dict[str, Spread]] = {
    "mixture": {
        "local": Spread(0.697, 0.012), "fedavg": Spread(0.684, 0.007),
        "ifca": Spread(0.766, 0.020), "fedem": Spread(0.796, 0.020),
    },
    "clustered": {
        "local": Spread(0.824, 0.005), "fedavg": Spread(0.675, 0.005),
        "ifca": Spread(0.955, 0.009), "fedem": Spread(0.906, 0.060),
    },
    "revealed": {
        "local": Spread(0.675, 0.010), "fedavg": Spread(0.670, 0.010),
        "ifca": Spread(0.667, 0.004), "fedem": Spread(0.753, 0.019),
    },
    "near_iid": {
        "local": Spread(0.600, 0.002), "fedavg": Spread(0.683, 0.007),
        "ifca": Spread(0.677, 0.006), "fedem": Spread(0.675, 0.007),
    },
}  # fmt: skip


class Agreement(NamedTuple):
    """A published figure and ours.

    Attributes:
        setting, method: the cell.
        published: mean and deviation over its seeds.
        ours: mean and deviation over ours.
    """

    setting: str
    method: str
    published: Spread
    ours: Spread

    @property
    def deviations(self) -> float:
        """How far apart the means are, in deviations of the two taken together."""
        return (self.ours.mean - self.published.mean) / math.hypot(
            self.ours.std, self.published.std
        )

    @property
    def published_deviations(self) -> float:
        """The same in the published deviation alone."""
        return (self.ours.mean - self.published.mean) / self.published.std


def runs_of(plan: Plan, seeds: Sequence[int] = SEEDS) -> dict[tuple[str, str], list[Run]]:
    """The runs of each cell whose setting is in the plan, a run for each seed."""
    return {
        (setting, method): [plan.run(setting, method, (*own, *_TRAINING), seed) for seed in seeds]
        for setting in plan.settings
        if seeds and setting in REFERENCE
        for method, own in _METHODS.items()
    }


def agreements(plan: Plan, records: Records, seeds: Sequence[int] = SEEDS) -> list[Agreement]:
    """Every published figure with ours; without cells of which a run failed."""
    found = []
    for (setting, method), runs in runs_of(plan, seeds).items():
        outcomes: list[Outcome] = records.of(runs)
        scores = [outcome.own for outcome in outcomes]
        means = [score.mean for score in scores if score]
        if len(means) == len(scores):
            published = REFERENCE[setting][method]
            found.append(Agreement(setting, method, published, Spread.of(means)))
    return found
