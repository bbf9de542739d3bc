"""What travels: every message of a run, both ways, read as a network would."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from mixture_runs import STRATEGIES, experiment_of, run
from numpy.typing import NDArray

from fedmoe.clients import Experiment
from fedmoe.data.federation import Ints
from fedmoe.messages.arrays import plain
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import wire_bytes, with_content
from fedmoe.messages.sizes import content_bytes
from fedmoe.simulations import InProcessGrid

Way = Literal["down", "up"]
ROUNDS = 5
WORDS = ["strategy.fraction_train=0.5", f"rounds={ROUNDS}", "evaluate_every=2"]
RESTARTS = ["strategy.restarts=2", "strategy.restart_rounds=2"]
EXPERTS = {"experts.weight", "experts.bias"}


class Recording(InProcessGrid):
    """Keeps copies of all contents; whoever sends and answers does not notice.

    Attributes:
        seen: kind of message, way, client, and content.
    """

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(experiment)
        self.seen: list[tuple[str, Way, int, RecordDict]] = []

    def answer(self, messages: Sequence[Message], clients: Ints) -> Replies:
        replies = super().answer(messages, clients)
        copy = Replies(replies.requests, replies.parts, replies.plain)
        requests = messages.take(np.arange(len(messages)))  # type: ignore[attr-defined]
        for client, request, reply in zip(clients.tolist(), requests, copy, strict=True):
            kind = request.metadata.message_type
            self.seen += [
                (kind, "down", client, plain(request.content)),
                (kind, "up", client, plain(reply.content)),
            ]
        return replies


def recorded(strategy: str, more: Sequence[str] = ()) -> tuple[Recording, list[dict[str, int]]]:
    """A run's messages, and the bytes that it reports by round."""
    words = [*STRATEGIES[strategy], *WORDS, *more]
    grid = Recording(experiment_of(words))
    found = run(words, grid=grid)
    return grid, [record.metrics["bytes"] for record in found.records]


def names(content: RecordDict) -> dict[str, set[str]]:
    return {key: set(record) for key, record in content.array_records.items()}


def rows(content: RecordDict) -> int:
    (count,) = {array.shape[0] for array in content.array_records["arrays"].values()}
    return count


def values(content: RecordDict) -> list[NDArray[np.float32]]:
    """Every row of every array, flat."""
    arrays = [
        array.numpy() for record in content.array_records.values() for array in record.values()
    ]
    return [row for array in arrays for row in array.reshape(len(array), -1)]


@pytest.mark.parametrize(
    ("strategy", "more", "down", "up"),
    [("fedem", [], 3, 3), ("ifca", RESTARTS, 3, 1), ("local_global", [], 1, 1)],
)
def test_private_parts_never_travel(strategy: str, more: list[str], down: int, up: int) -> None:
    grid, _ = recorded(strategy, more)
    told = {"arrays": EXPERTS, "experts": {"index", "examples"}}
    if strategy != "ifca":
        del told["experts"]
    kinds = {(kind, way) for kind, way, _, _ in grid.seen}
    assert kinds == {(kind, way) for kind in ("train", "evaluate") for way in ("down", "up")}
    for kind, way, _, content in grid.seen:
        if way == "down":
            assert names(content) == {"arrays": EXPERTS}
            assert dict(content.config_records["config"]).keys() == {"server-round"}
            assert rows(content) == down
        elif kind == "evaluate":
            assert names(content) == {"routing": {"sums"}}
        else:
            assert names(content) == told
            assert rows(content) == up
        if way == "up":
            assert set(content.metric_records) == {"metrics"}


def test_a_local_expert_is_in_no_message() -> None:
    """Not under another name either: no row of any array is what a client keeps."""
    grid, _ = recorded("local_global")
    kept = {path: array for path, array in grid.state().items() if "experts." in path}
    assert {path.partition("/")[2] for path in kept} == EXPERTS
    own = {row.tobytes() for array in kept.values() for row in array.reshape(len(array), -1)}
    travelled = {row.tobytes() for *_, content in grid.seen for row in values(content)}
    assert travelled and not own & travelled


def test_a_reply_of_ifca_s_says_which_model_it_is_and_on_how_many_samples() -> None:
    grid, _ = recorded("ifca", RESTARTS)
    count_K = grid.experiment.data.parts["train"].counts_K  # type: ignore[union-attr]
    for kind, way, client, content in grid.seen:
        if (kind, way) != ("train", "up"):
            continue
        told = content.array_records["experts"]
        index, examples = told["index"].numpy(), told["examples"].numpy()
        assert (str(index.dtype), index.shape) == ("int64", (1,))
        assert index[0] in range(3)
        assert (str(examples.dtype), examples.tolist()) == ("float32", [count_K[client]])
        assert content.metric_records["metrics"]["num-examples"] == count_K[client]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_reported_bytes_are_those_that_travel(strategy: str) -> None:
    """Arrays as they are serialised, and each number with its name."""
    grid, reported = recorded(strategy, RESTARTS if strategy == "ifca" else [])
    counted = {"down": 0, "up": 0}
    for *_, way, _, content in grid.seen:
        for record in content.array_records.values():
            counted[way] += sum(len(array.data) for array in record.values())
        for numbers in content.metric_records.values():
            counted[way] += sum(len(name.encode()) + 8 for name in numbers)
        for settings in content.config_records.values():
            counted[way] += sum(len(name.encode()) + 8 for name in settings)
    assert {way: sum(one[way] for one in reported) for way in counted} == counted


def test_flower_can_serialise_the_replies() -> None:
    """What is counted is most of what a network carries: its envelope is small."""
    grid, _ = recorded("ifca", ["model=mlp", "model.hidden=[200]"])
    message = Message(RecordDict(), 2, "train")
    contents = [content for kind, way, _, content in grid.seen if (kind, way) == ("train", "up")]
    assert contents
    for content in contents:
        counted = content_bytes(content)
        assert counted <= len(wire_bytes(with_content(message, content))) <= 1.2 * counted
