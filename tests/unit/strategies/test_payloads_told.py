"""Which payloads are told in which round, in how many bytes, and that they are believed."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message
from mixture_runs import one_by_one
from numpy.typing import NDArray

from fedmoe.clients import load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.insight import Guidance, Memory, MetaLearner
from fedmoe.insight.payloads.products import unpacked
from fedmoe.insight.policies import Policy
from fedmoe.messages.arrays import to_record
from fedmoe.schema import MetaLearnerConfig
from fedmoe.simulations import ContextGrid, InProcessGrid
from fedmoe.strategies import build_strategy
from fedmoe.strategies.insight import Insights

WORDS = [
    "strategy=fedavg", "model=moe", "model.num_experts=3", "model.hidden=[4]",
    "partition.num_clients=4", "insight.public_samples=7", "insight.every=2",
    "insight.sketch_rounds=2", "insight.sketch_size=5", "meta_learner=none", "training.epochs=1",
]  # fmt: skip
PAYLOADS = ["prototypes", "gaussians", "expert_load", "gradient_sketch", "logits"]
Told = dict[int, dict[str, NDArray[Any]]]


def told(
    grid: InProcessGrid | ContextGrid,
    words: list[str],
    rounds: int,
    meta_learner: MetaLearner | None = None,
) -> list[Told]:
    """Each round's payload arrays by node, all of which the strategy has believed."""
    config = load_config(words)
    experiment = load_experiment(to_json(config))
    strategy = build_strategy(config, experiment.data.task, meta_learner)
    assert isinstance(strategy, Insights)
    arrays, found = to_record(experiment.shared), list[Told]()
    for round in range(1, rounds + 1):
        sent = strategy.configure_train(round, arrays, ConfigRecord(), grid)
        replies = list[Message](grid.send_and_receive(sent))
        for reply in replies:
            strategy.check_reply(reply)
        found.append({reply.metadata.src_node_id: payload_of(reply) for reply in replies})
        merged, _ = strategy.aggregate_train(round, replies)
        arrays = merged or arrays
    return found


def payload_of(reply: Message) -> dict[str, NDArray[Any]]:
    record = reply.content.get("payload", ArrayRecord())
    assert isinstance(record, ArrayRecord)
    return {name: array.numpy() for name, array in record.items()}


def with_payloads(*names: str) -> list[str]:
    return [*WORDS, f"insight.payloads=[{','.join(names)}]"]


@pytest.mark.parametrize("name", PAYLOADS)
def test_as_many_bytes_are_sent_as_were_known_beforehand(name: str) -> None:
    words = [*with_payloads(name), "insight.every=1"]
    experiment = load_experiment(to_json(load_config(words)))
    expected = experiment.payloads.by_name[name].nbytes
    (first,) = told(InProcessGrid(experiment), words, 1)
    assert [sum(a.nbytes for a in own.values()) for own in first.values()] == [expected] * 4


def names_of(arrays: Iterable[str]) -> set[str]:
    owner = {"prototype": "prototypes", "gaussian": "gaussians", "expert": "expert_load"}
    return {owner.get(name.split("_")[0], name) for name in arrays}


def test_data_are_told_of_once_and_models_when_due() -> None:
    words = with_payloads(*PAYLOADS)
    rounds = told(InProcessGrid(load_experiment(to_json(load_config(words)))), words, 4)
    of_data = {"prototypes", "gaussians"}
    expected = [
        of_data | {"expert_load", "gradient_sketch"},
        {"expert_load", "gradient_sketch", "logits"},
        {"expert_load"},
        {"expert_load", "logits"},
    ]
    for round, names in zip(rounds, expected, strict=True):
        assert [names_of(own) for own in round.values()] == [names] * 4


def test_a_cohort_tells_what_single_clients_tell() -> None:
    words = with_payloads(*PAYLOADS)
    text = to_json(load_config(words))
    together = told(InProcessGrid(load_experiment(text)), words, 2)
    alone = told(ContextGrid(text, 4, answer=one_by_one), words, 2)
    for one, other in zip(together, alone, strict=True):
        assert one.keys() == other.keys()
        for node in one:
            assert one[node].keys() == other[node].keys()
            for name, array in one[node].items():
                np.testing.assert_allclose(array, other[node][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", ["fedmoe", "fedem", "ifca", "insight", "fedproto"])
def test_strategies_of_all_kinds_tell_of_their_models(strategy: str) -> None:
    words = [
        f"strategy={strategy}", "model=mlp", "model.hidden=[4]", *WORDS[4:],
        "insight.payloads=[expert_load,gradient_sketch,logits]", "insight.every=1",
    ]  # fmt: skip
    (first,) = told(InProcessGrid(load_experiment(to_json(load_config(words)))), words, 1)
    has_experts = strategy in ("fedmoe", "fedem", "ifca")
    names = {"gradient_sketch", "logits", *(["expert_load"] if has_experts else [])}
    for own in first.values():
        assert names_of(own) == names
        assert np.linalg.norm(own["gradient_sketch"]) == pytest.approx(1)


class Bases(Policy):
    """Tells a basis after the first round, and another after the third."""

    name = "bases"
    reads = ("spreads",)

    def __init__(self) -> None:
        super().__init__()
        draw = np.random.default_rng(0)
        self.made = [draw.standard_normal((64, 3)).astype(np.float32) for _ in range(2)]
        self.advice = Guidance()

    def learn(self, memory: Memory, round: int) -> None:
        self.advice = self.advice.with_parts({"gaussian_basis": self.made[int(round >= 3)].copy()})

    def advise(self, client_id: int) -> Guidance:
        return self.advice if client_id != 3 else Guidance()


@pytest.mark.parametrize("one", [False, True], ids=["cohort", "one by one"])
def test_spreads_are_told_by_whom_a_basis_was_told_and_again_by_another(one: bool) -> None:
    words = [*with_payloads("scalars"), "insight.rank=3", "insight.min_count_squares=1"]
    text = to_json(load_config(words))
    experiment, bases = load_experiment(text), Bases()
    learner = MetaLearner(MetaLearnerConfig())
    learner.policies.append(bases)
    grid = ContextGrid(text, 4, answer=one_by_one) if one else InProcessGrid(experiment)
    rounds = told(grid, words, 5, learner)
    asked = [[grid.client_id(node) for node, arrays in round.items() if arrays] for round in rounds]
    assert [sorted(own) for own in asked] == [[], [0, 1, 2], [], [0, 1, 2], []]
    for round, basis in ((1, bases.made[0]), (3, bases.made[1])):
        for node, arrays in rounds[round].items():
            if not arrays:
                continue
            x_nD, y_n = experiment.data.client(grid.client_id(node), "train")
            for label in range(10):
                z_nr = x_nD[y_n == label] @ basis
                found = unpacked(arrays["spread_products"][label])
                np.testing.assert_allclose(found, z_nr.T @ z_nr, rtol=1e-4, atol=1e-3)
