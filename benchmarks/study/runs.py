"""Which runs the study is made of."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path

from benchmarks.study.methods import METHODS, Method, Words
from benchmarks.study.settings import SETTINGS, Setting

FIRST_TUNING_SEED = 100  # those of the table begin with 0
# Nothing is shown or drawn, and only the last round leaves a checkpoint.
QUIET = (
    "tracking.progress=none", "tracking.plots=false", "tracking.checkpoint_every=0",
    "tracking.log_level=ERROR", "training.device=cpu",
)  # fmt: skip
_LAST_ROUND_ONLY = "evaluate_every=${rounds}"
Cell = tuple[str, str]  # setting and method


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of fedmoe.

    Attributes:
        setting, method: the cell that it is for.
        configuration: the tuned part of its words.
        words: all of it, as fedmoe's command line says it.
    """

    setting: str
    method: str
    configuration: Words
    words: Words

    @property
    def key(self) -> str:
        """Stands for the words and for the code that runs them."""
        return hashlib.sha256(json.dumps([code_version(), *self.words]).encode()).hexdigest()[:24]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be compared, and how thoroughly.

    Attributes:
        settings, methods: names.
        seeds: of the table; 0, 1, ...
        tuning_seeds: of the runs by which configurations are chosen.
        configurations: at most so many of each method are tried; `None` for all.
        extra: words that change every run.
        methods_by_name, settings_by_name: what the names stand for.
    """

    settings: Sequence[str]
    methods: Sequence[str]
    seeds: Sequence[int]
    tuning_seeds: Sequence[int]
    configurations: int | None = None
    extra: Words = ()
    methods_by_name: Mapping[str, Method] = field(default_factory=lambda: METHODS)
    settings_by_name: Mapping[str, Setting] = field(default_factory=lambda: SETTINGS)

    @property
    def tuned(self) -> list[str]:
        """The methods that need a choice, for their own sake or for a control's."""
        known = self.methods_by_name
        named = [known[name].like or name for name in self.methods]
        return [name for name in known if name in named and known[name].is_tuned]

    def candidates(self, setting: str, method: str) -> list[Words]:
        """The configurations to choose among, evenly from the method's list if not all."""
        family = self.settings_by_name[setting].family
        every = self.methods_by_name[method].configurations(family)
        if self.configurations is None or self.configurations >= len(every):
            return every
        step = len(every) / self.configurations
        return [every[int(step * (number + 0.5))] for number in range(self.configurations)]

    def tuning_runs(self) -> list[Run]:
        """Every configuration on the tuning seeds, judged in the last round alone."""
        return [
            self.run(setting, method, configuration, seed, (_LAST_ROUND_ONLY,))
            for setting in self.settings
            for method in self.tuned
            for configuration in self.candidates(setting, method)
            for seed in self.tuning_seeds
        ]

    def table_runs(self, chosen: Mapping[Cell, Words]) -> list[Run]:
        """Every method on the table's seeds, each as chosen for its setting."""
        return [
            self.run(setting, method, self.configuration_of(setting, method, chosen), seed)
            for setting in self.settings
            for method in self.methods
            for seed in self.seeds
        ]

    def configuration_of(self, setting: str, method: str, chosen: Mapping[Cell, Words]) -> Words:
        """What a method is run with in a setting: chosen, taken over, or fixed."""
        one = self.methods_by_name[method]
        return one.fixed or chosen[setting, one.like or method]

    def run(
        self, setting: str, method: str, configuration: Words, seed: int, more: Words = ()
    ) -> Run:
        """One run."""
        where = self.settings_by_name[setting]
        own = self.methods_by_name[method].words_for(where.family)
        words = (*where.words, *own, *configuration, f"seed={seed}", *QUIET)
        return Run(
            setting=setting, method=method, configuration=configuration,
            words=(*words, *self.extra, *more),
        )  # fmt: skip


def shuffled(runs: Sequence[Run]) -> list[Run]:
    """The same in an order in which the time left can be told from the time spent."""
    return random.Random(0).sample(list(runs), len(runs))


@cache
def code_version() -> str:
    """Stands for the package's source and for the libraries that do its arithmetic."""
    package = Path(__file__).parents[2] / "fedmoe"
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.suffix in (".py", ".yaml")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    digest.update(" ".join(version(name) for name in ("numpy", "torch", "scikit-learn")).encode())
    return digest.hexdigest()[:16]
