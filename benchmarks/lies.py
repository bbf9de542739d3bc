"""Clients that lie in one field of what they tell, and what becomes of the others.

Letters: C clients that answer, L liars among them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from flwr.app import Message, MessageType
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe import Server
from fedmoe.clients import Experiment
from fedmoe.data.federation import Ints
from fedmoe.insight import clusters
from fedmoe.insight.insight import WHOLE
from fedmoe.insight.policies import believing, robust, selection, step_size
from fedmoe.messages import words
from fedmoe.messages.arrays import Stack
from fedmoe.messages.replies import Replies
from fedmoe.simulations import InProcessGrid
from fedmoe.strategies import fedmoe

Values = NDArray[np.float64]
# What all told, (C, ...), who lies, (L,), and a generator; to what the liars tell, (L, ...).
Lie = Callable[[Values, Ints, np.random.Generator], Values]
_OFF = 1e300  # a limit that is none


def _usual(told_C: Values, liars: Ints) -> float:
    """How large the others' numbers are."""
    others = np.abs(np.delete(told_C, liars, axis=0))
    return float(np.median(others[others > 0])) if (others > 0).any() else 1.0


def _honest(told_C: Values, liars: Ints) -> Values:
    return np.asarray(np.delete(told_C, liars, axis=0))


def _one_sided(told_L: Values, favourite: int) -> Values:
    lies_L = 1e4 * np.abs(told_L)
    lies_L.reshape(len(lies_L), -1)[:, favourite] = 0.0
    return lies_L


LIES: dict[str, Lie] = {
    "x 1.5": lambda told, liars, _: 1.5 * told[liars],
    "x 10": lambda told, liars, _: 10 * told[liars],
    "x 10^4": lambda told, liars, _: 1e4 * told[liars],
    "/ 10": lambda told, liars, _: told[liars] / 10,
    "zero": lambda told, liars, _: 0 * told[liars],
    "sign": lambda told, liars, _: -told[liars],
    "noise": lambda told, liars, rng: (
        _usual(told, liars) * rng.uniform(0, 2, told[liars].shape) * (told[liars] != 0)
    ),
    "largest": lambda told, liars, _: np.repeat(  # of the honest, each number
        _honest(told, liars).max(axis=0, keepdims=True), len(liars), axis=0
    ),
    # For the first, or the last, of several numbers: the others are as bad as can be.
    "first": lambda told, liars, _: _one_sided(told[liars], 0),
    "last": lambda told, liars, _: _one_sided(told[liars], -1),
    "replay": lambda told, liars, _: np.repeat(_honest(told, liars)[:1], len(liars), axis=0),
    "swap": lambda told, liars, _: np.roll(told[liars], 3, axis=min(1, told.ndim - 1)),  # classes
}


class LyingGrid(InProcessGrid):
    """Delivers what some clients did not say.

    Attributes:
        scores: each client's evaluations, numbers by name.
    """

    def __init__(
        self, experiment: Experiment, liars: Sequence[int], key: str, field: str, lie: Lie | None
    ) -> None:
        """Choose the lie.

        Args:
            experiment: of the clients.
            liars: clients.
            key: of the record that they lie in.
            field: the number or array.
            lie: `None` for the truth.
        """
        super().__init__(experiment)
        self.liars, self.key, self.field, self.lie = list(liars), key, field, lie
        self.scores: dict[int, list[dict[str, float]]] = {}
        self._rng = np.random.default_rng(0)

    @override
    def answer(self, messages: Sequence[Message], clients: Ints) -> Replies:
        """See `CohortGrid`."""
        replies = super().answer(messages, clients)
        for part in replies.parts:
            own = clients[part.rows]
            if messages[0].metadata.message_type != MessageType.TRAIN:
                numbers = part.numbers(words.METRICS)
                for place, client in enumerate(own.tolist()):
                    own_scores = {n: float(v[place]) for n, v in numbers.items()}
                    self.scores.setdefault(client, []).append(own_scores)
            elif self.lie is not None and len(liars := np.flatnonzero(np.isin(own, self.liars))):
                self._falsify(part.records, liars)
        return replies

    def _falsify(self, records: dict[str, Any], liars: Ints) -> None:
        record = records.get(self.key)
        if isinstance(record, Stack) and self.field in record.tensors:
            told = record.tensors[self.field]
            new = torch.from_numpy(self.lies_of(told.double().numpy(), liars)).to(told.dtype)
            records[self.key] = Stack({**record.tensors, self.field: new})
        elif isinstance(record, dict) and self.field in record:
            numbers = record[self.field]
            lies = self.lies_of(numbers.astype(np.float64), liars).astype(numbers.dtype)
            records[self.key] = {**record, self.field: lies}

    def lies_of(self, told_C: Values, liars: Ints) -> Values:
        """What arrives of what all told, (C, ...)."""
        if self.lie is None or len(liars) == len(told_C):
            return told_C
        arrived_C = told_C.copy()
        arrived_C[liars] = self.lie(told_C, liars, self._rng)
        if self.field in WHOLE or self.field.endswith("_count"):
            arrived_C = np.rint(np.clip(arrived_C, -1e18, 1e18))
        return arrived_C


@dataclass(frozen=True, kw_only=True)
class Consequences:
    """What came of a run.

    Attributes:
        status: of the run.
        score: of the honest clients on their test data, mean over samples and the last half of
            the evaluations.
        named: liars that the findings name, or whose reply was refused.
        accused: honest clients that the findings name.
        refused: honest clients whose reply was refused.
    """

    status: str
    score: float
    named: int
    accused: int
    refused: int


def lied(
    path: Path, overrides: Sequence[str], score: str, liars: Sequence[int],
    key: str = words.INSIGHT, field: str = "", lie: Lie | None = None,
) -> Consequences:  # fmt: skip
    """One run.

    Args:
        path: of the run directory.
        overrides: the experiment.
        score: name of the metric, in the clients' evaluation.
        liars: clients.
        key: of the record that they lie in.
        field: the number or array.
        lie: `None` for the truth.
    """
    server = Server(overrides=list(overrides), run_dir=path)
    grid = LyingGrid(server.experiment, liars, key, field, lie)
    server.federation.grid = grid
    summary = server.run()
    assert server.directory is not None
    failed = {
        one["client"] for one in server.directory.read_lines("clients.jsonl")
        if one["status"] != "ok"
    }  # fmt: skip
    suspects = {
        one["client"]
        for line in server.directory.read_lines("findings.jsonl")
        for one in line["suspects"]
    }
    # Of the last half of the evaluations: with few clients a round, single ones vary.
    honest = [
        one for client, scores in grid.scores.items() if client not in liars
        for one in scores[len(scores) // 2 :]
    ]  # fmt: skip
    weight = np.array([one["test-num-examples"] for one in honest])
    return Consequences(
        status=summary["status"],
        score=float(weight @ [one[f"test-{score}"] for one in honest] / weight.sum()),
        named=len((failed | suspects) & set(liars)),
        accused=len(suspects - set(liars)),
        refused=len(failed - set(liars)),
    )


@contextmanager
def undefended() -> Iterator[None]:
    """Believe whatever passes the guard, in this process."""
    rules: dict[str, Any] = {
        "FACTOR": _OFF, "MOST": _OFF, "ABSURD": _OFF, "_LIKELY": _OFF, "_SMALL": 0.0,
        "_copies": _no_copies,
    }  # fmt: skip
    with (
        patch.multiple(robust, **rules),
        patch.object(clusters, "_MOST_APART", _OFF),
        patch.object(step_size, "_MOST", _OFF),
        patch.object(believing, "_ROUNDING", _OFF),
        patch.object(selection, "_TOO_OFTEN", _OFF),
        patch.object(fedmoe, "_FEWEST", 10**9),
    ):
        yield


def _no_copies(count_KO: Values, sum_KOD: Values) -> tuple[Values, dict[int, str]]:
    del sum_KOD
    return np.ones(len(count_KO)), {}
