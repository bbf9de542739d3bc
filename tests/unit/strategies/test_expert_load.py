"""How a federation's use of its experts is told and gone by, in plain loops over samples."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from mixture_oracle import PlainClients, answer, experts_of, loss_of, total
from mixture_runs import SIZES, experiment_of, run
from test_mixture_messages import Recording
from torch import Tensor

from fedmoe.clients.algorithms.mixture import routed_examples
from fedmoe.clients.job import Job
from fedmoe.clients.load import routing_sums
from fedmoe.clients.requests import Settings, TrainRequest
from fedmoe.clients.states import StackedStates
from fedmoe.messages.arrays import from_record, to_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.seams import RecordType
from fedmoe.models import MixtureOfExperts
from fedmoe.models.routing import Routing
from fedmoe.simulations import InProcessGrid
from fedmoe.strategies import StackedFedAvg, build_strategy

RATE, WEIGHT, TOP = 0.3, 2.0, 2
ONE_STEP = [
    "model=moe", "model.num_experts=3", "model.hidden=[4]", "rounds=3", "training.batch_size=64",
    "training.epochs=1", "training.momentum=0", "training.weight_decay=0",
    f"training.learning_rate={RATE}", "training.reset_optimizer=true",
]  # fmt: skip
STRATEGIES = {
    "fedavg": ["strategy=fedavg"],
    "fedprox": ["strategy=fedprox"],  # whose term has no gradient in a first step
    "fedmoe": [
        "strategy=fedmoe", "strategy.gate=shared", "strategy.warm_up_rounds=0",
        "strategy.gate_decay=0", "strategy.class_strength=null",
    ],
}  # fmt: skip
BALANCED = [
    "model/router=softmax", f"model.router.top_k={TOP}", f"model.losses.balance={WEIGHT}",
    "model.losses.importance=0",
    "model.losses.scope=federation",
]  # fmt: skip


def route(params: Mapping[str, Tensor], x: Tensor) -> tuple[list[int], Tensor]:
    """Who answers, and the logits."""
    logits = params["router.weight"] @ x + params["router.bias"]
    score = logits.softmax(0).detach() + params.get("router.balance_bias", torch.zeros(3))
    return score.argsort(descending=True)[:TOP].tolist(), logits


def shares(params: Mapping[str, Tensor], xs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Of slots, and the mean probabilities."""
    load, importance = torch.zeros(3).double(), torch.zeros(3).double()
    for x in xs:
        chosen, logits = route(params, x)
        for e in chosen:
            load[e] += 1 / (TOP * len(xs))
        importance = importance + logits.softmax(0) / len(xs)
    return {"load": load, "importance": importance}


def step(
    start: Mapping[str, Tensor], samples: list[tuple[Tensor, Tensor]], told: Tensor | None
) -> dict[str, Tensor]:
    """One step down the mean sample loss plus E sum_e f_e P_e, f being the federation's load."""
    own = {name: value.double().clone().requires_grad_() for name, value in start.items()}
    losses = []
    experts = [
        {n.removeprefix("experts."): v[e] for n, v in own.items() if n.startswith("experts.")}
        for e in range(3)
    ]
    assert len(experts_of(start)) == 3
    for x, y in samples:
        chosen, logits = route(own, x)
        weight = logits[chosen].softmax(0)
        pairs = zip(weight, chosen, strict=True)
        losses.append(loss_of(total([w * answer(experts[e], x) for w, e in pairs]), y))
    used = shares(own, [x for x, _ in samples])
    load = used["load"] if told is None else told.double()
    balance = 3 * (load.detach() * used["importance"]).sum()
    (total(losses) / len(losses) + WEIGHT * balance).backward()  # type: ignore[no-untyped-call]
    return {n: (v - RATE * v.grad).detach() for n, v in own.items() if v.grad is not None}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_loss_goes_by_the_load_that_was_told(strategy: str) -> None:
    words = [*ONE_STEP, *STRATEGIES[strategy], *BALANCED]
    grid = Recording(experiment_of(words))
    found = run(words, grid=grid)
    clients, experiment = PlainClients(grid.experiment), grid.experiment
    before, told = dict(experiment.shared), None
    trains = [one for one in grid.seen if one[0] == "train"]
    for round in range(3):
        own = trains[round * 2 * len(SIZES) : (round + 1) * 2 * len(SIZES)]
        sums = {"load": torch.zeros(3).double(), "importance": torch.zeros(3).double()}
        for _, way, client, content in own:
            if way == "down":
                assert ("expert-load" in content) == (told is not None)
                if told is not None:
                    came = from_record(content.array_records["expert-load"])
                    for name, value in came.items():
                        torch.testing.assert_close(value.double(), told[name], rtol=0, atol=1e-5)
                continue
            samples = clients.samples(client)
            trained = from_record(content.array_records["arrays"])
            expected = step(before, samples, None if told is None else told["load"])
            for name, value in expected.items():
                torch.testing.assert_close(trained[name].double(), value, rtol=0, atol=1e-5)
            mine = from_record(content.array_records["expert-load"])
            doubles = {name: value.double() for name, value in trained.items()}
            for name, value in shares(doubles, [x for x, _ in samples]).items():
                torch.testing.assert_close(mine[name].double(), value, rtol=0, atol=1e-5)
                sums[name] += len(samples) * value
        whole = sum(clients.count(client) for client in range(clients.number))
        told = {name: value / whole for name, value in sums.items()}
        before = found.arrays[round]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_bias_of_a_loss_free_router_goes_by_the_federation_s_load(strategy: str) -> None:
    router = ["model/router=loss_free", f"model.router.top_k={TOP}", "model.router.rate=0.25"]
    words = [*ONE_STEP, *STRATEGIES[strategy], *router, "model.losses.balance=0", "rounds=2"]
    grid = Recording(experiment_of(words))
    found = run(words, grid=grid)
    ups = [c for kind, way, _, c in grid.seen if (kind, way) == ("train", "up")]
    downs = [c for kind, way, _, c in grid.seen if (kind, way) == ("train", "down")]
    first, second = ups[: len(SIZES)], ups[len(SIZES) :]
    federation = from_record(downs[-1].array_records["expert-load"])["load"]
    differ = 0
    for before, told, contents in (
        (torch.zeros(3), None, first), (found.arrays[0]["router.balance_bias"], federation, second),
    ):  # fmt: skip
        for content in contents:
            own = from_record(content.array_records["expert-load"])["load"]
            went_by = own if told is None else told
            expected = [
                b + 0.25 * float(np.sign(float(went_by.mean()) - one))
                for b, one in zip(before.tolist(), went_by.tolist(), strict=True)
            ]
            bias = from_record(content.array_records["arrays"])["router.balance_bias"]
            assert bias.tolist() == pytest.approx(expected, abs=1e-5)
            differ += bool(((own.mean() - own).sign() != (went_by.mean() - went_by).sign()).any())
    assert differ, "a client's own load must differ for this to mean anything"


BAD_LOADS = {
    "long": {"load": np.ones(4, np.float32), "importance": np.ones(4, np.float32)},
    "half": {"load": np.ones(3, np.float32)},
    "more": {name: np.ones(3, np.float32) for name in ("load", "importance", "x")},
    "scalar": {"load": np.float32(1), "importance": np.float32(1)},
}


@pytest.mark.parametrize("bad", BAD_LOADS.values(), ids=BAD_LOADS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_malformed_load_is_refused(
    strategy: str, bad: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]
) -> None:
    experiment = experiment_of([*ONE_STEP, *STRATEGIES[strategy], *BALANCED])
    config = ConfigRecord({"server-round": 1})
    load = to_record({name: np.asarray(value) for name, value in bad.items()})
    records: dict[str, RecordType] = {
        "arrays": to_record(experiment.shared),
        "config": config,
        "expert-load": load,
    }
    sent = Broadcast([2, 3], "train", records)
    for reply in InProcessGrid(experiment).send_and_receive(sent):
        assert reply.has_error()
        assert (reply.error.reason or "").startswith("ValueError: the load told is {")
        assert "expected load and importance of (3,)" in (reply.error.reason or "")


@pytest.mark.parametrize("bad", BAD_LOADS.values(), ids=BAD_LOADS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_nobody_could_read_is_not_told_back(
    strategy: str, bad: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]
) -> None:
    """All of a round's clients may be wrong in one way, if there is only one."""
    experiment = experiment_of([*ONE_STEP, *STRATEGIES[strategy], *BALANCED])
    built, grid = build_strategy(experiment.config, experiment.data.task), InProcessGrid(experiment)
    assert isinstance(built, StackedFedAvg)
    sent = built.configure_train(1, to_record(experiment.shared), ConfigRecord(), grid)
    replies = list(grid.send_and_receive(sent))[:1]
    replies[0].content["expert-load"] = to_record({n: np.asarray(v) for n, v in bad.items()})
    merged, _ = built.aggregate_train(1, replies)
    assert merged is not None and built.load == {}


def test_the_load_of_the_warm_up_is_forgotten() -> None:
    """It is that of a single expert, whatever is made of it."""
    words = [
        *ONE_STEP, "strategy=fedmoe", "strategy.gate=shared", "strategy.warm_up_rounds=2", *BALANCED
    ]  # fmt: skip
    grid = Recording(experiment_of(words))
    run(words, grid=grid)
    told = [
        "expert-load" in content
        for kind, way, client, content in grid.seen
        if (kind, way, client) == ("train", "down", 0)
    ]
    assert told == [False, True, False]


def test_many_clients_are_routed_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*ONE_STEP, *STRATEGIES["fedavg"], *BALANCED, "training.cohort_size=2"]
    experiment = experiment_of(words)
    generator = torch.Generator().manual_seed(5)
    clients = np.arange(len(SIZES))[::-1].copy()
    params = {
        name: torch.randn(len(clients), *value.shape, generator=generator)
        for name, value in experiment.initial.items()
    }
    request = TrainRequest(clients=clients, settings=Settings(), params=params)
    job = Job(experiment, request, StackedStates())
    seen, inner = list[int](), MixtureOfExperts.route

    def watched(self: MixtureOfExperts, own: Mapping[str, Tensor], x: Tensor) -> Routing:
        seen.append(len(x))
        return inner(self, own, x)

    monkeypatch.setattr(MixtureOfExperts, "route", watched)
    found = routing_sums(job, params)
    assert max(seen) == 2 and sum(seen) == len(clients)
    torch.testing.assert_close(routed_examples(job, params), found.load_CE)
    plain = PlainClients(experiment)
    for place, client in enumerate(clients.tolist()):
        own = {name: value[place].double() for name, value in params.items()}
        xs = [x for x, _ in plain.samples(client)]
        expected = shares(own, xs)
        slots, probs = found.load_CE[place].double(), found.importance_CE[place].double()
        count = len(xs)
        torch.testing.assert_close(slots, TOP * count * expected["load"], rtol=0, atol=1e-6)
        torch.testing.assert_close(probs / count, expected["importance"], rtol=0, atol=1e-6)
