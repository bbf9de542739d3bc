"""`load_config`, the layers it composes, and the JSON form."""

import json
import os
import subprocess
import sys
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.version import VersionBase
from hypothesis import given
from hypothesis import strategies as st

from fedmoe import schema
from fedmoe.config import from_json, load_config, to_json, validate
from fedmoe.configuration.words import PREFIX, quoted
from fedmoe.errors import ConfigError

CONF = Path(__file__).parents[2] / "fedmoe" / "conf"
OPTIONS = sorted(
    f"{path.parent.relative_to(CONF)}={path.stem}"
    for path in CONF.glob("*/**/*.yaml")
    if path.is_file()
)
# What an option leaves for the user to say.
REQUIRED = {
    **{option: ["model=moe"] for option in OPTIONS if option.startswith("model/router=")},
    "data=custom": ["data.factory=mine"],
    "model=custom": ["model.factory=mine"],
    "strategy=custom": ["strategy.factory=mine"],
    "strategy=stock": ["strategy.class_name=FedMedian"],
}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


def as_dict(config: schema.ExperimentConfig) -> dict[str, Any]:
    table = json.loads(to_json(config))
    assert isinstance(table, dict)
    return table


# --------------------------------------------------------------------- the YAML files


def test_the_primary_defaults_are_the_documented_ones() -> None:
    assert as_dict(load_config()) == {
        "name": "fedavg",
        "seed": 0,
        "rounds": 20,
        "evaluate_every": 1,
        "resume": None,
        "data": {
            "name": "digits",
            "on_missing": "error",
            "validation_fraction": 0.1,
            "test_fraction": 0.2,
        },
        "partition": {"name": "dirichlet", "num_clients": 20, "alpha": 0.3, "min_samples": 10},
        "model": {"name": "mlp", "hidden": [64]},
        "training": {
            "optimizer": "sgd",
            "learning_rate": 0.1,
            "momentum": 0.9,
            "weight_decay": 0.0,
            "epochs": 2,
            "batch_size": 32,
            "reset_optimizer": True,
            "cohort_size": 500,
            "num_threads": 1,
            "device": "auto",
        },
        "strategy": {"name": "fedavg", "fraction_train": 1.0},
        "insight": {
            "payloads": [],
            "min_count": 2,
            "min_count_squares": 3,
            "clip": None,
            "covariance": "auto",
            "rank": 24,
            "rehearsed": 100,
            "sketch_size": 64,
            "sketch_rounds": 3,
            "public": "gaussian",
            "public_samples": 100,
            "every": 5,
            "memory_rounds": 50,
            "memory_bytes": 67_108_864,
        },
        "meta_learner": {
            "prior": None,
            "prototypes": None,
            "expert_assignment": None,
            "gaussians": None,
            "step_size": None,
            "hyperparameters": None,
            "selection": None,
            "distillation": None,
            "expert_bias": None,
        },
        "runtime": {
            "name": "inprocess",
            "round_timeout": 3600.0,
            "min_replies": 1,
            "stragglers": "wait",
            "cut_off_share": 0.8,
            "cut_off_grace": 5.0,
            "late_rounds": 2,
            "late_exponent": 0.5,
            "max_reply_bytes": 100_000_000,
            "max_examples": 10_000_000,
            "max_update_ratio": 100.0,
            "max_update_norm": None,
            "max_strikes": 3,
            "shard_size": 1000,
        },
        "tracking": {
            "progress": "auto",
            "log_format": "text",
            "log_level": "INFO",
            "plots": True,
            "checkpoint_every": 10,
            "profile": False,
        },
        "stopping": {"patience": None, "min_delta": 0.0, "target": None},
    }


def test_a_value_may_be_made_of_others() -> None:
    """Of Hydra's own, too, as in `${hydra.job.override_dirname}`."""
    words = ["name=${strategy.name}-${hydra.job.override_dirname}", "strategy=local"]
    assert load_config([*words, "hydra.job.config.override_dirname.exclude_keys=[name]"]).name == (
        "local-strategy-local"
    )


def test_every_group_has_files() -> None:
    groups = {option.partition("=")[0] for option in OPTIONS}
    assert {"data", "partition", "model", "strategy", "experiment", "stopping"} <= groups
    assert len(OPTIONS) > 35


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_validates_and_survives_json(option: str) -> None:
    words = f"+{option}" if option.startswith("experiment/") else option
    config = load_config([words, *REQUIRED.get(option, [])])
    assert from_json(to_json(config)) == config
    assert "\n" not in to_json(config)
    group, _, name = option.partition("=")
    if group not in {
        "experiment",
        "experiment/regimes",
        "training",
        "insight",
        "meta_learner",
        "tracking",
        "stopping",
    }:
        assert attrgetter(f"{group.replace('/', '.')}.name")(config) == name


@pytest.mark.parametrize("option", OPTIONS)
def test_every_file_says_in_its_first_comment_what_it_is(option: str) -> None:
    group, _, name = option.partition("=")
    lines = (CONF / group / f"{name}.yaml").read_text().splitlines()
    sentence = lines[1] if lines[0] == "# @package _global_" else lines[0]
    assert sentence.startswith("# ")
    assert len(sentence) > 30
    if group == "experiment":
        assert sentence.endswith(f": fedmoe-simulate +experiment={name}")


def test_every_choice_of_the_schema_has_a_file() -> None:
    for group in ("data", "partition", "model", "model/router", "strategy"):
        union = getattr(schema, f"{group.rpartition('/')[2].capitalize()}Config").__origin__
        for cls in union.__args__:
            name = cls.__annotations__["name"].__args__[0]
            assert f"{group}={name}" in OPTIONS


def test_scarcity_is_the_experiment_of_five_unlike_clients() -> None:
    config = load_config(["+experiment=scarcity"])
    assert isinstance(config.data, schema.SyntheticLinearConfig)
    assert (config.data.num_clients, config.data.samples_per_client) == (5, 200)
    assert (config.partition.name, config.model.name, config.strategy.name) == (
        "natural",
        "linear",
        "fedavg",
    )
    assert (config.rounds, config.training.epochs, config.training.momentum) == (5, 5, 0.0)
    assert (config.training.learning_rate, config.name) == (0.01, "scarcity")


# ------------------------------------------------------------------------ precedence

LAYERS = ("env", "kw", "cli")
PAIRS = [("env", "kw"), ("env", "cli"), ("kw", "cli")]


def load(monkeypatch: pytest.MonkeyPatch, key: str, **said: str | int) -> schema.ExperimentConfig:
    """Load with `key` set in the named layers."""
    if "env" in said:
        monkeypatch.setenv(f"FED_MOE_{key.upper().replace('.', '__')}", str(said["env"]))
    keywords = {key.replace(".", "__"): said["kw"]} if "kw" in said else {}
    return load_config([f"{key}={said['cli']}"] if "cli" in said else [], **keywords)


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_beats_yaml(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, "training.batch_size", **{layer: 7}).training.batch_size == 7


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_picks_a_group_option(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, "model", **{layer: "moe"}).model.name == "moe"


@pytest.mark.parametrize(("weak", "strong"), PAIRS)
def test_a_stronger_layer_wins_a_key(
    weak: str, strong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(monkeypatch, "training.batch_size", **{weak: 7, strong: 8})
    assert config.training.batch_size == 8


@pytest.mark.parametrize(("weak", "strong"), PAIRS)
def test_a_stronger_layer_wins_a_group(
    weak: str, strong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(monkeypatch, "model", **{weak: "moe", strong: "linear"}).model.name == "linear"


@pytest.mark.parametrize(("weak", "strong"), PAIRS)
def test_a_stronger_layer_wins_a_group_within_a_group(
    weak: str, strong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FED_MOE_MODEL", "moe")
    model = load(monkeypatch, "model.router", **{weak: "prior", strong: "client"}).model
    assert isinstance(model, schema.MoeConfig)
    assert model.router.name == "client"


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_sets_a_key_of_a_group_within_a_group(
    layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FED_MOE_MODEL", "moe")
    model = load(monkeypatch, "model.router.top_k", **{layer: 3}).model
    assert isinstance(model, schema.MoeConfig)
    assert model.router == schema.SoftmaxRouterConfig(name="softmax", top_k=3)


def test_the_defaults_of_a_mixture_are_the_documented_ones() -> None:
    assert as_dict(load_config(["model=moe"]))["model"] == {
        "name": "moe",
        "num_experts": 4,
        "hidden": [32],
        "expert": None,
        "expert_options": {},
        "combine": "outputs",
        "router": {"name": "softmax", "top_k": 2},
        "losses": {
            "importance": 0.03,
            "load": 0.0,
            "balance": 0.01,
            "z": 0.0,
            "scope": "local",
        },
    }


@pytest.mark.parametrize(("weak", "strong"), PAIRS)
def test_a_stronger_layer_wins_the_experiment(
    weak: str, strong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(monkeypatch, "experiment", **{weak: "scarcity", strong: "insight"})
    assert (config.strategy.name, config.data.name) == ("insight", "digits")


@pytest.mark.parametrize("layer", LAYERS)
def test_each_layer_beats_an_experiment_file(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FED_MOE_EXPERIMENT", "scarcity")
    assert load(monkeypatch, "model", **{layer: "moe"}).model.name == "moe"
    assert load(monkeypatch, "rounds", **{layer: 9}).rounds == 9


@pytest.mark.parametrize("word", ["experiment=null", "~experiment"])
def test_an_experiment_of_the_environment_can_be_taken_back(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FED_MOE_EXPERIMENT", "insight")
    assert load_config([word]).strategy.name == "fedavg"


# -------------------------------------------------------------------------- keywords


def test_keywords_nest_and_join() -> None:
    config = load_config(
        training={"batch_size": 8, "optimizer": "adam"},
        model="mlp",
        model__hidden=(3, 4),
        stopping__patience=None,
        rounds=3,
        tracking__plots=False,
        data__test_fraction=1e-05,
    )
    assert (config.training.batch_size, config.training.optimizer) == (8, "adam")
    assert config.model == schema.MlpConfig(name="mlp", hidden=(3, 4))
    assert (config.stopping.patience, config.rounds, config.tracking.plots) == (None, 3, False)
    assert config.data.test_fraction == 1e-05


def test_options_of_a_custom_model_are_free() -> None:
    config = load_config(
        ["model.options.depth=3"],
        model="custom",
        model__factory="mine",
        model__options={"width": 2, "text": "1", "deep": {"a__b": [1, None]}},
    )
    assert isinstance(config.model, schema.CustomModelConfig)
    expected = {"width": 2, "text": "1", "deep": {"a__b": [1, None]}, "depth": 3}
    assert config.model.options == expected


def test_options_of_an_expert_are_free() -> None:
    words = ["model=moe", "model.expert=mine", "model.expert_options.depth=3"]
    config = load_config(words, model__expert_options={"width": 2})
    assert isinstance(config.model, schema.MoeConfig)
    assert config.model.expert_options == {"depth": 3, "width": 2}


@pytest.mark.parametrize("group", ["data", "model", "strategy"])
def test_options_of_everything_custom_are_free_on_the_command_line(group: str) -> None:
    config = load_config([f"{group}=custom", f"{group}.factory=mine", f"{group}.options.depth=3"])
    assert getattr(config, group).options == {"depth": 3}


def test_a_keyword_keeps_its_type() -> None:
    with pytest.raises(ConfigError, match=r"^rounds=3: must be a whole number$"):
        load_config(rounds="3")
    with pytest.raises(ConfigError, match="rounds: a set cannot be a configuration value"):
        load_config(rounds={1})


# ----------------------------------------------------------------------- environment

ODD = [
    "a b",
    " a ",
    "a,b",
    "x=y",
    "~x",
    "[1",
    "{a",
    "it's",
    'say "hi"',
    "back\\slash\\",
    "a\\,b",
    "choice(a,b)",
    "f(x)",
    "a:b",
    "#no comment",
    "é ü 漢",
    "new\nline",
    "100%",
    "\\'",
    "a'",
]


@pytest.mark.parametrize("raw", ODD)
def test_odd_characters_survive_the_environment(raw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FED_MOE_DATA", "table")
    monkeypatch.setenv("FED_MOE_DATA__TARGET", raw)
    config = load_config(data__client_column=raw)
    assert isinstance(config.data, schema.TableConfig)
    assert config.data.target == raw
    assert config.data.client_column == raw


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0$?"), min_size=1, max_size=12))
def test_quoted_text_is_one_value_of_the_same_text(raw: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override(f"key={quoted(raw)}")
    assert not override.is_sweep_override()
    if isinstance(value := override.value(), str) and raw[0] not in "'\"":
        assert value == raw


@pytest.mark.parametrize(
    ("raw", "value"), [("64", 64), ("[8, 4]", [8, 4]), ("null", None), ("1e-2", 0.01), ("'7'", "7")]
)
def test_the_environment_has_the_types_of_the_command_line(
    raw: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FED_MOE_MODEL", "custom")
    monkeypatch.setenv("FED_MOE_MODEL__FACTORY", "mine")
    monkeypatch.setenv("FED_MOE_MODEL__OPTIONS__X", raw)
    config = load_config()
    assert isinstance(config.model, schema.CustomModelConfig)
    assert config.model.options == {"x": value}


# ----------------------------------------------------------------------------- paths


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load_config(["data=table", "data.path=~/my data (1).csv", "resume=runs/old"])
    assert isinstance(config.data, schema.TableConfig)
    assert config.data.path == str(tmp_path / "home" / "my data (1).csv")
    assert config.resume == str(tmp_path / "runs" / "old")
    assert load_config(resume=Path("x")).resume == str(tmp_path / "x")


def test_paths_that_name_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be a path, or null"):
        load_config(["resume="])
    with pytest.raises(ConfigError, match="no such home directory"):
        load_config(["resume=~nobody-of-that-name/x"])


# ------------------------------------------------------------------- beside Hydra's own


def test_loading_leaves_hydra_as_it_was() -> None:
    before = VersionBase.instance().version_base
    assert load_config() == load_config()
    assert not GlobalHydra.instance().is_initialized()
    assert VersionBase.instance().version_base is before


def test_importing_it_is_light() -> None:
    heavy = "'torch', 'flwr', 'sklearn', 'matplotlib', 'pandas', 'ray'"
    code = f"import fedmoe.simulate, sys; print(sorted({{{heavy}}} & set(sys.modules)))"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


# ------------------------------------------------------------------------------ JSON


def test_validate_takes_a_plain_table_and_converts_nothing_but_lists() -> None:
    table = as_dict(load_config())
    assert validate(table) == load_config()
    table["rounds"] = "3"
    with pytest.raises(ConfigError, match="rounds=3: must be a whole number"):
        validate(table)
    table["rounds"] = object()
    with pytest.raises(ConfigError, match="more than plain values"):
        validate(table)


def test_validate_leaves_paths_alone() -> None:
    table = as_dict(load_config())
    table["resume"] = "elsewhere/run"
    assert validate(table).resume == "elsewhere/run"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("3", "the configuration must be a group of keys"),
        ("[]", "the configuration must be a group of keys"),
        ("{}", "missing"),
        ("[" * 100_000, "not valid JSON"),
        (" " * 1_000_001, "too long"),
        ('{"_target_": "os.system", "data": 3}', "no such key"),
    ],
)
def test_hostile_json_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("group", ["data", "model", "training", "stopping", "name"])
@pytest.mark.parametrize("value", [None, 3, [], " " * 1000, {}, {"name": 3}, {"name": ["\x1b["]}])
def test_hostile_groups_are_refused_in_one_line(group: str, value: object) -> None:
    table = as_dict(load_config())
    table[group] = value
    with pytest.raises(ConfigError) as caught:
        from_json(json.dumps(table))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
