"""Insight exchange: what travels, byte by byte; what is refused; and that it helps."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message

from fedmoe.clients import answer, load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.guard import ReplyGuard
from fedmoe.messages.arrays import Stack, plain, to_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import wire_bytes, with_content
from fedmoe.rounds import RoundLoop
from fedmoe.schema import ExperimentConfig
from fedmoe.simulations import ContextGrid, InProcessGrid, run_experiment
from fedmoe.standing import Standing
from fedmoe.strategies import InsightExchange, build_strategy

QUIET = ["tracking.plots=false", "tracking.progress=none", "tracking.log_level=ERROR"]
RELATED = ["+experiment=related", "data.num_clients=5", "strategy=insight"]
DIGITS = ["partition.num_clients=5", "strategy=insight"]


class Wiretap:
    """Answers as usual, and keeps every message as bytes, and every model that a client had."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.models: list[np.ndarray[Any, np.dtype[np.float32]]] = []

    def __call__(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        replies = answer(messages, contexts)
        for message in (*messages, *replies):
            self.seen.append(wire_bytes(with_content(message, plain(message.content))))
        for context in contexts:
            for array in context.state.array_records["model"].values():
                self.models.append(array.numpy())
        return replies


def run_rounds(
    config: ExperimentConfig, grid: InProcessGrid | ContextGrid, strategy: Any = None
) -> Any:
    experiment = load_experiment(to_json(config))
    strategy = strategy or build_strategy(config, experiment.data.task)
    loop = RoundLoop(
        config=config,
        strategy=strategy,
        grid=grid,
        standing=Standing(to_record(experiment.initial)),
        client_of=grid.client_id,
        on_round=lambda record: None,
    )
    assert loop.run() == "completed"
    return strategy


def contains_weights(blob: bytes, model: np.ndarray[Any, np.dtype[np.float32]]) -> bool:
    """Whether any four consecutive weights of a model (not all zero) stand in the bytes."""
    flat = model.ravel()
    for start in range(max(len(flat) - 3, 1)):
        window = flat[start : start + 4]
        if window.any() and window.tobytes() in blob:
            return True
    return False


@pytest.mark.parametrize(
    "words",
    [
        RELATED,
        [*DIGITS, "model=linear", "insight.payloads=[scalars]"],
        [*DIGITS, "model.hidden=[8]"],
    ],
)
def test_no_weights_travel_in_either_direction(words: list[str]) -> None:
    config = load_config([*words, "rounds=3", *QUIET])
    tap = Wiretap()
    experiment = load_experiment(to_json(config))
    run_rounds(config, ContextGrid(to_json(config), 5, answer=tap))
    tap.models += [p.numpy() for p in experiment.initial.values()]
    assert len(tap.seen) == 3 * 5 * 4  # rounds, clients, two phases there and back
    everything = b"\0".join(tap.seen)
    models = {model.tobytes(): model for model in tap.models}.values()
    assert len(models) > 25
    assert not any(contains_weights(everything, model) for model in models)


def test_the_wiretap_would_notice_weights() -> None:
    """The control: the same search finds FedAvg's weights at once."""
    config = load_config(["strategy=fedavg", "partition.num_clients=5", "rounds=1", *QUIET])
    tap = Wiretap()

    def listen(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        for context in contexts:
            context.state["model"] = to_record(load_experiment(to_json(config)).initial)
        return tap(messages, contexts)

    run_rounds(config, ContextGrid(to_json(config), 5, answer=listen))
    assert contains_weights(b"\0".join(tap.seen), tap.models[0])


def test_five_clients_and_five_rounds_give_25_insights() -> None:
    config = load_config([*RELATED, "rounds=5", *QUIET])
    strategy = run_rounds(config, InProcessGrid(load_experiment(to_json(config))))
    assert isinstance(strategy, InsightExchange)
    assert len(strategy.meta_learner.memory) == 25
    assert len(strategy.meta_learner.history) == 5
    assert [i.client_id for i in strategy.new_insights] == [0, 1, 2, 3, 4]


def exchange_one_round() -> tuple[InsightExchange, list[Message]]:
    """A strategy that has asked in round 1, and the five honest replies."""
    config = load_config([*RELATED, "rounds=1", *QUIET])
    grid = InProcessGrid(load_experiment(to_json(config)))
    strategy = build_strategy(config, load_experiment(to_json(config)).data.task)
    assert isinstance(strategy, InsightExchange)
    sent = list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid))
    return strategy, list(grid.send_and_receive(sent))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("round", 2, "insight of round 2 in round 1"),
        ("final_loss", float("nan"), "final_loss=nan"),
        ("uncertainty", -1.0, "must not be negative"),
        ("schema_version", 7, "schema version 7"),
        ("weights", 1.0, "unknown"),
    ],
)
def test_a_lie_is_refused_and_the_others_are_learned_from(
    field: str, value: float, reason: str
) -> None:
    strategy, replies = exchange_one_round()
    replies[2].content.metric_records["insight"][field] = value
    with pytest.raises(ValueError, match=reason):
        strategy.check_reply(replies[2])
    strategy.aggregate_train(1, replies)
    assert [one.client_id for one in strategy.new_insights] == [0, 1, 3, 4]


def test_a_client_cannot_speak_for_another() -> None:
    strategy, replies = exchange_one_round()
    strategy.aggregate_train(1, replies)
    replies[2].content.metric_records["insight"]["client_id"] = 3
    with pytest.raises(ValueError, match="client id 3 does not belong to node 4"):
        strategy.check_reply(replies[2])


def test_of_two_nodes_that_claim_one_client_the_first_keeps_it() -> None:
    strategy, replies = exchange_one_round()
    replies[2].content.metric_records["insight"]["client_id"] = 1
    strategy.aggregate_train(1, replies)
    assert [one.client_id for one in strategy.new_insights] == [0, 1, 3, 4]
    assert strategy.exchange.incoming.client_of == {2: 0, 3: 1, 5: 3, 6: 4}


def test_weights_in_a_reply_are_refused() -> None:
    strategy, replies = exchange_one_round()
    replies[0].content["arrays"] = to_record({"weight": np.ones((1, 10), np.float32)})
    with pytest.raises(ValueError, match="weights must not travel"):
        strategy.check_reply(replies[0])


def final_score(words: list[str], run_dir: Path, measure: str) -> float:
    summary = run_experiment(load_config([*words, *QUIET]), run_dir)
    return float(summary["final"]["personalised"][measure]["mean"])


@pytest.mark.parametrize("model", ["linear", "mlp", "moe"])
def test_insight_beats_local_on_digits_under_label_skew(model: str, tmp_path: Path) -> None:
    gains = []
    for seed in range(3):
        words = [f"model={model}", f"seed={seed}", "rounds=12"]
        local, insight = (
            final_score([*words, f"strategy={s}"], tmp_path / f"{s}{seed}", "accuracy")
            for s in ("local", "insight")
        )
        gains.append(insight - local)
    assert min(gains) > 0.0 and np.mean(gains) > 0.02


@pytest.mark.parametrize("partition", ["dirichlet", "label_permutation"])
def test_samples_of_gaussians_are_worth_more_than_means(partition: str, tmp_path: Path) -> None:
    words = [
        "model=mlp", f"partition={partition}", "partition.num_clients=16", "rounds=20",
        "training.learning_rate=0.3",
    ]  # fmt: skip
    alone, means, whole = (
        final_score([*words, "strategy=insight", *more], tmp_path / str(n), "accuracy")
        for n, more in enumerate(
            (
                ["meta_learner=none"],
                ["meta_learner=prototypes"],
                ["meta_learner=gaussians"],
            )
        )
    )
    assert alone + 0.01 < means and means + 0.005 < whole


@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
def test_insight_beats_local_on_related_linear_clients(tau: float, tmp_path: Path) -> None:
    for seed in range(3):
        words = ["+experiment=related", f"data.deviation={tau}", f"seed={seed}"]
        local, insight = (
            final_score([*words, f"strategy={s}"], tmp_path / f"{s}{seed}", "mse")
            for s in ("local", "insight")
        )
        assert insight < local


def test_without_policies_insight_is_local(tmp_path: Path) -> None:
    """The control: what helps is the guidance, not the protocol round it."""
    words = ["model=linear", "rounds=6", "partition.num_clients=6"]
    local = final_score([*words, "strategy=local"], tmp_path / "local", "accuracy")
    mute = final_score(
        [*words, "strategy=insight", "meta_learner=none"], tmp_path / "mute", "accuracy"
    )
    assert mute == local


Columns = Callable[[Part], None]


def number(name: str, value: float, row: int = 2) -> Columns:
    def spoil(part: Part) -> None:
        column = part.numbers("insight")[name]
        part.records["insight"][name] = column.astype(type(value))  # type: ignore[index]
        part.numbers("insight")[name][row] = value

    return spoil


def payload(name: str, value: float, row: int = 2) -> Columns:
    def spoil(part: Part) -> None:
        stack = part.records["payload"]
        assert isinstance(stack, Stack)
        stack.tensors[name].flatten(1)[row, -1] = value

    return spoil


def drop(key: str, name: str) -> Columns:
    def spoil(part: Part) -> None:
        record = part.records[key]
        del (record.tensors if isinstance(record, Stack) else record)[name]

    return spoil


SPOILT: list[Any] = [
    pytest.param(lambda part: None, 0, id="honest"),
    pytest.param(number("round", 7), 1, id="stale"),
    pytest.param(number("client_id", 1), 1, id="another's client"),
    pytest.param(number("client_id", -1), 1, id="no client"),
    pytest.param(number("num_examples", -3), 1, id="negative"),
    pytest.param(number("final_loss", float("nan")), 1, id="nan"),
    pytest.param(number("final_loss", float("-inf")), 1, id="inf"),
    pytest.param(number("final_loss", -2e12), 1, id="absurd"),
    pytest.param(number("uncertainty", -0.5), 1, id="negative uncertainty"),
    pytest.param(number("num_examples", 2.5), 1, id="half an example"),
    pytest.param(number("schema_version", 1), 1, id="version"),
    pytest.param(drop("insight", "mean_grad"), 5, id="field missing"),
    pytest.param(payload("statistics_xx", float("nan")), 1, id="payload nan"),
    pytest.param(payload("statistics_xy", 2e12), 1, id="payload absurd"),
    pytest.param(payload("statistics_yy", -2e12), 1, id="payload absurdly negative"),
    pytest.param(payload("statistics_yy", -1.0), 1, id="negative squares"),
    pytest.param(payload("statistics_xx", 1e6), 1, id="more samples than there are"),
    pytest.param(drop("payload", "statistics_yy"), 5, id="payload in parts"),
    pytest.param(number("calibration_error", -0.1), 1, id="negative calibration error"),
    pytest.param(number("guidance_parts", 0.5), 1, id="half a part"),
]


@pytest.mark.parametrize(("spoil", "refused"), SPOILT)
def test_columns_are_judged_as_messages_are(spoil: Columns, refused: int) -> None:
    config = load_config([*RELATED, "rounds=1", *QUIET])
    experiment = load_experiment(to_json(config))
    results = []
    for as_columns in (True, False):
        grid, strategy = InProcessGrid(experiment), build_strategy(config, experiment.data.task)
        assert isinstance(strategy, InsightExchange)
        sent = strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
        assert isinstance(sent, Broadcast)
        replies = grid.send_and_receive(sent)
        assert isinstance(replies, Replies)
        spoil(replies.parts[0])
        guard = ReplyGuard(config.runtime, strategy)
        found = guard.inspect(sent, replies if as_columns else list(replies))
        strategy.aggregate_train(1, found.good)
        told = [(one.scalars(), sorted(one.payload)) for one in strategy.new_insights]
        results.append((found.failures, found.bytes_up, told, strategy.exchange.incoming.client_of))
    assert results[0] == results[1]
    assert len(results[0][0]) == refused
