"""`Server`: what notebooks call and every entry point runs."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation_runs import CLASSES, QUIET, REGRESSION, RUNS, all_lines, assert_same_checkpoint
from flwr.client import NumPyClient
from flwr.serverapp.strategy import FedAvg
from torch import nn

import fedmoe
import fedmoe.run
from fedmoe import (
    Client,
    Expert,
    MetaLearner,
    Router,
    Server,
    clients,
    insight,
    models,
    serving,
)
from fedmoe.config import load_config
from fedmoe.errors import ConfigError, RunError
from fedmoe.models import parameters_of
from fedmoe.models.base import as_output
from fedmoe.schema import MetaLearnerConfig
from fedmoe.simulate import main

CONF = Path(fedmoe.__file__).parent / "conf"
SUMMARY = ("name", "status", "rounds", "final", "best", "objective", "bytes", "insights", "data")
# Those that need no further words; new files come in by themselves.
STRATEGIES = sorted(
    {path.stem for path in (CONF / "strategy").glob("*.yaml")} - {"custom", "stock"}
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def simulated(name: str, *words: str) -> Path:
    """The run directory that the command line leaves."""
    path = Path(name).absolute()
    assert main([*words, f"hydra.run.dir={path}"]) == 0
    return path


def path_of(server: Server) -> Path:
    assert server.directory is not None
    return server.directory.path


def read(path: Path, file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / file).read_text())
    return found


def assert_same_run(one: Path, other: Path) -> None:
    assert all_lines(one) == all_lines(other)
    assert read(one, "config.json") == read(other, "config.json")
    mine, theirs = read(one, "summary.json"), read(other, "summary.json")
    assert {key: mine[key] for key in SUMMARY} == {key: theirs[key] for key in SUMMARY}
    assert_same_checkpoint(one, other)


# ---------------------------------------------------------------------------- the names


def test_the_originals_constructor_calls() -> None:
    assert Expert(expert_id=0).build(4, 3)(torch.zeros(2, 4)).y.shape == (2, 3)
    assert Router(num_experts=3).num_experts == 3
    assert Client(client_id=0).client_id == 0
    assert len(Server(num_clients=5).clients) == 5
    assert len(MetaLearner().memory) == 0


def test_the_names_are_the_classes_that_the_code_uses() -> None:
    assert fedmoe.Expert is models.Expert
    assert fedmoe.Router is models.Router
    assert fedmoe.Client is clients.Client and issubclass(Client, NumPyClient)
    assert fedmoe.MetaLearner is insight.MetaLearner
    assert fedmoe.Server is serving.Server
    with pytest.raises(AttributeError, match="module 'fedmoe' has no attribute 'Sever'"):
        _ = fedmoe.Sever
    assert set(fedmoe.__all__) <= set(dir(fedmoe))
    for name in fedmoe.__all__:
        assert getattr(fedmoe, name) is not None


def test_a_run_goes_through_these_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is replaced by one that remembers it was called."""
    called = set()

    def watch(cls: type, method: str) -> None:
        genuine = getattr(cls, method)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            called.add(cls.__name__)
            return genuine(*arguments, **keywords)

        monkeypatch.setattr(cls, method, watched)

    watch(Server, "run")
    watch(clients.Clients, "answer")
    watch(Expert, "build")
    watch(Router, "logits")
    watch(MetaLearner, "observe")
    simulated("moe", *RUNS["mixture-of-experts"], "rounds=1")
    assert called == {"Server", "Clients", "Expert", "Router"}
    simulated("insight", *RUNS["insight"], "rounds=1")
    assert "MetaLearner" in called


# ------------------------------------------------------------------------------ the runs


@pytest.mark.parametrize("name", RUNS)
def test_it_runs_what_the_command_runs_to_the_bit(name: str) -> None:
    server = Server(overrides=[*RUNS[name], "rounds=3"])
    summary = server.run()
    assert path_of(server).parents[1] == Path("runs").absolute()
    assert summary == read(path_of(server), "summary.json")
    assert_same_run(path_of(server), simulated("command", *RUNS[name], "rounds=3"))


@pytest.mark.parametrize("name", ["fedavg", "insight", "kept-moments", "stock-yogi"])
def test_runs_one_after_the_other_are_one_run(name: str) -> None:
    server = Server(overrides=RUNS[name])
    assert server.run(rounds=2)["rounds"] == 2
    assert server.run(rounds=1)["rounds"] == 3
    assert [record["round"] for record in server.metrics] == [1, 2, 3]
    assert_same_run(path_of(server), simulated("command", *RUNS[name], "rounds=3"))


def test_without_a_number_it_runs_what_the_configuration_has_left() -> None:
    server = Server(overrides=RUNS["fedavg"], rounds=3)
    server.run(rounds=2)
    assert server.run()["rounds"] == 3
    before = all_lines(path_of(server))
    assert server.run()["status"] == "completed"
    assert all_lines(path_of(server)) == before


@pytest.mark.parametrize("rounds", [0, -1, 1.5, "2"])
def test_a_number_of_rounds_must_be_one(rounds: Any) -> None:
    with pytest.raises(ConfigError, match=f"rounds={rounds}: must be a whole number of at least 1"):
        Server(overrides=RUNS["fedavg"]).run(rounds=rounds)
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["insight", "kept-moments"])
@pytest.mark.parametrize("checkpoints", [0, 2])
def test_a_run_that_broke_off_goes_on_from_its_last_checkpoint(
    name: str, checkpoints: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*RUNS[name], f"tracking.checkpoint_every={checkpoints}", "rounds=5"]

    class Broken:
        def update(self, metrics: dict[str, Any]) -> None:
            if metrics["round"] == 4:
                raise ZeroDivisionError("a defect")

    @contextmanager
    def open_progress(*arguments: object) -> Iterator[Broken]:
        yield Broken()

    server = Server(overrides=words)
    with monkeypatch.context() as patch:
        patch.setattr(fedmoe.run, "open_progress", open_progress)
        with pytest.raises(ZeroDivisionError):
            server.run()
    assert read(path_of(server), "summary.json")["status"] == "failed"
    assert len(server.metrics) == 4
    assert server.state.standing.round == checkpoints
    server.run()
    assert_same_run(path_of(server), simulated("command", *words))


def test_after_an_interrupt_it_goes_on_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*RUNS["kept-moments"], "rounds=5"]

    class Interrupted:
        def update(self, metrics: dict[str, Any]) -> None:
            if metrics["round"] == 3:
                signal.raise_signal(signal.SIGINT)

    @contextmanager
    def open_progress(*arguments: object) -> Iterator[Interrupted]:
        yield Interrupted()

    server = Server(overrides=words)
    grid = server.grid
    with monkeypatch.context() as patch:
        patch.setattr(fedmoe.run, "open_progress", open_progress)
        with pytest.raises(KeyboardInterrupt):
            server.run()
    assert server.state.standing.round == 3
    assert server.grid is grid  # workers, where there are any, are not started again
    server.run()
    assert_same_run(path_of(server), simulated("command", *words))


def test_a_run_of_an_earlier_day_is_resumed() -> None:
    words = RUNS["insight"]
    path = simulated("earlier", *words, "rounds=2")
    server = Server(overrides=[f"resume={path}", "rounds=3"])
    assert server.states.read("model", np.array([1]), {}) is not None  # also before it runs
    assert len(server.memory) == 2 * 5
    own = parameters_of(server.clients[1].model())
    assert not torch.equal(own["weight"], server.experiment.initial["weight"])
    server.run()
    whole = simulated("whole", *words, "rounds=3")
    assert all_lines(path) == all_lines(whole)
    assert_same_checkpoint(path, whole)


def test_data_that_are_not_to_be_had_leave_word_in_the_run_directory() -> None:
    server = Server(overrides=["data=table", "data.path=missing.csv", "data.target=y"])
    with pytest.raises(fedmoe.errors.FedmoeError) as caught:
        server.run()
    summary = read(path_of(server), "summary.json")
    assert (summary["status"], summary["reason"]) == ("failed", str(caught.value))


# --------------------------------------------------------------------------- the clients


@pytest.mark.parametrize(
    "words",
    [CLASSES, [word for word in REGRESSION if not word.startswith("data.num_clients")]],
    ids=["natural", "made-up"],
)
def test_the_data_are_divided_among_as_many_clients(words: list[str]) -> None:
    server = Server(num_clients=3, overrides=words)
    assert server.experiment.data.num_clients == len(server.clients) == 3
    assert [client.client_id for client in server.clients] == [0, 1, 2]


def test_natural_clients_are_as_many_as_there_are() -> None:
    table = "\n".join(["x,y,who", *(f"{n},{n % 2},{n % 3}" for n in range(60))])
    Path("t.csv").write_text(table)
    words = ["data=table", "data.path=t.csv", "data.target=y", "data.client_column=who",
             "partition=natural", "model=linear", "rounds=1"]  # fmt: skip
    assert Server(num_clients=3, overrides=[*words, *QUIET]).run()["data"]["clients"] == 3
    with pytest.raises(
        ConfigError, match="5 clients were asked for, but table has 3 natural clients"
    ):
        Server(num_clients=5, overrides=words).run()


def test_clients_that_are_handed_over_belong_to_the_server() -> None:
    given = [Client(client_id=number) for number in range(5)]
    server = Server(clients=given, overrides=RUNS["insight"])
    before = parameters_of(given[2].model())
    server.run(rounds=2)
    assert server.clients == given
    after = parameters_of(given[2].model())
    assert not torch.equal(before["weight"], after["weight"])
    kept = server.states.read("model", np.array([2]), {})
    assert kept is not None
    assert torch.equal(after["weight"], kept["weight"][0])
    x, y = given[2].data("validation")
    assert x.shape[1:] == (3,) and len(x) == len(y) > 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_models_that_are_handed_out_score_what_the_records_say(strategy: str) -> None:
    """A loop over clients and samples, against the test scores of the last round."""
    words = ["data.num_clients=4", "model=mlp", f"strategy={strategy}", "training.epochs=2"]
    server = Server(overrides=[*CLASSES, *words])
    for rounds in (2, 1):
        final = server.run(rounds=rounds)["final"]
        right = {"global": 0, "personalised": 0}
        total = 0
        for client in server.clients:
            x, y = (torch.from_numpy(array) for array in client.data("test"))
            own = client.model()
            assert not own.training
            right["personalised"] += correct(own, x, y)
            total += len(y)
            if final["global"] is not None:
                right["global"] += correct(server.model, x, y)
        shown = "global" if final["personalised"] is None else "personalised"
        expected = pytest.approx(final[shown]["accuracy"]["mean"], abs=1e-6)
        assert right["personalised"] / total == expected
        if final["global"] is not None:
            expected = pytest.approx(final["global"]["accuracy"]["mean"], abs=1e-6)
            assert right["global"] / total == expected
        else:
            with pytest.raises(RunError, match=f"^strategy={strategy} has no global model; each"):
                _ = server.model


def correct(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    return sum(
        int(as_output(model(one)).y.argmax()) == int(label) for one, label in zip(x, y, strict=True)
    )


def test_a_model_is_a_copy() -> None:
    server = Server(overrides=RUNS["fedavg"])
    before = server.model  # of before the first round
    for name, value in before.named_parameters():
        assert torch.equal(value, server.experiment.initial[name])
        with torch.no_grad():
            value.zero_()
    untouched = Server(overrides=RUNS["fedavg"])
    assert server.run(rounds=1)["final"] == untouched.run(rounds=1)["final"]


def test_a_strategy_that_asks_some_shows_no_model_of_the_others() -> None:
    words = [
        "strategy=stock",
        "strategy.class_name=FedAvg",
        "strategy.options.fraction_evaluate=0.4",
    ]
    server = Server(overrides=[*CLASSES, *words])
    server.run(rounds=1)
    assert isinstance(server.strategy, FedAvg)
    assert server.model is not None
    shown = 0
    for client in server.clients:
        try:
            client.model()
            shown += 1
        except RunError as error:
            assert str(error).startswith(f"the strategy asks others than client {client.client_id}")
    assert shown == 2


# ------------------------------------------------------------------------- the other parts


def own_expert(num_features: int, num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(num_features, 5), nn.Tanh(), nn.Linear(5, num_outputs))


def test_experts_and_a_router_are_the_mixture_that_words_make() -> None:
    words = [word for word in CLASSES if not word.startswith("model")]
    experts = [Expert(expert_id=number, hidden=[5]) for number in range(3)]
    server = Server(experts=experts, router=Router(num_experts=3), overrides=words)
    server.run(rounds=2)
    mixture = ["model=moe", "model.num_experts=3", "model.hidden=[5]", "model.router.top_k=3"]
    assert_same_run(path_of(server), simulated("command", *words, *mixture, "rounds=2"))


def test_experts_may_be_modules_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.REGISTRY, "factories", {})
    words = [word for word in CLASSES if not word.startswith("model")]
    server = Server(experts=Expert(0, module=own_expert).times(3), overrides=words)
    summary = server.run(rounds=1)
    model = server.model
    assert isinstance(model, models.MixtureOfExperts)
    assert isinstance(model.expert(2), nn.Sequential)
    assert read(path_of(server), "config.json")["model"]["expert"] == "own_expert"
    again = Server(
        overrides=[*words, "model=moe", "model.num_experts=3", "model.expert=own_expert"]
    )
    assert again.run(rounds=1)["final"] == summary["final"]


def test_a_meta_learner_learns_from_the_clients_insights() -> None:
    words = [word for word in RUNS["insight"] if not word.startswith("strategy")]
    learner = MetaLearner()
    server = Server(num_clients=5, meta_learner=learner, overrides=words)
    server.run(rounds=5)
    assert server.meta_learner is learner
    assert len(server.memory) == 25
    assert [one["round"] for one in learner.history] == [1, 2, 3, 4, 5]
    assert "prior_mean" in learner.guidance(0).parts
    assert_same_run(path_of(server), simulated("command", *RUNS["insight"], "rounds=5"))


def test_without_insights_there_is_nothing_to_remember() -> None:
    server = Server(overrides=RUNS["fedavg"])
    with pytest.raises(RunError, match=r"^strategy=fedavg has no MetaLearner; insights"):
        _ = server.memory
    assert server.metrics == []


# ------------------------------------------------------------------------------ mistakes


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "words": ({"overrides": ["rouns=3"]}, "rouns=3: no such key; did you mean rounds?"),
    "keyword": ({"rouns": 3}, "rouns=3: no such key; did you mean rounds?"),
    "none": ({"num_clients": 0}, "partition.num_clients=0: must be greater than or equal to 1"),
    "text": ({"num_clients": "5"}, "partition.num_clients=5: must be a whole number"),
    "order": (
        {"clients": [Client(0), Client(2)]},
        "clients must be numbered 0 to 1 in order, got [0, 2]",
    ),
    "number": ({"num_clients": 3, "clients": [Client(0)]}, "num_clients=3: 1 clients are given"),
    "unlike": (
        {"experts": [Expert(0), Expert(1, hidden=[8])]},
        "expert 1 is a perceptron with hidden=[8] and expert 0 is linear: a mixture's experts",
    ),
    "router": (
        {"experts": Expert(0).times(2), "router": Router(num_experts=3)},
        "a router for 3 experts, but there are 2",
    ),
    "model": (
        {"experts": Expert(0).times(2), "model": "linear"},
        "model=linear: experts and routers are for model=moe",
    ),
    "composed": (
        {"config": load_config(), "overrides": ["rounds=3"]},
        "config is composed already: it takes no overrides or keywords",
    ),
}


def test_a_meta_learner_goes_with_any_strategy_of_ours() -> None:
    learner = MetaLearner()
    server = Server(meta_learner=learner, overrides=RUNS["fedavg"])
    server.run(rounds=3)
    assert (server.meta_learner, server.config.strategy.name) == (learner, "fedavg")
    assert len(server.memory) == 18
    assert "prototypes" in learner.guidance(0).parts
    words = [*RUNS["fedavg"], "meta_learner=[prior,prototypes]", "rounds=3"]
    assert_same_run(path_of(server), simulated("command", *words))


@pytest.mark.parametrize("learner", [MetaLearner(), MetaLearner(MetaLearnerConfig())])
def test_a_meta_learner_does_not_go_with_flowers_own(learner: MetaLearner) -> None:
    words = [*CLASSES, "strategy=stock", "strategy.class_name=FedMedian"]
    server = Server(meta_learner=learner, overrides=words)
    with pytest.raises(ConfigError, match=r"strategy=stock: meta_learner and insight\.payloads go"):
        _ = server.strategy


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str) -> None:
    keywords, reason = MISTAKES[name]
    with pytest.raises(ConfigError) as caught:
        Server(**keywords)
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


def test_a_run_is_resumed_with_its_own_parts() -> None:
    path = simulated("earlier", *RUNS["insight"], "rounds=1")
    Server(meta_learner=MetaLearner(), overrides=[f"resume={path}"])
    with pytest.raises(ConfigError, match="clients, experts, router and meta_learner cannot diff"):
        Server(num_clients=3, overrides=[f"resume={path}"])
