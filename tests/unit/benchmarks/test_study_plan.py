"""What is run: the same number of configurations for everybody, and words that fedmoe knows."""

from collections import Counter

import pytest

from benchmarks.study.methods import CONTROLS, METHODS, OURS
from benchmarks.study.runs import FIRST_TUNING_SEED, Plan
from benchmarks.study.settings import FAMILIES, SETTINGS
from fedmoe.clients import load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.schema import ExperimentConfig, StrategyConfig

WHOLE = Plan(
    settings=tuple(SETTINGS), methods=tuple(METHODS), seeds=range(5),
    tuning_seeds=(FIRST_TUNING_SEED,),
)  # fmt: skip
FIRST = {family: next(s for s in SETTINGS if SETTINGS[s].family == family) for family in FAMILIES}


def test_every_tuned_method_tries_as_many_configurations() -> None:
    budget = {
        (setting, name): len(WHOLE.candidates(setting, name))
        for setting in SETTINGS
        for name in WHOLE.tuned
    }
    assert set(budget.values()) == {6}
    assert {name for name in METHODS if METHODS[name].role != "control"} <= set(WHOLE.tuned)
    counts = Counter((run.setting, run.method) for run in WHOLE.tuning_runs())
    assert counts == budget


def test_all_strategies_of_fedmoe_are_there() -> None:
    known = {
        cls.__dataclass_fields__["name"].type.__args__[0]
        for cls in StrategyConfig.__args__[0].__args__
    }
    used = {
        word.partition("=")[2]
        for method in METHODS.values()
        for word in method.words
        if word.startswith("strategy=")
    }
    # Of the rules by which a server steps along the mean change one stands for all.
    assert used == known - {"stock", "custom", "reptile", "fedyogi", "fedadagrad"}


def test_configurations_are_distinct() -> None:
    for method in METHODS.values():
        configurations = method.configurations("digits")
        assert len(set(configurations)) == len(configurations)


def test_fewer_candidates_are_taken_evenly() -> None:
    few = Plan(settings=("iid",), methods=("ifca",), seeds=(0,), tuning_seeds=(100,),
               configurations=2)  # fmt: skip
    assert few.candidates("iid", "ifca") == [
        ("training.learning_rate=0.3", "strategy.num_clusters=3"),
        ("training.learning_rate=0.3", "strategy.num_clusters=4"),
    ]
    assert few.candidates("iid", "fedavg") == [
        ("training.learning_rate=0.1",),
        ("training.learning_rate=0.5",),
    ]


def test_the_table_is_of_other_seeds_than_the_tuning() -> None:
    chosen = {(s, m): WHOLE.candidates(s, m)[0] for s in SETTINGS for m in WHOLE.tuned}
    table, tuning = WHOLE.table_runs(chosen), WHOLE.tuning_runs()
    seeds = [{word for run in runs for word in run.words if word.startswith("seed=")}
             for runs in (table, tuning)]  # fmt: skip
    assert not seeds[0] & seeds[1]
    assert len(table) == len(SETTINGS) * len(METHODS) * 5
    assert all(run.configuration in WHOLE.candidates(run.setting, run.method)
               for run in table if METHODS[run.method].is_tuned)  # fmt: skip


def test_controls_take_over_or_keep_their_configuration() -> None:
    chosen = {("iid", "fedavg"): ("a",), ("iid", OURS): ("b",), ("iid", "fedavg_wide"): ("c",)}
    found = {name: WHOLE.configuration_of("iid", name, chosen) for name in CONTROLS}
    assert found == {
        "fedmoe_untuned": ("training.learning_rate=0.5",), "fedmoe_random": ("b",),
        "fedavg_wide": ("c",), "fedavg_long": ("a",),
    }  # fmt: skip
    assert set(CONTROLS) == {name for name, m in METHODS.items() if m.role == "control"}


def config_of(setting: str, method: str, number: int = 0) -> ExperimentConfig:
    family = SETTINGS[setting].family
    configurations = METHODS[method].configurations(family) or [("training.learning_rate=0.5",)]
    chosen = configurations[number % len(configurations)]
    return load_config(WHOLE.run(setting, method, chosen, 3).words)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_understood(method: str) -> None:
    families = METHODS[method].by_family or {"digits": ()}
    for number, family in enumerate(families):
        config = config_of(FIRST[family], method, -number)
        assert config.seed == 3
        assert config.training.batch_size >= 400
        assert config.tracking.plots is False


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_is_understood(setting: str) -> None:
    config = config_of(setting, "ditto")
    assert config.name == f"{setting.partition('=')[0]}-ditto"
    assert config.strategy.personal_epochs == config.training.epochs  # type: ignore[union-attr]
    if "=" in setting:
        assert config.partition.alpha == float(setting.partition("=")[2])  # type: ignore[union-attr]


@pytest.mark.parametrize("family", FAMILIES)
def test_controls_are_as_large_and_as_long_as_ours(family: str) -> None:
    def numbers(method: str) -> int:
        experiment = load_experiment(to_json(config_of(FIRST[family], method)))  # type: ignore[index]
        return sum(value.numel() for value in experiment.initial.values())

    ours = numbers(OURS)
    assert 0.95 <= numbers("fedavg_wide") / ours <= 1.05
    rounds = config_of(FIRST[family], "fedavg").rounds  # type: ignore[index]
    long = config_of(FIRST[family], "fedavg_long")  # type: ignore[index]
    assert long.rounds == 4 * rounds
    assert long.rounds % long.evaluate_every == 0


def test_a_key_stands_for_words_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [WHOLE.run("iid", "local", (), seed) for seed in (0, 1, 0)]
    assert runs[0].key == runs[2].key != runs[1].key
    before = runs[0].key
    monkeypatch.setattr("benchmarks.study.runs.code_version", lambda: "another")
    assert runs[0].key != before
