"""Where a run is: the global model, the totals, the best round so far, and whether to stop."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord

from fedmoe.schema import StoppingConfig
from fedmoe.scores import Scores, objective


@dataclass
class Standing:
    """A run's progress, all of which a checkpoint keeps.

    Attributes:
        arrays: the global model.
        round: the last finished round; 0 before the first.
        valid_rounds: rounds that were not void.
        insights: how many were learned from.
        bytes_up: bytes that clients have sent.
        bytes_down: bytes that the server has sent.
        seconds: spent in rounds.
        final: test scores of the last evaluated round.
        missing: clients whose evaluation failed then, and who are not in those scores.
        routing: what the router did then; `None` without one.
        best: test scores of the round that was best on validation data, with its `round`.
        best_objective: that round's validation objective.
        last_objective: the newest validation objective.
        higher_is_better: whether the objective is an accuracy.
        reference: the objective that the next improvement is measured from.
        stale: evaluations since then.
        strikes: refused replies by client, of clients that have sent any.
    """

    arrays: ArrayRecord
    round: int = 0
    valid_rounds: int = 0
    insights: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    final: Scores | None = None
    missing: int = 0
    routing: dict[str, Any] | None = None
    best: Scores | None = None
    best_objective: float | None = None
    last_objective: float | None = None
    higher_is_better: bool = True
    reference: float | None = None
    stale: int = 0
    strikes: dict[int, int] = field(default_factory=dict)

    def struck_out(self, most: int | None) -> set[int]:
        """Clients that are not to be asked any more, at `most` strikes; nobody if `None`."""
        if most is None:
            return set()
        return {client for client, count in self.strikes.items() if count >= most}

    def finish_round(self, metrics: Mapping[str, Any], min_delta: float) -> None:
        """Count a round, and judge it if it was evaluated.

        The best round is chosen by validation data; test scores are only ever reported.

        Args:
            metrics: the round's line of `metrics.jsonl`.
            min_delta: what counts as an improvement for early stopping.
        """
        self.round = metrics["round"]
        self.bytes_up += metrics["bytes"]["up"]
        self.bytes_down += metrics["bytes"]["down"]
        self.seconds += metrics["seconds"]
        test, validation = metrics["test"], metrics["validation"]
        if test is None:
            return
        self.final = test
        judged = objective(validation)
        if judged is None:  # no validation data: the best round cannot be told
            return
        self.last_objective, self.higher_is_better = judged
        if self._improves_on(self.best_objective, by=0.0):
            self.best, self.best_objective = {**test, "round": self.round}, self.last_objective
        if self._improves_on(self.reference, by=min_delta):
            self.reference, self.stale = self.last_objective, 0
        else:
            self.stale += 1

    def count_bytes(self, metrics: Mapping[str, Any], up: int, down: int) -> None:
        """Add bytes to the totals and to the line of a round that is finished already."""
        metrics["bytes"]["up"] += up
        metrics["bytes"]["down"] += down
        self.bytes_up += up
        self.bytes_down += down

    def reason_to_stop(self, stopping: StoppingConfig) -> str | None:
        """Why the run may end now, or `None`."""
        if stopping.target is not None and self.last_objective is not None:
            reached = (
                self.last_objective >= stopping.target
                if self.higher_is_better
                else self.last_objective <= stopping.target
            )
            if reached:
                return f"validation reached {self.last_objective:.4g}, target {stopping.target:g}"
        if stopping.patience is not None and self.stale >= stopping.patience:
            return f"no improvement in {self.stale} evaluations"
        return None

    def _improves_on(self, earlier: float | None, by: float) -> bool:
        assert self.last_objective is not None
        if earlier is None:
            return True
        gain = self.last_objective - earlier
        return gain > by if self.higher_is_better else -gain > by

    def as_json(self) -> dict[str, Any]:
        """Everything but the arrays."""
        return {name: value for name, value in vars(self).items() if name != "arrays"}

    @classmethod
    def from_json(cls, arrays: ArrayRecord, values: dict[str, Any]) -> "Standing":
        """Undo `as_json`."""
        strikes = {int(client): count for client, count in values.get("strikes", {}).items()}
        return cls(arrays, **{**values, "strikes": strikes})
