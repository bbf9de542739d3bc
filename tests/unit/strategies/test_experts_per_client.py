"""FedMoE whose clients have room for some of the experts: what travels, and what may come back."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict
from mixture_runs import MODELS, SIZES, Run, assert_close, experiment_of, run
from numpy.typing import NDArray
from test_expert_replies import EXAMPLES, LIMITS, Held, columns, over_network
from test_mixture_messages import Recording
from typing_extensions import override

from fedmoe.data.federation import Ints
from fedmoe.errors import ConfigError
from fedmoe.guard import ReplyGuard
from fedmoe.messages.arrays import Stack, tensors_of, to_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.replies import Replies
from fedmoe.models import Parameters
from fedmoe.simulations import InProcessGrid
from fedmoe.strategies import build_strategy
from fedmoe.strategies.assignment import ExpertAssignment
from fedmoe.strategies.experts import ExpertAveraging

E, M = 4, 2
WORDS = [
    "strategy=fedmoe", f"strategy.num_experts={E}", f"strategy.experts_per_client={M}",
    "strategy.warm_up_rounds=2", "strategy.gate_from=4", "strategy.strengths=[40.0,2.0]",
    "rounds=7",
]  # fmt: skip
MLP = MODELS["mlp"]


def recorded(words: Sequence[str]) -> tuple[Recording, Run]:
    grid = Recording(experiment_of(words))
    found = run(words, grid=grid)
    assert not any(reason for round in found.reasons for reason in round)
    return grid, found


def sizes(content: RecordDict) -> tuple[int, int]:
    """Bytes of a message's experts, and of its gate's rows, without what says their shape."""
    arrays = content.array_records["arrays"]
    experts, gate = (
        sum(array.numpy().nbytes for name, array in arrays.items() if name.startswith(part))
        for part in ("experts.", "router.")
    )
    return experts, gate


def rows_of(arrays: Mapping[str, NDArray[Any]]) -> list[set[bytes]]:
    """By expert, all that belongs to it."""
    return [{array[e].tobytes() for array in arrays.values()} for e in range(E)]


def test_a_client_is_sent_its_own_experts_and_nothing_else_of_the_mixture() -> None:
    grid, found = recorded([*WORDS, *MLP, "strategy.fraction_train=0.5"])
    experiment = grid.experiment
    all_of = sizes(RecordDict({"arrays": to_record(experiment.shared)}))
    models = [experiment.shared, *found.arrays]  # before each round, and after the last
    seen, number = set[tuple[int, ...]](), 0
    for kind, way, _, content in grid.seen:
        if way == "up":
            if kind == "train" and number > 2:
                assert set(content.array_records) == {"arrays", "experts", "strengths"}
                assert set(content.array_records["experts"]) == {"index", "examples", "fit"}
                assert sizes(content) == tuple(size * M / E for size in all_of)
            continue
        config = dict(content.config_records["config"])
        number = int(config["server-round"])  # type: ignore[arg-type]
        assert config.keys() == {"server-round", "prior-strength"}
        assert set(content.array_records) == {"arrays", "experts"}
        index = content.array_records["experts"]["index"].numpy().tolist()
        model = models[number if kind == "evaluate" else number - 1]
        arrays = {n: a.numpy() for n, a in content.array_records["arrays"].items()}
        for name, array in arrays.items():
            assert array.tobytes() == model[name].numpy()[index].tobytes()
        if number + (kind == "evaluate") <= 2:
            assert index == [0]
            continue
        assert len(index) == M and index == sorted(set(index))
        assert sizes(content) == tuple(size * M / E for size in all_of)
        whole = rows_of({name: value.numpy() for name, value in model.items()})
        sent = {row.tobytes() for array in arrays.values() for row in array}
        for e in set(range(E)) - set(index):
            others = set().union(*(whole[own] for own in index))
            assert not sent & (whole[e] - others)
        seen.add(tuple(index))
    assert len(seen) > 2


@pytest.mark.parametrize("fraction", ["1.0", "0.5"])
def test_room_for_all_experts_is_the_same_as_no_limit(fraction: str) -> None:
    words = [*WORDS, f"strategy.fraction_train={fraction}"]
    some = run([*words, f"strategy.experts_per_client={E}"])
    everything = run([*words, "strategy.experts_per_client=null"])
    for mine, theirs in zip(some.arrays, everything.arrays, strict=True):
        assert_close(mine, theirs)
    assert some.strategy.strength == everything.strategy.strength
    mine_of, theirs_of = some.scores(), everything.scores()
    assert "test-personalised-loss" in mine_of and "test-global-loss" not in mine_of
    for name, column in mine_of.items():
        np.testing.assert_allclose(column, theirs_of[name], rtol=0, atol=1e-5)


GATES = {
    "shared": ["strategy.gate=shared", "strategy.class_strength=null"],
    "local": ["strategy.gate=local", "training.reset_optimizer=false"],
    "prior": ["model/router=prior"],
}
ROUTERS = ["softmax", "switch", "loss_free", "noisy"]


@pytest.mark.parametrize(
    ("gate", "router"),
    [(gate, router) for gate in ("shared", "local") for router in ROUTERS] + [("prior", "prior")],
)
def test_each_gate_and_router_works_and_one_by_one_is_the_same(gate: str, router: str) -> None:
    words = [
        *WORDS, "model=moe", f"model.num_experts={E}", "model.hidden=[4]",
        f"model/router={router}", "model.losses.balance=0.01", "model.losses.scope=federation",
        *GATES[gate],
    ]  # fmt: skip
    together, alone = run(words), run(words, alone=True)
    assert not any(reason for round in together.reasons for reason in round)
    assert together.strategy.load["load"].shape == (E,)
    for mine, theirs in zip(together.arrays, alone.arrays, strict=True):
        assert_close(mine, theirs)
    scores, expected = together.scores(), alone.scores()
    assert "test-personalised-loss" in scores and "test-global-loss" not in scores
    for name, column in expected.items():
        np.testing.assert_allclose(scores[name], column, rtol=0, atol=1e-5)


def test_an_expert_that_a_client_does_not_hold_has_done_nothing_there() -> None:
    grid, found = recorded(WORDS)
    kind = grid.experiment.router
    assert kind is not None
    last, count = found.standing.round, 0
    index: dict[int, list[int]] = {}
    for message, way, client, content in grid.seen:
        if message != "evaluate":
            continue
        if way == "down":
            if content.config_records["config"]["server-round"] == last:
                index[client] = content.array_records["experts"]["index"].numpy().tolist()
        elif client in index:
            sums = content.array_records["routing"]["sums"].numpy()
            load_E = kind.kind.split(sums[None]).load_CE[0]
            assert load_E.shape == (E,)
            away = [e for e in range(E) if e not in index[client]]
            assert load_E[away].tolist() == [0.0] * (E - M) and load_E.sum() > 0
            count += 1
    assert count == len(SIZES)


# ---------------------------------------------------------------- who comes late, and who fails


class Odd(InProcessGrid):
    """Some clients are not there at first; one always fails.

    Attributes:
        asked: what each client was sent to train, by round.
    """

    late, failing = (4, 5), 1

    def __init__(self, words: Sequence[str], fails: bool) -> None:
        super().__init__(experiment_of(words))
        self.fails, self.asked = fails, list[dict[int, list[int]]]()

    @override
    def get_node_ids(self) -> range:
        nodes = super().get_node_ids()
        return nodes if len(self.asked) >= 4 else nodes[: -len(self.late)]

    @override
    def answer(self, messages: Any, clients: Ints) -> Replies:
        if messages.kind == "train":
            own = messages.personal or []
            index = [tensors_of(one["experts"])["index"].tolist() for one in own]
            self.asked.append(dict(zip(clients.tolist(), index, strict=bool(own))))
        replies = super().answer(messages, clients)
        if self.fails and messages.kind == "train":
            for part in replies.parts:
                stack = part.records["experts"]
                assert isinstance(stack, Stack)
                wrong = clients[part.rows] == self.failing
                stack.tensors["examples"][torch.from_numpy(wrong)] = -1.0
        return replies


@pytest.mark.parametrize("fails", [False, True])
def test_late_and_failing_clients(fails: bool) -> None:
    """Who is new tries all experts before it moves any; who fails is not remembered."""
    words = [*WORDS, "runtime.max_strikes=null"]  # it is asked on and on
    grid = Odd(words, fails)
    found = run(words, grid=grid)
    for reasons, asked in zip(found.reasons, found.sampled, strict=True):
        failed = [client for client, why in zip(asked, reasons, strict=True) if why]
        assert failed == ([grid.failing] if fails else [])
    assert found.sampled[3] == [0, 1, 2, 3] and found.sampled[4] == list(range(6))
    assignment = found.strategy.assignment
    assert sorted(assignment.nodes) == [c + 2 for c in range(6) if not fails or c != grid.failing]
    for client in grid.late:
        held = [round[client] for round in grid.asked[4:]]
        assert set().union(*map(set, held)) == set(range(E))
    for client in range(4):
        assert all(len(round[client]) == M for round in grid.asked[2:])
    assert np.isfinite(found.scores()["test-personalised-loss"]).all()


# ------------------------------------------------------------------------------ what comes back

Spoil = Callable[[Held], object]
F32 = np.float32
SPOILT = 2


def sent_by(strategy: ExpertAveraging) -> Broadcast:
    experiment = experiment_of(["strategy=ifca", "strategy.num_clusters=3"])
    arrays = to_record(experiment.shared)
    sent = strategy.configure_train(1, arrays, ConfigRecord(), InProcessGrid(experiment))
    assert isinstance(sent, Broadcast) and sent.personal is not None
    assert sent.records.keys() == {"config"}  # on Ray, what all share goes to every worker
    return sent


def asked_of(sent: Broadcast, client: int) -> tuple[Parameters, list[int]]:
    assert sent.personal is not None
    own = {key: tensors_of(record) for key, record in sent.personal[client].items()}  # type: ignore[arg-type]
    return own["arrays"], own["experts"]["index"].tolist()


def healthy(sent: Broadcast, client: int) -> Held:
    arrays, index = asked_of(sent, client)
    return {
        "arrays": {name: np.full_like(a.numpy(), client) for name, a in arrays.items()},
        "experts": {
            "index": np.array(index), "examples": np.full(2, 3, F32), "fit": np.full(2, -1, F32),
        },
        "metrics": {"num-examples": np.array(EXAMPLES), "loss": np.array(0.5)},
    }  # fmt: skip


def says(name: str, value: Any) -> Spoil:
    return lambda held: held["experts"].update({name: np.asarray(value)})


HOLDS = "record experts must hold index and examples and fit"
ASKED = "expected all of [0, 2], int64, with 0 to 12 examples each, float"
FIT = "expected 2 numbers from -1e+09 to 0, float"
BAD: list[tuple[str, Spoil, str | None]] = [
    ("fine", says("fit", np.zeros(2, F32)), None),
    ("bad-fit", says("fit", np.full(2, -1e8, F32)), None),
    ("neighbours", says("index", [0, 1]), f"experts int64[0, 1] with examples float32[3.0, 3.0]: "
     f"{ASKED}"),
    ("out-of-range", says("index", [0, 3]), ASKED),
    ("descending", says("index", [2, 0]), ASKED),
    ("fewer", says("index", [0]), ASKED),
    ("all", says("index", [0, 1, 2]), ASKED),
    ("too-many-examples", says("examples", np.full(2, 13, F32)), ASKED),
    ("no-fit", lambda held: held["experts"].pop("fit"), HOLDS),
    ("more", says("x", np.zeros(2, F32)), HOLDS),
    ("positive", says("fit", np.array([-1, 0.1], F32)), "fit of experts float32[-1.0, 0.1"),
    ("beyond-all", says("fit", np.array([-2e9, -1], F32)), FIT),
    ("nan", says("fit", np.array([-1, np.nan], F32)), "not finite"),
    ("infinite", says("fit", np.array([-np.inf, -1], F32)), "not finite"),
    ("whole", says("fit", np.array([-1, -1])), FIT),
    ("one", says("fit", np.array([-1], F32)), FIT),
    ("three", says("fit", np.full(3, -1, F32)), FIT),
    ("table", says("fit", np.full((2, 1), -1, F32)), FIT),
    ("scalar", says("fit", F32(-1)), FIT),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spoil", "why"), BAD, ids=[one[0] for one in BAD])
def test_a_reply_holds_what_this_client_was_sent(name: str, spoil: Spoil, why: str | None) -> None:
    merged: list[Parameters] = []
    for network in (False, True):
        strategy = ExpertAveraging(assignment=ExpertAssignment(3, 2))
        sent = sent_by(strategy)
        assert [asked_of(sent, client)[1] for client in range(3)] == [[0, 1], [1, 2], [0, 2]]
        held = [healthy(sent, client) for client in range(len(SIZES))]
        spoil(held[SPOILT])
        replies: Any = columns(sent, held)
        if network:
            replies = [over_network(reply) for reply in replies]
        result = ReplyGuard(LIMITS, strategy).inspect(sent, replies)
        bad = sent.nodes[SPOILT]
        assert result.failures.keys() == ({bad} if why else set())
        assert all(why is not None and why in reason for reason in result.failures.values())
        # Nobody has compared all experts yet; were they known, the good replies would count.
        others = [node for node in sent.nodes if node not in result.failures]
        assert strategy.assignment is not None
        strategy.assignment.note(others, 1, *everything(len(others)))
        record, _ = strategy.aggregate_train(1, result.good)
        assert record is not None and strategy.assignment.nodes == others
        merged.append(tensors_of(record))
        counted = [c for c in range(len(SIZES)) if why is None or c != SPOILT]
        for e in range(3):
            holders = [c for c in counted if e in asked_of(sent, c)[1]]
            mean = torch.full_like(merged[-1]["experts.bias"][e], float(np.mean(holders)))
            torch.testing.assert_close(merged[-1]["experts.bias"][e], mean)
    assert_close(merged[0], merged[1])


def everything(clients: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """All experts of each, which fit badly."""
    return np.tile(np.arange(3), (clients, 1)), np.full((clients, 3), -1e9)


# ---------------------------------------------------------------------------- the configuration


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["strategy.experts_per_client=5"],
         "strategy.experts_per_client=5: must be 1..4, as there are 4 experts, or null for all"),
        (["model=moe", "model.num_experts=2", "model/router=prior",
          "strategy.experts_per_client=3"], "must be 1..2, as there are 2 experts"),
        (["model=moe", "model/router=rule", "strategy.gate=local", "strategy.experts_per_client=1"],
         "strategy.experts_per_client=1: model/router=rule sends samples to experts that a client"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_clear_line(words: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment_of(["strategy=fedmoe", *words])
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_mixture_of_ones_own_brings_its_number_of_experts() -> None:
    words = ["model=moe", "model/router=prior", "model.num_experts=6"]
    experiment = experiment_of(["strategy=fedmoe", "strategy.experts_per_client=5", *words])
    strategy: Any = build_strategy(experiment.config, experiment.data.task)
    assert (strategy.assignment.num_experts, strategy.assignment.held) == (6, 5)
