"""Who is compared, and what is tuned of each: as many configurations for everybody."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.study.settings import Family

OURS = "fedmoe"
# A method without a main parameter of its own gets six rates, another three of them for each of
# two values of its own. Images are learnt with momentum, with which larger steps diverge.
_IMAGE_RATES = (0.03, 0.1, 0.2, 0.3, 0.5, 0.8)
RATES: dict[Family, tuple[float, ...]] = {
    "synthetic": (0.05, 0.15, 0.3, 0.5, 1.0, 1.5),
    "digits": _IMAGE_RATES,
    "mnist5k": _IMAGE_RATES,
}
FEW_RATES: dict[Family, tuple[float, ...]] = {
    "synthetic": (0.15, 0.5, 1.5),
    "digits": (0.1, 0.3, 0.5),
    "mnist5k": (0.1, 0.3, 0.5),
}
Words = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to train the clients.

    Attributes:
        name: in tables and on the command line.
        role: `strategy`; `ours`; or `control`, which is no rival and only explains.
        words: of fedmoe's command line, in every setting.
        by_family: further words that depend on the data.
        own: the values of its main parameter, as words; at most one of them is in a run.
        fixed: the one configuration of a method that is not tuned.
        rates: learning rates to choose from, by family, where they are not those of all methods.
        like: a method whose configuration it takes over, instead of being tuned.
    """

    name: str
    role: Literal["strategy", "ours", "control"] = "strategy"
    words: Words
    by_family: Mapping[Family, Words] = field(default_factory=dict)
    own: Words = ()
    fixed: Words = ()
    rates: Mapping[Family, Sequence[float]] = field(default_factory=dict)
    like: str | None = None

    @property
    def is_tuned(self) -> bool:
        """Whether its configuration is chosen on validation data."""
        return not self.fixed and self.like is None

    def words_for(self, family: Family) -> Words:
        """What it is, apart from what is tuned."""
        return (*self.words, *self.by_family.get(family, ()))

    def configurations(self, family: Family) -> list[Words]:
        """What it may be run with, the same number for each method that is tuned."""
        if not self.is_tuned:
            return [self.fixed] if self.fixed else []
        rates = self.rates.get(family, (FEW_RATES if self.own else RATES)[family])
        values: list[Words] = [(one,) for one in self.own] or [()]
        return [(f"training.learning_rate={rate}", *own) for own in values for rate in rates]


def _strategy(name: str, key: str = "", values: tuple[float, ...] = (), *more: str) -> Method:
    own = tuple(f"{key}={value}" for value in values)
    return Method(name=name, words=(f"strategy={name}", *more), own=own)


# Experts of a mixture that is configured as such are models as the setting has them.
_EXPERTS: dict[Family, Words] = {
    "synthetic": ("model.hidden=[]",),
    "digits": ("model.hidden=[32]",),
    "mnist5k": ("model.hidden=[32]",),
}
# About as many parameters as four of the setting's models: 638 to 408 and a gate of 204 for
# linear ones, 9,610 to 9,640 for digits, 101,770 to 101,800 for MNIST.
_WIDE: dict[Family, Words] = {
    "synthetic": ("model=mlp", "model.hidden=[12]"),
    "digits": ("model.hidden=[128]",),
    "mnist5k": ("model.hidden=[128]",),
}
# Four models travel where FedAvg's is one, each round: as many bytes in four times the rounds.
_LONG: dict[Family, Words] = {
    "synthetic": ("rounds=400", "evaluate_every=20"),
    "digits": ("rounds=400", "evaluate_every=20"),
    "mnist5k": ("rounds=200", "evaluate_every=20"),
}

_ALL = [
    _strategy("local"),
    _strategy("fedavg"),
    _strategy("fedavg_finetune", "strategy.finetune_epochs", (1, 20)),
    _strategy("fedprox", "strategy.proximal_mu", (0.01, 0.1)),
    _strategy("fedadam", "strategy.eta", (0.01, 0.03)),
    _strategy(
        "ditto", "strategy.proximal_lambda", (0.03, 0.3),
        "strategy.personal_epochs=${training.epochs}",
    ),
    _strategy("fedrep", "strategy.head_epochs", (5, 10)),
    _strategy("fedproto", "strategy.prototype_lambda", (0.1, 1.0)),
    _strategy("insight", "meta_learner.prototypes.strength", (0.5, 2.0)),
    _strategy("local_global"),
    Method(
        name="fedavg_moe",
        words=(
            "strategy=fedavg", "model=moe", "model/router=softmax", "model.combine=probabilities",
            "model.router.top_k=${model.num_experts}", "model.losses.importance=0",
        ),
        by_family=_EXPERTS, own=("model.num_experts=3", "model.num_experts=4"),
    ),
    _strategy("fedem", "strategy.num_components", (3, 4)),
    _strategy("ifca", "strategy.num_clusters", (3, 4)),
    Method(name=OURS, role="ours", words=("strategy=fedmoe",)),
    Method(
        name="fedmoe_untuned", role="control", words=("strategy=fedmoe",),
        fixed=("training.learning_rate=0.5",),
    ),
    Method(
        name="fedmoe_random", role="control", like=OURS,
        words=(
            "strategy=fedmoe", "strategy.gate=shared", "model=moe", "model/router=rule",
            "model.router.rule=random", "model.combine=probabilities",
        ),
        by_family=_EXPERTS,
    ),
    Method(name="fedavg_wide", role="control", words=("strategy=fedavg",), by_family=_WIDE),
    Method(
        name="fedavg_long", role="control", like="fedavg", words=("strategy=fedavg",),
        by_family=_LONG,
    ),
]  # fmt: skip
METHODS = {method.name: method for method in _ALL}
# What each control is there for, for the reader of the tables.
CONTROLS = {
    "fedmoe_untuned": "fedmoe at one learning rate, 0.5, in every setting: nothing is tuned",
    "fedmoe_random": "fedmoe whose router chooses at random (random routing)",
    "fedavg_wide": "fedavg with as many parameters as fedmoe's four experts (equal parameters)",
    "fedavg_long": "fedavg in four times the rounds: as many bytes as fedmoe (equal bytes)",
}
