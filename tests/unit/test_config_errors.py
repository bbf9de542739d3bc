"""Every mistake is one line with the key, the value, what is allowed and the nearest name."""

import os
import re

import pytest

from fedmoe.config import load_config
from fedmoe.configuration.words import PREFIX
from fedmoe.errors import ConfigError

TOP = "Allowed: data, evaluate_every, insight, meta_learner, model, name, partition, resume, rounds"
TRAINING = "Allowed in training: batch_size, cohort_size, device, epochs, learning_rate, momentum"

MISTAKES = [
    # unknown keys
    (["modle=moe"], "modle=moe: no such key; did you mean model? " + TOP),
    (["round=3"], "round=3: no such key; did you mean rounds? " + TOP),
    (["batch_size=3"], "batch_size=3: no such key; did you mean training.batch_size? " + TOP),
    (["batchsize=3"], "batchsize=3: no such key; did you mean training.batch_size? " + TOP),
    (
        ["training_batch_size=3"],
        "training_batch_size=3: no such key; did you mean training.batch_size? " + TOP,
    ),
    (
        ["training.batchsize=64"],
        "training.batchsize=64: no such key; did you mean training.batch_size? " + TRAINING,
    ),
    (["+training.batchsize=64"], "+training.batchsize=64: no such key; did you mean training."),
    (["training.zzz=1"], "training.zzz=1: no such key; " + TRAINING),
    (["rounds.x=1"], "rounds.x=1: no such key; rounds is a single value"),
    (["+foo.bar=1"], "+foo.bar=1: no such key; " + TOP),
    (["~nothing"], "~nothing: no such key; " + TOP),
    (["model@other=moe"], "model@other=moe: no such key; did you mean model? " + TOP),
    (["model.options.x=1"], "model.options.x=1: no such key; Allowed in model: hidden, name"),
    (["hydra.rnu.dir=x"], "hydra.rnu.dir=x: no such key; did you mean hydra.run? Allowed in hydra"),
    (
        ["+experiment=regimes/permuted", "tracking.run_dir=x"],
        "tracking.run_dir=x: no such key; Allowed in tracking: checkpoint_every, log_format",
    ),
    (["+experiment=permuted"], "+experiment=permuted: no such option; did you mean regimes/permut"),
    (
        ["+experiment=regimes/permutde"],
        "+experiment=regimes/permutde: no such option; did you mean regimes/permuted? Allowed: dit",
    ),
    # keys of another option
    (
        ["partition=iid", "partition.alpha=0.1"],
        "partition.alpha=0.1: no such key; it belongs to partition=dirichlet and "
        "partition=quantity. Allowed in partition: min_samples, name, num_clients",
    ),
    (["model.num_experts=1"], "model.num_experts=1: no such key; it belongs to model=moe. Allowed"),
    # a policy that may be absent
    (
        ["strategy=insight", "meta_learner.prototypes.strength=-1"],
        "meta_learner.prototypes.strength=-1: must be greater than or equal to 0",
    ),
    (
        ["meta_learner=prototypes", "meta_learner.prototypes.strenth=1"],
        "meta_learner.prototypes.strenth=1: no such key; did you mean "
        "meta_learner.prototypes.strength? Allowed in meta_learner.prototypes: of, strength",
    ),
    (
        ["meta_learner.prototypes.strength=1"],
        "meta_learner.prototypes.strength=1: no such key; it belongs to meta_learner=prototypes. "
        "Allowed in meta_learner: nothing",
    ),
    (["meta_learner=[prior,x]"], "meta_learner=[prior,x]: no such option; Allowed: dist"),
    # a group within a group
    (["model.router.top_k=1"], "model.router.top_k=1: no such key; it belongs to model=moe. All"),
    (["model/router=prior"], "model/router=prior: it belongs to model=moe"),
    (["model.router=prior"], "model.router=prior: it belongs to model=moe"),
    (["model/roter=x"], "model/roter=x: no such group; did you mean model/router? Allowed in mode"),
    (
        ["model=moe", "model.router.topk=1"],
        "model.router.topk=1: no such key; did you mean model.router.top_k? Allowed in model.rout",
    ),
    (
        ["model=moe", "model.router.gate=true"],
        "model.router.gate=true: no such key; it belongs to model/router=prior. Allowed in model.",
    ),
    (
        ["model=moe", "model/router=priro"],
        "model/router=priro: no such option; did you mean prior? Allowed: client, ",
    ),
    (["model=moe", "+model/router=prior"], "+model/router=prior: model/router has an option alr"),
    (["model=moe", "model.router.name=x"], "model.router.name=x: no such option; Allowed: client"),
    (
        ["model=moe", "model.router.name=prior"],
        "model.router.name=prior: not set by itself; type model/router=prior",
    ),
    (["model=moe", "model.router.top_k=x"], "model.router.top_k=x: must be a whole number"),
    (["model=moe", "~model/router"], "model.router: missing; choose the option with model/router"),
    (
        ["model=moe", "model.losses.blance=1"],
        "model.losses.blance=1: no such key; did you mean model.losses.balance? Allowed in model.",
    ),
    (["model=moe", "model.losses.balance=-1"], "model.losses.balance=-1: must be greater than or"),
    (["model=moe", "~model.losses.scope"], "model.losses.scope: missing; choose the option with "),
    # options
    (["model=mope"], "model=mope: no such option; did you mean moe? Allowed: custom, linear, mlp"),
    (["model=null"], "model=null: no such option; Allowed: custom, linear, mlp, moe"),
    (["training=5"], "training=5: no such option; Allowed: adam, sgd"),
    (["experiment=insigt"], "experiment=insigt: no such option; did you mean insight? Allowed: "),
    (
        ["+experiment=[moe,x]"],
        "+experiment=[moe,x]: no such option; Allowed: ditto, fedadagrad, fedadam",
    ),
    (["hydra/launcher=nope"], "hydra/launcher=nope: no such option; Allowed: basic"),
    (["model.name=mpl"], "model.name=mpl: no such option; did you mean mlp? Allowed: custom, lin"),
    (["model.name=moe"], "model.name=moe: not set by itself; type model=moe"),
    (["+model=moe"], "+model=moe: model has an option already; leave out the +"),
    (["++model=moe"], "++model=moe: model has an option already; leave out the +"),
    # types
    (["training.batch_size=many"], "training.batch_size=many: must be a whole number"),
    (["training.batch_size=1.5"], "training.batch_size=1.5: must be a whole number"),
    (["training.learning_rate=fast"], "training.learning_rate=fast: must be a number"),
    (["tracking.plots=maybe"], "tracking.plots=maybe: must be true or false"),
    (["model.hidden=64"], "model.hidden=64: must be a list, such as [64, 32]"),
    (["stopping.patience=never"], "stopping.patience=never: must be a whole number or null"),
    (["name=3"], "name=3: must be text"),
    (["training={epochs:x}"], "training.epochs=x: must be a whole number"),
    (
        ["training.optimizer=sdg"],
        "training.optimizer=sdg: did you mean sgd? It must be sgd or adam",
    ),
    (["tracking.progress=x"], "tracking.progress=x: must be auto, bar, lines or none"),
    # ranges
    (["training.learning_rate=-1"], "training.learning_rate=-1: must be greater than 0"),
    (["training.learning_rate=inf"], "training.learning_rate=inf: must be a finite number"),
    (["training.momentum=1"], "training.momentum=1: must be less than 1"),
    (["strategy.fraction_train=0"], "strategy.fraction_train=0: must be greater than 0"),
    (["rounds=0"], "rounds=0: must be greater than or equal to 1"),
    (["model.hidden=[]"], "model.hidden=[]: must have at least 1 item"),
    (["model.hidden=[4,0]"], "model.hidden=[4,0]: must be greater than or equal to 1"),
    (["name=a/b"], "name=a/b: must match pattern '^[A-Za-z0-9._-]+$'"),
    # several keys together
    (
        ["data.test_fraction=0.95"],
        "data.test_fraction=0.95: validation_fraction + test_fraction must stay below 1",
    ),
    (
        ["model=moe", "model.router.top_k=5"],
        "model.router.top_k=5: top_k must be at most num_experts = 4, got 5",
    ),
    # grammar and interpolation
    (["training.batch_size=[1"], "training.batch_size=[1: not in Hydra's grammar ("),
    (["rounds=1'"], "rounds=1': not in Hydra's grammar ("),
    (["rounds"], "rounds: expected key=value"),
    (["rounds=1,2"], "rounds=1,2: several values need --multirun, or quotes"),
    (["rounds=${nope}"], "rounds=${nope}: Interpolation key 'nope' not found"),
    (["rounds=???"], "rounds: no value given; type rounds=..."),
    (["model=custom"], "model.factory: no value given; type model.factory=..."),
    # deletions
    (["~training.epochs"], "training.epochs: missing; choose the option with training=..."),
    (["~model"], "model: missing"),
    (["~model.name"], "model.name: missing; choose the option with model=..."),
    # policies
    (
        ["meta_learner=step_size", "training=adam"],
        "meta_learner.step_size goes by steps along the gradient, but training.optimizer=adam",
    ),
    (
        ["meta_learner=hyperparameters", "data.validation_fraction=0"],
        "meta_learner.hyperparameters is judged on validation data, but data.validation_fraction",
    ),
    (
        ["meta_learner=selection", "meta_learner.selection.kind=best"],
        "meta_learner.selection.kind=best: must be oort, power_of_choice or uniform",
    ),
    (
        ["meta_learner=hyperparameters", "meta_learner.hyperparameters.learning_rates=[1.0,0]"],
        "meta_learner.hyperparameters.learning_rates=[1.0,0]: must be greater than 0",
    ),
]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=lambda x: x[0] if x else "")
def test_a_mistake_is_one_clear_line(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        load_config(words)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "TRAINING__BATCHSIZE",
            "64",
            "no such key; did you mean training.batch_size? " + TRAINING,
        ),
        ("TRAINING__BATCH_SIZE", "0", "must be greater than or equal to 1"),
        ("TRAINING__BATCH_SIZE", "[1", "must be a whole number"),
        ("TRAINING__BATCH_SIZE", "", "must be a whole number"),
        ("MODEL", "mope", "no such option; did you mean moe? Allowed: custom"),
        ("MODEL", "mlp,moe", "no such option; "),
        ("EXPERIMENT", "insigt", "no such option; did you mean insight?"),
        ("TYPO", "1", "no such key; " + TOP),
        ("", "1", "no such key; " + TOP),
        ("MODEL__ROUTER", "prior", "it belongs to model=moe"),
        ("MODEL__ROUTER__TOP_K", "1", "no such key; it belongs to model=moe. "),
        ("DATA__TEST_FRACTION", "0.95", "validation_fraction + test_fraction must stay below 1"),
    ],
)
def test_a_variable_at_fault_is_named(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{PREFIX}{variable}", value)
    with pytest.raises(ConfigError) as caught:
        load_config(["rounds=3"])
    assert str(caught.value).startswith(f"FED_MOE_{variable}={value}: {message}")


def test_a_key_of_the_option_that_a_later_layer_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FED_MOE_MODEL__HIDDEN", "[8]")
    with pytest.raises(ConfigError, match=r"FED_MOE_MODEL__HIDDEN=\[8\]: no such key; .*model=mlp"):
        load_config(["model=linear"])


def test_bytes_that_are_no_text_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="not valid JSON text"):
        load_config(["data=table", "data.path=x\udc80"])


@pytest.mark.parametrize("key", ["ROUNDS", "ROUND", "MODEL"])
def test_a_long_or_unprintable_value_stays_one_short_line(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FED_MOE_{key}", "\x1b[2J\n" + "x" * 500)
    with pytest.raises(ConfigError) as caught:
        load_config()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 350
