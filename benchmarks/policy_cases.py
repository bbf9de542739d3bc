"""What is run to see what the policies save: experiments, their targets, and the policies."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.study.outcomes import Outcome
from benchmarks.study.runs import Run

NO_POLICY = "no policy"
_QUIET = (
    "tracking.progress=none", "tracking.plots=false", "tracking.checkpoint_every=0",
    "tracking.log_level=ERROR", "training.device=cpu", "evaluate_every=1",
)  # fmt: skip
_RATE_POLICIES = {
    NO_POLICY: (),
    "step_size": ("meta_learner=step_size",),
    "hyperparameters": ("meta_learner=hyperparameters",),
    "hyperparameters, none larger": (
        "meta_learner=hyperparameters",
        "meta_learner.hyperparameters.learning_rates=[0.1,0.3,1.0]",
    ),
}
_SELECTIONS = {
    NO_POLICY: (),
    "oort": ("meta_learner=selection",),
    "power_of_choice": ("meta_learner=selection", "meta_learner.selection.kind=power_of_choice"),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: what is run, and what is to be reached.

    Attributes:
        name: of the row.
        words: the experiment as fedmoe's command line says it.
        target: validation accuracy.
        rounds: at most.
        policies: words of each column.
    """

    name: str
    words: tuple[str, ...]
    target: float
    rounds: int
    policies: Mapping[str, tuple[str, ...]]

    def run(self, policy: str, seed: int) -> Run:
        """One run of a cell."""
        more = (f"rounds={self.rounds}", f"stopping.target={self.target}", f"seed={seed}")
        words = (*self.words, *self.policies[policy], *more, *_QUIET)
        return Run(setting=self.name, method=policy, configuration=(), words=words)

    def reached(self, outcome: Outcome) -> int:
        """The round in which a run reached the target, or one more than there are."""
        good = (point.round for point in outcome.course if point.validation >= self.target)
        return next(good, self.rounds + 1)


def _regime(name: str, *more: str) -> tuple[str, ...]:
    return (f"+experiment=regimes/{name}", "strategy=fedavg", *more)


_IID = _regime("iid")
_SKEWED = {a: _regime("dirichlet", f"partition.alpha={a}") for a in (0.05, 0.1, 0.5)}
_SYNTHETIC = _regime("near_iid")


def rate_cases() -> list[Case]:
    """Learning rates that are a tenth, once and ten times the default."""
    settings = [
        ("digits, iid", _IID, 0.85, 0.1),
        ("digits, Dirichlet 0.5", _SKEWED[0.5], 0.85, 0.1),
        ("digits, Dirichlet 0.1", _SKEWED[0.1], 0.80, 0.1),
        ("digits, permuted, `local`", (*_regime("permuted")[:1], "strategy=local"), 0.70, 0.1),
        ("synthetic, near iid", _SYNTHETIC, 0.65, 0.5),
    ]
    return [
        Case(
            name=f"{name}: {factor * usual:g}", target=target, rounds=60, policies=_RATE_POLICIES,
            words=(*words, f"training.learning_rate={factor * usual:g}"),
        )
        for name, words, target, usual in settings
        for factor in (0.1, 1.0, 10.0)
    ]  # fmt: skip


def selection_cases() -> list[Case]:
    """A tenth or a fifth of the clients in a round."""
    settings = [
        ("digits, iid", _IID, 0.85),
        ("digits, Dirichlet 0.5", _SKEWED[0.5], 0.85),
        ("digits, Dirichlet 0.1", _SKEWED[0.1], 0.80),
        ("digits, Dirichlet 0.05", _SKEWED[0.05], 0.75),
        ("digits, permuted, `ifca`", (*_regime("permuted")[:1], "strategy=ifca"), 0.70),
        ("synthetic, near iid", _SYNTHETIC, 0.65),
    ]
    return [
        Case(
            name=f"{name}: {share:g}", target=target, rounds=100, policies=_SELECTIONS,
            words=(*words, "training.learning_rate=0.1", f"strategy.fraction_train={share:g}"),
        )
        for name, words, target in settings
        for share in (0.1, 0.2)
    ]  # fmt: skip
