"""Strategies that average weights: mock replies in, the formula written out as the oracle."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedmoe.messages.arrays import CohortRecord, Stack, to_record
from fedmoe.messages.seams import ensure_task_identity
from fedmoe.simulations import ContextGrid
from fedmoe.strategies import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedProx,
    FedYogi,
    Local,
    Reptile,
    StackedFedAvg,
)

COUNTS = [1, 5, 10]
GENERATOR = np.random.default_rng(0)
WEIGHTS = [
    {
        "w": GENERATOR.normal(size=(2, 3)).astype(np.float32),
        "b": GENERATOR.normal(size=2).astype(np.float32),
    }
    for _ in COUNTS
]
GLOBAL = {"w": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}


def grid(clients: int = 3) -> ContextGrid:
    return ContextGrid("{}", clients, lambda messages, contexts: [])


def reply(node: int, **records: Any) -> Message:
    ensure_task_identity()
    return Message(RecordDict(records), reply_to=Message(RecordDict(), node, "train"))


def metrics(count: int, loss: float) -> MetricRecord:
    return MetricRecord({"num-examples": count, "loss": loss})


def replies(stacked: bool) -> list[Message]:
    stack = Stack({k: torch.from_numpy(np.stack([w[k] for w in WEIGHTS])) for k in WEIGHTS[0]})
    return [
        reply(
            node + 2,
            arrays=CohortRecord(stack, node) if stacked else to_record(WEIGHTS[node]),
            metrics=metrics(count, float(node)),
        )
        for node, count in enumerate(COUNTS)
    ]


def mean_by_examples() -> dict[str, NDArray[np.float64]]:
    total = sum(COUNTS)
    return {
        name: sum(
            n / total * w[name].astype(np.float64) for n, w in zip(COUNTS, WEIGHTS, strict=True)
        )  # type: ignore[misc]
        for name in GLOBAL
    }


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("strategy", [FedAvg(seed=0), FedProx(seed=0, proximal_mu=0.1)])
def test_weights_are_averaged_by_examples(strategy: StackedFedAvg, stacked: bool) -> None:
    failed = Message(Error(2, "no"), reply_to=Message(RecordDict(), 9, "train"))
    arrays, merged = strategy.aggregate_train(1, [*replies(stacked), failed])
    assert arrays is not None and merged is not None
    for name, expected in mean_by_examples().items():
        np.testing.assert_allclose(arrays[name].numpy(), expected, rtol=1e-5, atol=1e-6)
        assert arrays[name].dtype == "float32"
    assert merged == {"loss": pytest.approx((0 * 1 + 1 * 5 + 2 * 10) / 16)}


def test_the_order_of_replies_does_not_change_a_bit() -> None:
    strategy = FedAvg(seed=0)
    one, _ = strategy.aggregate_train(1, replies(stacked=False))
    other, _ = strategy.aggregate_train(1, replies(stacked=False)[::-1])
    assert one == other


def test_no_reply_no_change() -> None:
    assert FedAvg(seed=0).aggregate_train(1, []) == (None, None)
    assert FedAvg(seed=0).aggregate_evaluate(1, []) is None


Moments = dict[str, NDArray[Any]]
ETA, BETA_1, BETA_2, TAU = 0.05, 0.9, 0.99, 1e-2


def adam(round: int, delta: Any, first: Any, second: Any) -> tuple[Any, Any, Any]:
    first = BETA_1 * first + (1 - BETA_1) * delta
    second = BETA_2 * second + (1 - BETA_2) * delta**2
    rate = ETA * np.sqrt(1 - BETA_2 ** (round + 1)) / (1 - BETA_1 ** (round + 1))
    return rate * first / (np.sqrt(second) + TAU), first, second


def yogi(round: int, delta: Any, first: Any, second: Any) -> tuple[Any, Any, Any]:
    first = BETA_1 * first + (1 - BETA_1) * delta
    second = second - (1 - BETA_2) * delta**2 * np.sign(second - delta**2)
    return ETA * first / (np.sqrt(second) + TAU), first, second


def adagrad(round: int, delta: Any, first: Any, second: Any) -> tuple[Any, Any, Any]:
    second = second + delta**2
    return ETA * delta / (np.sqrt(second) + TAU), first, second


def reptile(round: int, delta: Any, first: Any, second: Any) -> tuple[Any, Any, Any]:
    return 0.3 * delta, first, second


@pytest.mark.parametrize(
    ("strategy", "rule"),
    [
        (FedAdam(seed=0, eta=ETA, beta_1=BETA_1, beta_2=BETA_2, tau=TAU), adam),
        (FedYogi(seed=0, eta=ETA, beta_1=BETA_1, beta_2=BETA_2, tau=TAU), yogi),
        (FedAdagrad(seed=0, eta=ETA, tau=TAU), adagrad),
        (Reptile(seed=0, epsilon=0.3), reptile),
    ],
    ids=["fedadam", "fedyogi", "fedadagrad", "reptile"],
)
def test_server_optimisers_follow_their_formulas(strategy: StackedFedAvg, rule: Any) -> None:
    current: Moments = {k: v.astype(np.float64) for k, v in GLOBAL.items()}
    first = {k: np.zeros_like(v) for k, v in current.items()}
    second = {k: np.zeros_like(v) for k, v in current.items()}
    record = to_record(GLOBAL)
    for round in (1, 2, 3):
        list(strategy.configure_train(round, record, ConfigRecord(), grid()))
        arrays, _ = strategy.aggregate_train(round, replies(stacked=True))
        assert arrays is not None
        record = arrays
        for name, mean in mean_by_examples().items():
            delta = mean - current[name]
            step, first[name], second[name] = rule(round, delta, first[name], second[name])
            current[name] = current[name] + step
            np.testing.assert_allclose(arrays[name].numpy(), current[name], rtol=1e-4, atol=1e-6)


def test_reptile_that_goes_all_the_way_is_fedavg() -> None:
    strategies = Reptile(seed=0, epsilon=1.0), FedAvg(seed=0)
    records = []
    for strategy in strategies:
        list(strategy.configure_train(1, to_record(GLOBAL), ConfigRecord(), grid()))
        records.append(strategy.aggregate_train(1, replies(stacked=True)))
    assert records[0] == records[1]


def test_fedprox_tells_clients_its_mu() -> None:
    strategy = FedProx(seed=0, proximal_mu=0.25)
    messages = strategy.configure_train(3, to_record(GLOBAL), ConfigRecord(), grid())
    configs = [message.content["config"] for message in messages]
    assert all(config == {"proximal-mu": 0.25, "server-round": 3} for config in configs)


def test_each_message_has_records_of_its_own() -> None:
    messages = list(FedAvg(seed=0).configure_train(1, to_record(GLOBAL), ConfigRecord(), grid()))
    messages[0].content.config_records["config"]["server-round"] = 99
    del messages[0].content["arrays"]
    assert messages[1].content["config"] == {"server-round": 1}
    assert "arrays" in messages[1].content


def sampled(strategy: StackedFedAvg, round: int, clients: int) -> list[int]:
    return list(strategy.sample(round, grid(clients)))


def test_sampling_repeats_with_the_seed_and_varies_with_the_round() -> None:
    one = FedAvg(seed=1, fraction_train=0.3)
    again, other = FedAvg(seed=1, fraction_train=0.3), FedAvg(seed=2, fraction_train=0.3)
    rounds = [sampled(one, r, 50) for r in range(1, 20)]
    assert rounds == [sampled(again, r, 50) for r in range(1, 20)]
    assert rounds != [sampled(other, r, 50) for r in range(1, 20)]
    assert len({tuple(nodes) for nodes in rounds}) > 15
    assert all(len(set(nodes)) == 15 and set(nodes) <= set(range(2, 52)) for nodes in rounds)
    # Every client has its turn: nobody is left out for ever by an off-by-one.
    everyone = set().union(*(sampled(one, r, 50) for r in range(1, 60)))
    assert everyone == set(range(2, 52))


@pytest.mark.parametrize(("fraction", "expected"), [(1.0, 7), (0.5, 3), (0.01, 1)])
def test_share_of_clients_is_rounded_down_to_one_at_least(fraction: float, expected: int) -> None:
    assert len(sampled(FedAvg(seed=0, fraction_train=fraction), 1, 7)) == expected


@pytest.mark.parametrize(("strategy", "travels"), [(FedAvg(seed=0), True), (Local(seed=0), False)])
def test_everybody_evaluates_and_local_sends_no_weights(
    strategy: StackedFedAvg, travels: bool
) -> None:
    record = to_record(GLOBAL)
    for configure in (strategy.configure_train, strategy.configure_evaluate):
        messages = list(configure(1, record, ConfigRecord(), grid(5)))
        assert [m.metadata.dst_node_id for m in messages] == [2, 3, 4, 5, 6]
        assert all(("arrays" in m.content) == travels for m in messages)


def test_local_averages_metrics_only() -> None:
    content = [reply(node + 2, metrics=metrics(n, float(node))) for node, n in enumerate(COUNTS)]
    arrays, merged = Local(seed=0).aggregate_train(1, content)
    assert arrays is None and merged == {"loss": pytest.approx(25 / 16)}


def test_evaluation_metrics_are_averaged_by_examples() -> None:
    content = [reply(node + 2, metrics=metrics(n, float(node))) for node, n in enumerate(COUNTS)]
    assert FedAvg(seed=0).aggregate_evaluate(1, content) == {"loss": pytest.approx(25 / 16)}


def test_whole_numbers_are_not_averaged_into_fractions() -> None:
    record = to_record({"steps": np.array([3, 4])})
    arrays, _ = FedAvg(seed=0).aggregate_train(
        1, [reply(2, arrays=record, metrics=metrics(1, 0.0))]
    )
    assert arrays is not None and arrays["steps"].numpy().tolist() == [3, 4]
