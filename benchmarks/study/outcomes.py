"""What came of a run, and the file that keeps it: one JSON line a run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.study.runs import Run


class Score(NamedTuple):
    """Accuracy over all clients' own test data.

    Attributes:
        mean: on the pooled samples.
        worst: mean of the worst tenth of the clients.
        std: between clients.
    """

    mean: float
    worst: float
    std: float


class Point(NamedTuple):
    """An evaluated round.

    Attributes:
        round: from 1.
        bytes: that a client has sent and got by then, in training.
        validation, test: accuracy of the method's own model.
    """

    round: int
    bytes: float
    validation: float
    test: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One finished run.

    Attributes:
        reason: why it failed; `None` if it did not.
        validation: accuracy of the method's own model after the last round.
        last: test scores after the last round, of the models that there are: `global` and
            `personalised`.
        best: the same of the round that was best on validation data.
        best_round: which round that was.
        up, down: bytes that a client sends and gets in a round of training, on average.
        course: the evaluated rounds.
        routing: what the router did in the last round, where there is one.
        seconds: of a core that the run took.
    """

    reason: str | None = None
    validation: float | None = None
    last: dict[str, Score]
    best: dict[str, Score]
    best_round: int | None = None
    up: float
    down: float
    course: list[Point]
    routing: dict[str, Any] | None = None
    seconds: float

    @property
    def own(self) -> Score | None:
        """Of the method's own model: each client's, or the global one where there is no other."""
        return self.last.get("personalised") or self.last.get("global")

    @property
    def own_best(self) -> Score | None:
        """The same in the round that was best on validation data."""
        return self.best.get("personalised") or self.best.get("global")

    @property
    def alive(self) -> int | None:
        """Experts that do something, where that is known."""
        routing = self.routing or {}
        load, dead = routing.get("load"), routing.get("dead_experts")
        return None if load is None or dead is None else len(load) - int(dead)

    @classmethod
    def failed(cls, reason: str, seconds: float) -> "Outcome":
        """Of a run that has no result."""
        return cls(reason=reason, last={}, best={}, up=0.0, down=0.0, course=[], seconds=seconds)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Outcome":
        """Undo `asdict` after a trip through JSON."""
        scores = {
            key: {which: Score(*score) for which, score in values[key].items()}
            for key in ("last", "best")
        }
        return cls(**{**values, **scores, "course": [Point(*point) for point in values["course"]]})


class Records:
    """The outcomes of all runs that have finished, in a file that grows line by line."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a line that was cut off is not."""
        self.path = path
        self._by_key: dict[str, Outcome] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_text(encoding="utf-8") if path.exists() else ""
        whole, _, torn = content.rpartition("\n")
        for line in filter(None, whole.split("\n")):
            record = json.loads(line)
            self._by_key[record["key"]] = Outcome.from_json(record["outcome"])
        if torn:
            path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")

    def __contains__(self, run: Run) -> bool:
        return run.key in self._by_key

    def __getitem__(self, run: Run) -> Outcome:
        return self._by_key[run.key]

    def of(self, runs: Sequence[Run]) -> list[Outcome]:
        """The outcomes of runs, all of which have finished."""
        return [self[run] for run in runs]

    def add(self, run: Run, outcome: Outcome) -> None:
        """Keep one more."""
        record = {"key": run.key, "words": run.words, "outcome": asdict(outcome)}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        self._by_key[run.key] = outcome
