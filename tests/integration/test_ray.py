"""Runs on Ray's workers: the same numbers as in one process, and nothing lost with a worker."""

import json
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federation_runs import own_parts
from flwr.app import ConfigRecord
from numpy.typing import NDArray
from torch import nn

from fedmoe import models, strategies
from fedmoe.clients import load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.data import Task, pooled
from fedmoe.errors import ConfigError, RunError
from fedmoe.messages.arrays import to_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import RecordType
from fedmoe.profiling import SECTIONS
from fedmoe.rounds import RoundLoop, RoundRecord
from fedmoe.schema import ExperimentConfig, RayConfig
from fedmoe.serving import Server
from fedmoe.simulations import InProcessGrid, run_experiment
from fedmoe.standing import Standing
from fedmoe.strategies import FedAvg, Local, StackedFedAvg, build_strategy
from fedmoe.tracking import load_checkpoint

ray = pytest.importorskip("ray")
from fedmoe.simulations import ray_pool  # noqa: E402
from fedmoe.simulations.parcels import parcels  # noqa: E402
from fedmoe.simulations.ray_cluster import connect  # noqa: E402
from fedmoe.simulations.ray_grid import RayGrid, dealt  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray's own files
WORDS = [
    "partition.num_clients=9", "model=custom", "model.factory=fragile", "training.epochs=1",
    "rounds=3", "runtime.shard_size=4", "tracking.plots=false", "tracking.progress=none",
    "tracking.log_level=ERROR",
]  # fmt: skip
KEEPING = "training.reset_optimizer=false"
# What workers are started with, for runs that differ in what clients read of the experiment.
STATEFUL = [KEEPING, "meta_learner=distillation", "insight.every=1"]
CLUSTERS = [KEEPING, "strategy=ifca"]
EXPERTS = [KEEPING, "strategy=fedmoe", "strategy.experts_per_client=2"]
ON_RAY = ["runtime=ray", "runtime.workers=2", "runtime.shard_size=4", "runtime.max_restarts=100"]


class Fragile(nn.Module):
    """Dies in the middle of training once the trap says so, and then takes the trap away.

    Or it sleeps while the trap says that.
    """

    def __init__(self, task: Task, trap: str) -> None:
        super().__init__()
        self.layer = nn.Linear(task.num_features, task.num_outputs)
        self.trap = Path(trap)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while self.training and self.trap.exists() and "RAY_JOB_ID" in os.environ:
            if self.trap.read_text() == "die":
                self.trap.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.05)
        found: torch.Tensor = self.layer(x)
        return found


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray") / "trap"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One Ray for all tests: starting it takes seconds; runs join what is there."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    models.register("fragile")(Fragile)
    strategies.register("momentum")(own_parts().ServerMomentum)
    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()
    del models.REGISTRY.factories["fragile"], strategies.building.REGISTRY.factories["momentum"]


def config_of(trap: Path, *words: str) -> ExperimentConfig:
    return load_config([*WORDS, f"+model.options.trap={trap}", *words])


def on_ray(config: ExperimentConfig) -> RayGrid:
    assert isinstance(config.runtime, RayConfig)
    return RayGrid(load_experiment(to_json(config)), config.runtime)


@pytest.fixture(scope="module")
def shared(trap: Path) -> Iterator[RayGrid]:
    """Two workers for all tests: starting them takes seconds, too."""
    grid = on_ray(config_of(trap, *ON_RAY))
    yield grid
    grid.close()


@pytest.fixture(scope="module")
def others(trap: Path) -> Iterator[Callable[[list[str]], RayGrid]]:
    """Two more, for what they read of the experiment that they are started with."""
    started: list[tuple[list[str], RayGrid]] = []

    def workers(words: list[str]) -> RayGrid:
        if started and started[-1][0] != words:
            started.pop()[1].close()
        if not started:
            started.append((words, on_ray(config_of(trap, *ON_RAY, *words))))
        started[-1][1].restore({})
        return started[-1][1]

    yield workers
    for _, grid in started:
        grid.close()


@pytest.fixture
def grid(shared: RayGrid) -> RayGrid:
    """The same workers, whose clients have no state yet."""
    shared.restore({})
    return shared


def run(
    config: ExperimentConfig, grid: RayGrid | InProcessGrid
) -> tuple[dict[str, Any], list[RoundRecord]]:
    """A run's weights and states by name, and its records."""
    experiment = load_experiment(to_json(config))
    records: list[RoundRecord] = []
    loop = RoundLoop(
        config=config,
        strategy=build_strategy(config, experiment.data.task),
        grid=grid,
        standing=Standing(to_record(experiment.shared)),
        client_of=grid.client_id,
        on_round=records.append,
    )
    assert loop.run() == "completed"
    arrays = {name: array.numpy() for name, array in loop.standing.arrays.items()}
    return arrays | by_client(grid.state()), records


def by_client(state: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Private arrays in the order of clients."""
    order = {path.partition("#")[0]: a.argsort() for path, a in state.items() if "#" in path}
    return {path: a[order[path.partition("#")[0].split("/")[0]]] for path, a in state.items()}


def assert_same(there: dict[str, Any], here: dict[str, Any]) -> None:
    assert there.keys() == here.keys()
    for name, array in here.items():
        np.testing.assert_allclose(there[name], array, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "started_with"),
    [
        (["strategy=fedavg"], []),
        (["strategy=fedprox", "strategy.proximal_mu=0.5"], []),
        (["strategy=fedadam", "strategy.fraction_train=0.5"], []),
        (["strategy=insight"], []),
        (
            [
                "strategy=reptile",
                "meta_learner=[step_size,hyperparameters,selection]",
                "strategy.fraction_train=0.7",
            ],
            [],
        ),
        (["meta_learner=prototypes", "strategy=fedavg"], []),
        (["strategy=stock", "strategy.class_name=FedMedian"], []),
        (["strategy=custom", "strategy.factory=momentum", "+strategy.options.beta=0.9"], []),
        (["strategy=local", KEEPING, "strategy.fraction_train=0.7"], STATEFUL),
        (STATEFUL, STATEFUL),
        ([*CLUSTERS, "strategy.restart_rounds=1"], CLUSTERS),
        ([*EXPERTS, "strategy.warm_up_rounds=1", "strategy.fraction_train=0.7"], EXPERTS),
    ],
    ids=[
        *("fedavg", "fedprox", "fedadam", "insight", "reptile", "prototypes", "stock", "custom"),
        *("local", "distillation", "ifca", "fedmoe"),
    ],
)
def test_the_numbers_are_those_of_one_process(
    words: list[str],
    started_with: list[str],
    grid: RayGrid,
    others: Callable[[list[str]], RayGrid],
    trap: Path,
) -> None:
    if started_with:
        grid = others(started_with)
    config = config_of(trap, *words)
    found, there = run(config, grid)
    expected, here = run(config, InProcessGrid(load_experiment(to_json(config))))
    assert_same(found, expected)
    for mine, theirs in zip(there, here, strict=True):
        assert mine.metrics["bytes"] == theirs.metrics["bytes"]
        assert mine.metrics["train"] == pytest.approx(theirs.metrics["train"], abs=1e-5)
        for part in ("validation", "test"):
            for which in ("global", "personalised"):
                scores = theirs.metrics[part][which]
                assert (mine.metrics[part][which] is None) == (scores is None)
                for name, stats in (scores or {}).items():
                    assert mine.metrics[part][which][name] == pytest.approx(stats, abs=1e-5)
        assert mine.clients == {**theirs.clients, "loss": pytest.approx(theirs.clients["loss"])}


@pytest.mark.parametrize("strategy", ["fedavg", "local"])
def test_a_worker_that_dies_at_work_loses_nothing(strategy: str, grid: RayGrid, trap: Path) -> None:
    config = config_of(trap, f"strategy={strategy}", "strategy.fraction_train=0.9")
    trap.write_text("die")  # in the first round
    found, records = run(config, grid)
    assert not trap.exists()
    expected, _ = run(config, InProcessGrid(load_experiment(to_json(config))))
    assert_same(found, expected)
    assert {status for record in records for status in record.clients["status"]} == {"ok"}


def train(
    grid: RayGrid | InProcessGrid, trap: Path, strategy: StackedFedAvg, round: int
) -> Replies:
    initial = to_record(load_experiment(to_json(config_of(trap))).initial)
    replies = grid.send_and_receive(strategy.configure_train(round, initial, ConfigRecord(), grid))
    assert isinstance(replies, Replies)
    return replies


def test_private_state_outlives_its_worker(grid: RayGrid, trap: Path) -> None:
    """Twelve rounds, so that writes are joined; workers are killed before and after that."""
    strategy = Local(seed=0, fraction_train=0.6)
    alone = InProcessGrid(load_experiment(to_json(config_of(trap))))
    for round in range(1, 13):
        train(grid, trap, strategy, round)
        train(alone, trap, strategy, round)
        if round in (3, 12):
            ray.kill(grid.pool._workers[round % 2])
    assert max(len(writes) for writes in grid.pool._writes) < 12
    assert_same(by_client(grid.state()), by_client(alone.state()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of `free`
def test_private_state_that_is_lost_ends_the_run(grid: RayGrid, trap: Path) -> None:
    """Clients that silently began anew would be in the results."""
    train(grid, trap, Local(seed=0), 1)
    ray._private.internal_api.free(grid.pool._writes[0])
    ray.kill(grid.pool._workers[0])
    with pytest.raises(RunError, match="private state of worker 0's clients is lost"):
        train(grid, trap, Local(seed=0), 2)


def test_state_goes_to_other_workers_than_it_came_from(grid: RayGrid, trap: Path) -> None:
    alone = InProcessGrid(load_experiment(to_json(config_of(trap))))
    train(alone, trap, Local(seed=0), 1)
    grid.restore(alone.state())
    assert_same(by_client(grid.state()), by_client(alone.state()))


def test_who_is_late_is_a_failure_and_the_run_goes_on(
    grid: RayGrid, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any(reply.has_error() for reply in train(grid, trap, FedAvg(seed=0), 1))
    with monkeypatch.context() as patch:
        patch.setattr(grid.pool, "_config", replace(grid.pool._config, round_timeout=2.0))
        trap.write_text("sleep")
        late = list(train(grid, trap, FedAvg(seed=0), 2))
    trap.unlink()
    in_time = list(train(grid, trap, FedAvg(seed=0), 3))
    assert {reply.error.reason for reply in late} == {"no reply before the deadline"}
    assert not any(reply.has_error() for reply in in_time)


def test_one_mean_comes_back_from_each_shard(grid: RayGrid, trap: Path) -> None:
    replies = train(grid, trap, FedAvg(seed=0), 1)
    assert len(replies.parts) == sum(-(-int(n) // 4) for n in np.bincount(grid.owner_K))
    assert all(part.means and "arrays" not in part.records for part in replies.parts)


def test_a_whole_run(trap: Path, tmp_path: Path) -> None:
    """With profile and checkpoint; the workers are gone afterwards, and a lost one ends it."""
    words = ["strategy=local", "tracking.profile=true"]
    summary = run_experiment(config_of(trap, *ON_RAY, *words), tmp_path / "there")
    here = run_experiment(config_of(trap, *words), tmp_path / "here")
    assert summary["final"]["personalised"]["accuracy"] == pytest.approx(
        here["final"]["personalised"]["accuracy"], abs=1e-5
    )
    profile = (tmp_path / "there" / "profile.jsonl").read_text().splitlines()
    assert len(profile) == 3
    for line in map(json.loads, profile):
        assert line["train"] > 0 and line["evaluate"] > 0
        assert sum(line[name] for name in [*SECTIONS, "other"]) == pytest.approx(line["seconds"])
    mine, theirs = (load_checkpoint(tmp_path / side).arrays for side in ("here", "there"))
    assert mine.keys() == theirs.keys()

    trap.write_text("die")
    config = config_of(trap, *ON_RAY, *words, "runtime.workers=1", "runtime.max_restarts=0")
    with pytest.raises(RunError, match=r"runtime.max_restarts=0 are used up"):
        run_experiment(config, tmp_path / "lost")
    assert "was lost" in json.loads((tmp_path / "lost/summary.json").read_text())["reason"]


def test_a_server_shows_the_clients_that_live_in_the_workers(
    grid: RayGrid, trap: Path, tmp_path: Path
) -> None:
    there = Server(config=config_of(trap, *ON_RAY, "strategy=local"), run_dir=tmp_path / "there")
    there.federation.grid = grid
    here = Server(config=config_of(trap, "strategy=local"), run_dir=tmp_path / "here")
    for server in (there, here):
        server.run(rounds=1)
        server.run(rounds=1)
    for mine, theirs in zip(here.clients, there.clients, strict=True):
        expected = models.parameters_of(theirs.model())
        for name, value in models.parameters_of(mine.model()).items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=0)
    assert not there.clients[0].model().training


def test_clients_are_dealt_by_their_samples() -> None:
    config = load_config(["partition=quantity", "partition.num_clients=40"])
    experiment = load_experiment(to_json(config))
    counts = pooled(experiment.data).parts["train"].counts_K
    for workers in (1, 2, 3):
        owner = dealt(experiment, workers)
        shares = np.array([counts[owner == worker].sum() for worker in range(workers)])
        assert shares.sum() == counts.sum()
        assert np.ptp(shares) <= counts.max()


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("runtime.workers=7", r"runtime.workers=7 with 1 CPUs and 0 GPUs each: the cluster has 6"),
        ("runtime.gpus_per_worker=1", r"the cluster has 6 CPUs and 0 GPUs"),
    ],
)
def test_more_than_the_cluster_has_is_refused(word: str, reason: str, trap: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        on_ray(config_of(trap, *ON_RAY, word))


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("nowhere.invalid:1", "no such cluster"),
        ("127.0.0.1:1", "no such cluster .*refused"),
        ("127.0.0.1", "must be local, auto or HOST:PORT"),
    ],
)
def test_an_address_where_nobody_listens_is_refused_at_once(
    address: str, reason: str, trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**options: object) -> None:
        raise AssertionError("Ray would try for minutes")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    config = config_of(trap, *ON_RAY, f"runtime.address={address}").runtime
    assert isinstance(config, RayConfig)
    with pytest.raises(ConfigError, match=f"runtime.address={address}: .*{reason}"):
        connect(config)


def test_a_run_that_is_refused_leaves_no_ray_behind(
    trap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next run of the process would find it, and not the cluster that it names."""
    ended: list[bool] = []
    monkeypatch.setattr(ray_pool, "connect", lambda config: (ray, True))
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    with pytest.raises(ConfigError):
        on_ray(config_of(trap, *ON_RAY, "runtime.workers=7"))
    lock = threading.Lock()
    with monkeypatch.context() as patch:
        patch.setitem(models.REGISTRY.factories, "locked", lambda task: lock)
        with pytest.raises(ConfigError, match=r"cannot be sent to workers \(cannot pickle"):
            on_ray(config_of(trap, *ON_RAY))
    assert ended == [True, True]


def test_messages_that_differ_are_one_cohort_for_each_worker(grid: RayGrid, trap: Path) -> None:
    """A strategy may change its messages one by one, and the weights of some."""
    alone = InProcessGrid(load_experiment(to_json(config_of(trap))))
    initial = load_experiment(to_json(config_of(trap))).initial
    replies = []
    for where in (grid, alone):
        messages = list(
            FedAvg(seed=0).configure_train(1, to_record(initial), ConfigRecord(), where)
        )
        for number, message in enumerate(messages):
            message.content["note"] = ConfigRecord({"number": number})
        messages[2].content["arrays"] = to_record({n: p + 1 for n, p in initial.items()})
        replies.append(where.send_and_receive(messages))
    there, here = replies
    assert isinstance(there, Replies) and isinstance(here, Replies)
    assert len(there.parts) == sum(-(-int(n) // 4) for n in np.bincount(grid.owner_K))
    for name, stacked in here.arrays().items():
        torch.testing.assert_close(there.arrays()[name], stacked, rtol=0, atol=1e-5)


def test_a_node_that_is_asked_twice_answers_twice(grid: RayGrid, trap: Path) -> None:
    initial = to_record(load_experiment(to_json(config_of(trap))).initial)
    sent = list(FedAvg(seed=0).configure_train(1, initial, ConfigRecord(), grid))
    again = list(FedAvg(seed=0).configure_train(1, initial, ConfigRecord(), grid))
    replies = list(grid.send_and_receive([*sent, *again[:2]]))
    assert len(replies) == len(sent) + 2
    assert not any(reply.has_error() for reply in replies)


def test_parcels_do_not_grow_with_what_their_clients_share() -> None:
    """What is sent to a worker: weights by reference, once; personal records once each."""
    store: list[Any] = []

    def put(arrays: Any) -> int:
        store.append(arrays)
        return len(store) - 1

    sizes = []
    for count in (10, 1000):
        store.clear()
        records: dict[str, RecordType] = {
            "arrays": to_record({"w": np.zeros(1000, np.float32)}), "config": ConfigRecord(),
        }  # fmt: skip
        told = {"guidance": to_record({"prior": np.ones(500, np.float32)})}
        sent = Broadcast(range(2, 2 + count), "train", records, personal=[told] * count)
        given = parcels(sent, put)
        assert len(store) == 2
        sizes.append(len(pickle.dumps(given)))
    assert sizes[1] < sizes[0] + 40 * 1000  # a place, a node and a reference for each client


def test_the_start_of_workers_does_not_count_against_their_clients(trap: Path) -> None:
    # To start takes longer than that.
    grid = on_ray(config_of(trap, *ON_RAY, "runtime.workers=1", "runtime.round_timeout=1"))
    try:
        assert not any(reply.has_error() for reply in train(grid, trap, FedAvg(seed=0), 1))
    finally:
        grid.close()
