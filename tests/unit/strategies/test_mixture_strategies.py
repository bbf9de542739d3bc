"""FedEM, IFCA and a global with a local expert against plain loops over clients and samples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord
from mixture_oracle import (
    PLAIN,
    Plain,
    PlainClients,
    PlainFedEm,
    PlainIfca,
    PlainLocalGlobal,
    Predict,
)
from mixture_runs import MODELS, STRATEGIES, Run, assert_close, experiment_of, run
from torch import Tensor

from fedmoe.clients import Client, Experiment, job, load_experiment
from fedmoe.data import Part, Rows, pooled
from fedmoe.errors import ConfigError
from fedmoe.messages.arrays import Stack, to_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.replies import Replies
from fedmoe.models import MixtureOfExperts, Parameters
from fedmoe.simulations import InProcessGrid
from fedmoe.strategies import StackedFedAvg, build_strategy

PARTS: tuple[Part, ...] = ("validation", "test")
HALF = "strategy.fraction_train=0.5"
KEPT = "training.reset_optimizer=false"
REGRESSION = "+data.options.kind=regression"


def follow(found: Run, name: str, start: Mapping[str, Tensor] | None = None) -> Plain:
    """The same rounds as a loop; the global model is compared after each."""
    clients = PlainClients(found.experiment)
    plain = PLAIN[name](clients, found.experiment.shared if start is None else start)
    for round, (asked, arrays) in enumerate(zip(found.sampled, found.arrays, strict=True), 1):
        plain.round(round, asked)
        assert_close(arrays, plain.shared())
        told = found.records[round - 1].clients["loss"]
        expected = [clients.losses[round, client] for client in asked]
        assert told == pytest.approx(expected, abs=1e-5)
    return plain


def assert_scores(found: Run, plain: Plain) -> None:
    """Each client's scores, of the global model and of its own."""
    clients, scores = PlainClients(found.experiment), found.scores()
    loss = "mse" if found.experiment.data.task.kind == "regression" else "loss"
    for part in PARTS:
        for client in range(clients.number):
            models: dict[str, Predict | None] = {
                "global": plain.general(),
                "personalised": plain.personal(client),
            }
            for which, predict in models.items():
                key = f"{part}-{which}-"
                if predict is None:
                    assert key + loss not in scores
                    continue
                expected = clients.score(client, part, predict)
                assert scores[key + loss][client] == pytest.approx(expected.loss, abs=1e-5)
                if loss == "loss":
                    assert scores[key + "accuracy"][client] == pytest.approx(expected.accuracy)


def assert_private(found: Run, plain: Plain) -> None:
    """Who trained keeps what is private; who did not, nothing."""
    trained = {client for asked in found.sampled for client in asked}
    for client in range(found.experiment.data.num_clients):
        own = found.private(client)
        if isinstance(plain, PlainIfca) or client not in trained:
            assert own is None
            continue
        assert own is not None
        if isinstance(plain, PlainFedEm):
            assert own.keys() == {"router.prior"}
            expected = torch.tensor(plain.proportions[client])
            torch.testing.assert_close(own["router.prior"].softmax(0), expected, rtol=0, atol=1e-5)
        if isinstance(plain, PlainLocalGlobal):
            local, gate = plain.private[client]
            assert_close(
                own,
                {f"experts.{name}": value[None] for name, value in local.items()}
                | {f"router.{name}": value for name, value in gate.items()},
            )


CASES = [
    *((strategy, MODELS[model]) for strategy in STRATEGIES for model in MODELS),
    *((strategy, [HALF, KEPT, "rounds=4"]) for strategy in STRATEGIES),
    *((strategy, [REGRESSION]) for strategy in ("ifca", "local_global")),
    *((strategy, ["+data.options.sizes=1-12-3"]) for strategy in STRATEGIES),
    ("fedem", ["strategy.num_components=1"]),
    ("fedem", ["strategy.num_components=5", *MODELS["mlp"]]),
    ("ifca", ["strategy.num_clusters=1"]),
    ("ifca", ["strategy.num_clusters=5", HALF, *MODELS["mlp"]]),
]  # fmt: skip


@pytest.mark.parametrize(("strategy", "words"), CASES, ids=[" ".join([s, *w]) for s, w in CASES])
def test_a_run_is_the_loop_of_the_paper(strategy: str, words: Sequence[str]) -> None:
    found = run([*STRATEGIES[strategy], *words])
    assert not any(reason for round in found.reasons for reason in round)
    if HALF in words:
        asked = {client for round in found.sampled for client in round}
        everyone = found.experiment.data.num_clients
        assert len(found.sampled[0]) == everyone // 2
        assert len(asked) < everyone, "the seed must leave out a client for this to mean anything"
    plain = follow(found, strategy)
    assert_private(found, plain)
    assert_scores(found, plain)


@pytest.mark.parametrize(("strategy", "words"), CASES, ids=[" ".join([s, *w]) for s, w in CASES])
def test_one_by_one_is_the_same(strategy: str, words: Sequence[str]) -> None:
    together = run([*STRATEGIES[strategy], *words])
    alone = run([*STRATEGIES[strategy], *words], alone=True)
    for mine, theirs in zip(alone.arrays, together.arrays, strict=True):
        assert_close(mine, theirs)
    for mine_of, theirs_of in zip(alone.records, together.records, strict=True):
        assert mine_of.metrics["bytes"] == theirs_of.metrics["bytes"]
    mine_scores, theirs_scores = alone.scores(), together.scores()
    assert mine_scores.keys() == theirs_scores.keys()
    for name, column in theirs_scores.items():
        np.testing.assert_allclose(mine_scores[name], column, rtol=0, atol=1e-5, err_msg=name)
    for key in ("model", "optimizer", "local-optimizer"):
        for client in range(together.experiment.data.num_clients):
            own, same = together.private(client, key), alone.private(client, key)
            assert (own is None) == (same is None)
            if own is not None and same is not None:
                assert_close(same, own)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("more", ["runtime.shard_size=2", "training.cohort_size=2"])
def test_shards_and_small_chunks_change_nothing(strategy: str, more: str) -> None:
    whole, pieces = run(STRATEGIES[strategy]), run([*STRATEGIES[strategy], more])
    assert_close(pieces.arrays[-1], whole.arrays[-1])
    mine, theirs = pieces.scores(), whole.scores()
    for name, column in theirs.items():
        np.testing.assert_allclose(mine[name], column, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("more", [[], [HALF, KEPT]], ids=["all", "half"])
def test_a_phase_is_one_cohort(strategy: str, more: list[str]) -> None:
    """One that fails as a whole is tried in halves, which gives the same numbers slowly."""
    found = run([*STRATEGIES[strategy], *more])
    for configure in (found.strategy.configure_train, found.strategy.configure_evaluate):
        sent = configure(3, found.standing.arrays, ConfigRecord(), found.grid)
        replies = found.grid.send_and_receive(sent)
        assert isinstance(replies, Replies)
        assert len(replies.parts) == 1 and not replies.plain


# ---------------------------------------------------------------- ties, and what nobody uses


def alike(experiment: Experiment, model: int, others: Sequence[int]) -> Parameters:
    """The initial experts, some of them like one of them."""
    start = {name: value.clone() for name, value in experiment.shared.items()}
    for value in start.values():
        value[list(others)] = value[model].clone()
    return start


def bits(value: Tensor) -> bytes:
    return value.numpy().tobytes()


@pytest.mark.parametrize(("model", "others", "unused"), [(2, [0], 2), (0, [1], 1), (1, [0, 2], 2)])
def test_of_equal_models_the_first_is_chosen_and_the_others_stay(
    model: int, others: list[int], unused: int
) -> None:
    words = [*STRATEGIES["ifca"], "rounds=1"]
    start = alike(run(words).experiment, model, others)
    found = run(words, start=start)
    plain = follow(found, "ifca", start)
    assert isinstance(plain, PlainIfca)
    assert_scores(found, plain)
    assert min([model, *others]) in plain.chosen.values()
    assert unused not in plain.chosen.values()
    for name, value in start.items():
        assert bits(found.arrays[0][name][unused]) == bits(value[unused])


def test_equal_components_stay_equal() -> None:
    words = STRATEGIES["fedem"]
    start = alike(run(words).experiment, 0, [2])
    found = run(words, start=start)
    assert_scores(found, follow(found, "fedem", start))
    for value in found.arrays[-1].values():
        torch.testing.assert_close(value[0], value[2], rtol=0, atol=1e-6)
        assert not torch.allclose(value[0], value[1], atol=1e-3)


@pytest.mark.parametrize("unused", [0, 2])
def test_a_model_that_nobody_chooses_stays_bit_for_bit(unused: int) -> None:
    """One that is always surely wrong: its biases alone decide for a class that is rare."""
    words = [*STRATEGIES["ifca"], "rounds=3", KEPT]
    experiment = run(words).experiment
    start = {name: value.clone() for name, value in experiment.shared.items()}
    start["experts.bias"][unused] = torch.tensor([-40.0, 0.1, 40.0])[torch.tensor([0, 2, 1])]
    start["experts.weight"][unused] = torch.pi
    found = run(words, start=start)
    plain = follow(found, "ifca", start)
    assert isinstance(plain, PlainIfca)
    assert unused not in plain.chosen.values()
    for name, value in start.items():
        assert bits(found.arrays[-1][name][unused]) == bits(value[unused])


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("fedem", ["strategy.num_components=1"]),
        ("ifca", ["strategy.num_clusters=1"]),
    ],
)
def test_one_expert_alone_is_fedavg(strategy: str, words: list[str]) -> None:
    found = run([*STRATEGIES[strategy], *words])
    start = {n.removeprefix("experts."): v[0] for n, v in found.experiment.shared.items()}
    fedavg = run(["strategy=fedavg"], start=start)
    for mine, theirs in zip(found.arrays, fedavg.arrays, strict=True):
        assert_close({n.removeprefix("experts."): v[0] for n, v in mine.items()}, theirs)
    own, all_same = found.scores(), fedavg.scores()
    for part in PARTS:
        for measure in ("loss", "accuracy"):
            np.testing.assert_allclose(
                own[f"{part}-personalised-{measure}"], all_same[f"{part}-global-{measure}"],
                rtol=0, atol=1e-5,
            )  # fmt: skip


@pytest.mark.parametrize("more", [[], [KEPT, HALF, "rounds=4"], [REGRESSION]], ids=str)
def test_the_global_expert_is_fedavg_s(more: list[str]) -> None:
    """Whatever the clients have of their own besides."""
    found = run([*STRATEGIES["local_global"], *more])
    start = {n.removeprefix("experts."): v[0] for n, v in found.experiment.shared.items()}
    fedavg = run(["strategy=fedavg", *more], start=start)
    for mine, theirs in zip(found.arrays, fedavg.arrays, strict=True):
        assert_close({n.removeprefix("experts."): v[0] for n, v in mine.items()}, theirs)


# ------------------------------------------------------------------------- what is evaluated


def test_fedem_s_proportions_are_those_of_the_paper() -> None:
    """Its E step adds a thousandth of a sample; the paper's mean posterior has none."""
    found = run([*STRATEGIES["fedem"], "rounds=1"])
    clients = PlainClients(found.experiment)
    plain = PlainFedEm(clients, found.experiment.shared)
    for client in range(clients.number):
        own = found.private(client)
        assert own is not None
        summed = torch.zeros(3, dtype=torch.float64)
        for x, y in clients.samples(client):
            joint = torch.stack([plain.probability(x, one)[y] for one in plain.components])
            summed += joint / joint.sum()
        expected = summed / clients.count(client)
        torch.testing.assert_close(
            own["router.prior"].softmax(0).double(), expected, rtol=0, atol=2e-4
        )


def test_clients_that_were_never_asked_are_scored_with_what_all_begin_with() -> None:
    for strategy in ("fedem", "local_global"):
        found = run([*STRATEGIES[strategy], "strategy.fraction_train=0.2", "rounds=1"])
        (asked,) = found.sampled
        assert len(asked) == 1
        assert_scores(found, follow(found, strategy))


# ----------------------------------------------------------------- one client's broken sample


def answered(experiment: Experiment, kind: str) -> Replies:
    """What the clients answer to one message of the strategy's."""
    strategy = build_strategy(experiment.config, experiment.data.task)
    assert isinstance(strategy, StackedFedAvg)
    configure = strategy.configure_train if kind == "train" else strategy.configure_evaluate
    grid = InProcessGrid(experiment)
    sent = configure(1, to_record(experiment.shared), ConfigRecord(), grid)
    replies = grid.send_and_receive(sent)
    assert isinstance(replies, Replies)
    return replies


@pytest.mark.parametrize("words", [["strategy=fedavg"], *STRATEGIES.values()], ids=lambda w: w[0])
def test_a_sample_that_is_no_number_is_nobody_elses_trouble(words: list[str]) -> None:
    """Row 0 of the pool, by which the other clients are padded; it is client 0's."""
    whole = run(words).experiment
    x_ND = pooled(whole.data).x_ND.copy()
    x_ND[0] = np.nan
    broken = replace(whole, data=replace(pooled(whole.data), x_ND=x_ND))
    assert 0 in pooled(whole.data).parts["train"].of(0)
    others = slice(1, None)
    mine, theirs = answered(broken, "train"), answered(whole, "train")
    assert not Stack(mine.arrays()).finite_C[0]
    assert_close(
        {name: value[others] for name, value in mine.arrays().items()},
        {name: value[others] for name, value in theirs.arrays().items()},
    )
    scores, expected = answered(broken, "evaluate").numbers(), answered(whole, "evaluate").numbers()
    for name, column in expected.items():
        np.testing.assert_allclose(scores[name][others], column[others], rtol=1e-5, err_msg=name)
    if words[0] == "strategy=fedem":  # proportions that cannot be told are no model
        assert np.isnan(scores["test-personalised-loss"][0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_client_without_training_data_is_scored_all_the_same(strategy: str) -> None:
    """In a cohort and alone: it has equal proportions, the first model, an untrained expert."""
    experiment, poor = experiment_of(STRATEGIES[strategy]), 2
    data = pooled(experiment.data)
    rows = [data.parts["train"].of(client) for client in range(data.num_clients)]
    rows[poor] = rows[poor][:0]
    experiment = replace(
        experiment, data=replace(data, parts={**data.parts, "train": Rows.pack(rows)})
    )
    replies = answered(experiment, "train")
    assert [row for row, reply in enumerate(replies) if reply.has_error()] == [poor]
    assert replies[poor].error.reason == "ValueError: client 2 has no training data"
    plain = PLAIN[strategy](PlainClients(experiment), experiment.shared)
    expected = PlainClients(experiment).score(poor, "test", plain.personal(poor))
    together = answered(experiment, "evaluate")
    nodes = [together.nodes[poor]]
    records = cast(Broadcast, together.requests).records
    alone = InProcessGrid(experiment).send_and_receive(Broadcast(nodes, "evaluate", records))
    for replies, row in ((together, poor), (cast(Replies, alone), 0)):
        assert not replies[row].has_error()
        loss = replies.numbers()["test-personalised-loss"][row]
        assert loss == pytest.approx(expected.loss, abs=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dropout_has_no_say_in_which_expert_explains_what(strategy: str) -> None:
    """Experts with dropout drop in training alone, and so that a run repeats."""
    words = [
        *STRATEGIES[strategy], "model=custom", "model.factory=mixture-test-tanh",
        "model.options.dropout=0.5",
    ]  # fmt: skip
    runs = []
    for seed in (1, 2):  # of the generator that dropout draws from, where nobody keeps it in hand
        torch.manual_seed(seed)
        load_experiment.cache_clear()
        runs.append(run(words))
    found, again = runs
    for mine, theirs in zip(again.arrays, found.arrays, strict=True):
        assert all(torch.equal(mine[name], value) for name, value in theirs.items())
    for part in PARTS:
        assert [one.metrics[part] for one in again.records] == [
            one.metrics[part] for one in found.records
        ]


def test_squared_errors_have_no_mixture_for_fedem() -> None:
    with pytest.raises(ConfigError, match=r"^strategy=fedem: needs classes, but the task is reg"):
        run([*STRATEGIES["fedem"], REGRESSION])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_mixture_is_not_made_of_mixtures(strategy: str) -> None:
    with pytest.raises(ConfigError, match=r"^model=moe: this strategy makes a mixture"):
        run([*STRATEGIES[strategy], "model=moe"])


# ------------------------------------------------------------------------ the NumPy interface


@pytest.mark.parametrize("strategy", ["fedem", "local_global"])
def test_a_numpy_client_keeps_what_is_private(strategy: str) -> None:
    """Two rounds of its own are those of a federation in which it is alone."""
    words = [*STRATEGIES[strategy], "+data.options.sizes='20'"]
    found = run(words)
    client = Client(0, experiment=found.experiment)
    arrays = client.get_parameters({})
    for round in (1, 2):
        arrays, count, metrics = client.fit(arrays, {"server-round": round})
        assert [count] == found.records[round - 1].clients["num_examples"]
        assert metrics["loss"] == pytest.approx(found.records[round - 1].clients["loss"][0])
    for mine, theirs in zip(arrays, found.arrays[-1].values(), strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=0, atol=1e-5)
    loss, _, scores = client.evaluate(arrays, {})
    expected = found.scores()
    assert loss == pytest.approx(expected["test-global-loss"][0], abs=1e-5)
    assert scores["test-personalised-loss"] == pytest.approx(
        expected["test-personalised-loss"][0], abs=1e-5
    )


def test_a_numpy_client_cannot_say_which_model_it_trained() -> None:
    experiment = experiment_of(STRATEGIES["ifca"])
    client = Client(0, experiment=experiment)
    with pytest.raises(ValueError, match="only some of the experts would be returned"):
        client.fit(client.get_parameters({}), {})
    loss, _, scores = client.evaluate(client.get_parameters({}), {})
    assert loss > 0
    assert loss == scores["test-personalised-loss"]


def test_ifca_trains_and_scores_the_chosen_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others cost one forward pass over the training data, to choose by."""
    experts = {"train_cohort": set[int](), "evaluate_cohort": set[int]()}
    for name, seen in experts.items():
        ordinary = getattr(job, name)

        def spy(
            model: MixtureOfExperts,
            *arguments: Any,
            ordinary: Callable[..., Any] = ordinary,
            seen: set[int] = seen,
        ) -> Any:
            seen.add(model.num_experts)
            return ordinary(model, *arguments)

        monkeypatch.setattr(job, name, spy)
    run([*STRATEGIES["ifca"], "strategy.num_clusters=5"])
    assert experts == {"train_cohort": {1}, "evaluate_cohort": {1}}
