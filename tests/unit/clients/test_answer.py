"""Answers: cohorts equal single clients, and one client's failure is its own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)

from fedmoe.clients import Client, answer, answer_cohort, load_experiment
from fedmoe.clients import answer as answer_function
from fedmoe.clients.experiment import Experiment
from fedmoe.clients.states import StackedStates
from fedmoe.config import load_config, to_json
from fedmoe.data import pooled
from fedmoe.messages import words
from fedmoe.messages.arrays import from_record, plain, to_record
from fedmoe.messages.riding import has_trained, parted
from fedmoe.messages.seams import ensure_task_identity
from fedmoe.messages.words import get_insight, insight_request

WORDS = ["partition.num_clients=6", "partition.min_samples=10", "model=linear"]


@pytest.fixture(autouse=True)
def identity() -> None:
    ensure_task_identity()


def config_json(*words: str) -> str:
    return to_json(load_config([*WORDS, *words]))


def context(config: str, client: int) -> Context:
    return Context(1, client + 2, {"partition-id": client}, RecordDict(), {"config": config})


def train_message(node: int, **records: Any) -> Message:
    return Message(RecordDict(records), node, "train")


def arrays_of(experiment: Experiment, shift: float = 0.0) -> ArrayRecord:
    return to_record({name: p + shift for name, p in experiment.initial.items()})


@pytest.mark.parametrize("model", ["linear", "mlp", "moe"])
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_cohort_and_numpy_client_train_the_same_weights(model: str, mu: float) -> None:
    text = config_json(f"model={model}")
    experiment = load_experiment(text)
    config = ConfigRecord({"server-round": 3, "proximal-mu": mu})
    record = arrays_of(experiment)
    messages = [train_message(k + 2, arrays=record, config=config) for k in range(6)]
    replies = answer(messages, [context(text, k) for k in range(6)])
    for client, reply in enumerate(replies):
        alone = Client(client, experiment)
        weights, count, metrics = alone.fit(
            alone.get_parameters({}), {"server-round": 3, "proximal-mu": mu}
        )
        assert reply.content["metrics"] == {
            "num-examples": count,
            "loss": pytest.approx(metrics["loss"], abs=1e-5),
        }
        received = reply.content["arrays"]
        assert isinstance(received, ArrayRecord)
        for array, expected in zip(received.values(), weights, strict=True):
            np.testing.assert_allclose(array.numpy(), expected, atol=1e-5)


def test_numpy_client_evaluates_as_the_cohort_does() -> None:
    text = config_json()
    experiment = load_experiment(text)
    message = Message(RecordDict({"arrays": arrays_of(experiment)}), 4, "evaluate")
    reply = answer([message], [context(text, 2)])[0]
    client = Client(2, experiment)
    loss, count, metrics = client.evaluate(client.get_parameters({}), {})
    own = dict(reply.content.metric_records["metrics"])
    assert own == {"num-examples": count, **metrics}
    assert loss == own["test-global-loss"]
    assert "test-personalised-loss" not in own


def test_without_arrays_the_model_stays_with_the_client() -> None:
    text = config_json()
    contexts = [context(text, k) for k in range(2)]
    messages = [train_message(k + 2, config=ConfigRecord({"server-round": 1})) for k in range(2)]
    first = answer(messages, contexts)
    assert all("arrays" not in reply.content for reply in first)
    kept = from_record(contexts[0].state.array_records["model"])
    answer(messages, contexts)
    moved = from_record(contexts[0].state.array_records["model"])
    assert not torch.equal(kept["weight"], moved["weight"])


def break_nothing(message: Message) -> None:
    del message


def send_wrong_shape(message: Message) -> None:
    message.content.array_records["arrays"]["weight"] = Array(np.zeros((3, 3), np.float32))


def send_missing_array(message: Message) -> None:
    del message.content.array_records["arrays"]["bias"]


def send_metrics_as_arrays(message: Message) -> None:
    del message.content["arrays"]
    message.content["arrays"] = MetricRecord({"weight": 1.0})


def send_text_as_number(message: Message) -> None:
    message.content["config"] = ConfigRecord({"proximal-mu": "a lot"})


def send_a_list_of_numbers(message: Message) -> None:
    message.content["config"] = ConfigRecord({"proximal-mu": [0.1, 0.2]})


def send_unknown_guidance(message: Message) -> None:
    message.content["guidance"] = to_record({"weights": np.ones(3, np.float32)})


def send_misshapen_guidance(message: Message) -> None:
    message.content["guidance"] = to_record(
        {"prototypes": np.ones((2, 2), np.float32), "prototype_weight": np.ones(2, np.float32)}
    )


def send_another_configuration(message: Message) -> None:
    del message  # done to the context, see below


@pytest.mark.parametrize(
    ("sabotage", "reason"),
    [
        (send_wrong_shape, "shape"),
        (send_missing_array, "bias"),
        (send_metrics_as_arrays, "must be an ArrayRecord"),
        (send_text_as_number, "'proximal-mu' must be a number, got 'a lot'"),
        (send_a_list_of_numbers, "must be a number, got [0.1, 0.2]"),
        (send_unknown_guidance, "unknown parts"),
        (send_misshapen_guidance, "guidance prototypes has shape"),
        (send_another_configuration, "no such key"),
    ],
)
def test_one_bad_message_fails_alone(sabotage: Callable[[Message], None], reason: str) -> None:
    text = config_json()
    experiment = load_experiment(text)
    contexts = [context(text, k) for k in range(3)]
    messages = [train_message(k + 2, arrays=arrays_of(experiment)) for k in range(3)]
    expected = answer(messages, contexts)
    sabotage(messages[1])
    if sabotage is send_another_configuration:
        contexts[1].run_config["config"] = text.replace('"rounds"', '"ruonds"')
    replies = answer(messages, contexts)
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert reason in (replies[1].error.reason or "")
    for index in (0, 2):
        mine = from_record(replies[index].content.array_records["arrays"])
        theirs = from_record(expected[index].content.array_records["arrays"])
        assert all(torch.allclose(mine[name], theirs[name], atol=1e-6) for name in mine)


def test_a_client_that_fails_leaves_the_others_in_cohorts() -> None:
    """Halves, not one by one: with a client gone, the others still cost what cohorts cost."""
    experiment = load_experiment(config_json("partition.num_clients=64"))
    sent = [train_message(k + 2, arrays=arrays_of(experiment, shift=k / 100)) for k in range(64)]
    clients = np.arange(64)
    expected = answer_cohort(experiment, sent, clients, StackedStates())
    assert len(expected.parts) == 1
    send_wrong_shape(sent[20])
    replies = answer_cohort(experiment, sent, clients, StackedStates())
    assert list(replies.plain) == [20] and replies[20].has_error()
    assert len(replies.parts) == 6  # 32, 16, 8, 4, 2 and 1
    others = np.delete(clients, 20)
    for name, stacked in replies.select(others).arrays().items():
        wanted = expected.arrays()[name][others]
        torch.testing.assert_close(stacked, wanted, rtol=0, atol=1e-6)


def test_unknown_kinds_of_messages_are_refused() -> None:
    message = Message(RecordDict(), 2, "query")
    reply = answer([message], [context(config_json(), 0)])[0]
    assert "no handler for messages of type 'query'" in (reply.error.reason or "")


def test_a_client_without_training_data_fails_and_still_evaluates() -> None:
    text = config_json("partition=dirichlet", "partition.num_clients=6", "partition.min_samples=0",
                       "partition.alpha=0.001", "seed=1")  # fmt: skip
    experiment = load_experiment(text)
    counts = pooled(experiment.data).parts["train"].counts_K
    empty = int(np.argmin(counts))
    assert counts[empty] == 0, "the seed must give an empty client for this test to mean anything"
    contexts = [context(text, k) for k in range(6)]
    record = arrays_of(experiment)
    trained = answer([train_message(k + 2, arrays=record) for k in range(6)], contexts)
    assert [r.has_error() for r in trained] == [count == 0 for count in counts]
    scored = answer(
        [Message(RecordDict({"arrays": record}), k + 2, "evaluate") for k in range(6)], contexts
    )
    assert not any(reply.has_error() for reply in scored)
    assert scored[empty].content.metric_records["metrics"]["num-examples"] == 0


def test_optimiser_state_goes_on_only_if_configured() -> None:
    def two_rounds(*words: str) -> tuple[dict[str, torch.Tensor], bool]:
        text = config_json(*words)
        own = context(text, 0)
        for round in (1, 2):
            message = train_message(2, config=ConfigRecord({"server-round": round}))
            answer_function([message], [own])
        return from_record(own.state.array_records["model"]), "optimizer" in own.state

    reset, kept = two_rounds("training.reset_optimizer=true")
    going_on, kept_on = two_rounds("training.reset_optimizer=false")
    assert (kept, kept_on) == (False, True)
    assert not torch.allclose(reset["weight"], going_on["weight"], atol=1e-4)


def test_different_rounds_see_the_samples_in_different_order() -> None:
    text = config_json()
    experiment = load_experiment(text)
    weights = []
    for round in (1, 2):
        config = ConfigRecord({"server-round": round})
        message = train_message(2, arrays=arrays_of(experiment), config=config)
        reply = answer([message], [context(text, 0)])[0]
        weights.append(from_record(reply.content.array_records["arrays"])["weight"])
    assert not torch.equal(*weights)


def test_parameters_that_are_handed_out_are_copies() -> None:
    experiment = load_experiment(config_json())
    before = experiment.initial["weight"].clone()
    Client(0, experiment).get_parameters({})[0][:] = 9.0
    assert torch.equal(experiment.initial["weight"], before)


def test_a_client_without_validation_data_does_not_claim_to_be_certain() -> None:
    text = config_json("data.validation_fraction=0", "strategy=insight")
    config, asked = ConfigRecord({"server-round": 1}), insight_request([])
    reply = answer([train_message(2, config=config, insight=asked)], [context(text, 0)])[0]
    insight = get_insight(reply.content)
    assert 0.0 < insight.uncertainty <= 1.0
    assert 0.0 < insight.calibration_error <= 1.0
    assert (insight.validation_examples, insight.validation_loss) == (0, 0.0)


# ------------------------------------------------------------- evaluation along with training

EVALUATION = ConfigRecord({"server-round": 2})


def evaluate_message(node: int, **records: Any) -> Message:
    return Message(RecordDict(records), node, "evaluate")


def same_content(one: Message, other: Message) -> bool:
    mine, theirs = (plain(message.content) for message in (one, other))
    return mine.object_id == theirs.object_id


@pytest.mark.parametrize(
    "own",
    [
        ["strategy=ditto"],  # which is scored with what it keeps
        ["strategy=fedavg_finetune"],  # whose scores follow from the round's number
        ["strategy=fedavg", "model=moe"],  # whose evaluation leaves something behind
    ],
)
def test_an_evaluation_that_rides_along_is_one_made_before_training(own: list[str]) -> None:
    text = config_json(*own)
    record, config = arrays_of(load_experiment(text)), ConfigRecord({"server-round": 3})
    apart, along = ([context(text, k) for k in range(3)] for _ in range(2))
    for contexts in (apart, along):  # something to keep
        first = ConfigRecord({"server-round": 1})
        answer([train_message(k + 2, arrays=record, config=first) for k in range(3)], contexts)
    scored = answer(
        [evaluate_message(k + 2, arrays=record, config=EVALUATION) for k in range(3)], apart
    )
    trained = answer([train_message(k + 2, arrays=record, config=config) for k in range(3)], apart)
    asks = [{"evaluation": EVALUATION}, {"evaluation": EVALUATION}, {}]
    both = answer(
        [train_message(k + 2, arrays=record, config=config, **asks[k]) for k in range(3)], along
    )
    for client in (0, 1):
        halves = parted(both[client])
        assert same_content(halves[0], trained[client])
        assert same_content(halves[1], scored[client])
        assert plain(along[client].state).object_id == plain(apart[client].state).object_id
    assert same_content(both[2], trained[2])  # nobody asked it


@pytest.mark.parametrize("fails", ["train", "evaluate", "both"])
def test_one_half_may_fail(fails: str) -> None:
    text = config_json("strategy=local")
    wrong = ConfigRecord({"prior-strength": -1.0})
    config = ConfigRecord({"server-round": 3})
    message = train_message(
        2,
        config=config if fails == "evaluate" else wrong,
        evaluation=EVALUATION if fails == "train" else wrong,
    )
    asked = context(text, 0)
    (reply,) = answer([message], [asked])
    assert reply.has_error() == (fails == "both")
    trained, scored = parted(reply)
    assert has_trained(reply) == (fails == "evaluate")
    for half, has_failed in ((trained, fails != "evaluate"), (scored, fails != "train")):
        assert half.has_error() == has_failed
        if has_failed:
            assert "prior-strength" in str(half.error.reason)
        else:
            assert words.NUM_EXAMPLES in half.content.metric_records[words.METRICS]
    assert bool(asked.state) == (fails == "evaluate")
