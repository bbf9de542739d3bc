"""The round loop: drives any Flower strategy over any Flower grid, and writes down what happens.

Flower's own `Strategy.start` has no hooks, no resume and no early stop, and lets one malformed
reply end a run; apart from these, the order of events is the same.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.app.exception import AppExitException
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedmoe.asking import Asking
from fedmoe.errors import RunError
from fedmoe.failures import FailureReports
from fedmoe.guard import ReplyGuard
from fedmoe.guard.routing import RoutingCheck
from fedmoe.messages import words
from fedmoe.messages.arrays import signature_of, to_record
from fedmoe.phase import Phase
from fedmoe.profiling import section
from fedmoe.riding import Riding
from fedmoe.routing_scores import FederationRouting, federation_routing
from fedmoe.schema import ExperimentConfig
from fedmoe.scores import federation_scores
from fedmoe.standing import Standing
from fedmoe.tracking.log import FILE_ONLY
from fedmoe.waiting import Waiting

_LOG = logging.getLogger("fedmoe.rounds.RoundLoop")
# What strategies raise on replies that they cannot merge; anything else is a defect of theirs.
_CANNOT_MERGE = (AppExitException, ValueError, ArithmeticError)


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """What one round leaves for the run's records.

    Attributes:
        round: from 1.
        metrics: the round's line of `metrics.jsonl`.
        clients: `clients.jsonl`, a column for each name and a line for each client.
        insights: `insights.jsonl`, a column for each name and a line for each insight.
        findings: the round's line of `findings.jsonl`, where a MetaLearner learned.
        routing: what the router did, where there is one and the round was evaluated.
    """

    round: int
    metrics: dict[str, Any]
    clients: dict[str, list[Any]]
    insights: dict[str, list[Any]]
    findings: dict[str, Any] | None
    routing: FederationRouting | None


@dataclass
class RoundLoop:
    """Runs rounds from where `standing` is until the last one, or until it may stop.

    Attributes:
        config: the experiment.
        strategy: any Flower message strategy.
        grid: any Flower grid.
        standing: where the run is; changed in place.
        client_of: the client behind a node id, for the records.
        on_round: called after each round, with everything up to date.
        routing: judges what clients say of their router; `None` if the model has none.
        waiting: waits for replies that come later; `None` where the grid does so itself.
    """

    config: ExperimentConfig
    strategy: Strategy
    grid: Grid
    standing: Standing
    client_of: Callable[[int], int]
    on_round: Callable[[RoundRecord], None]
    routing: RoutingCheck | None = None
    waiting: Waiting | None = None
    _riding: Riding = field(init=False)
    _void_reason: str = field(init=False, default="nothing")
    _failures: FailureReports = field(init=False, default_factory=FailureReports)

    def __post_init__(self) -> None:
        asking = Asking(
            config=self.config,
            strategy=self.strategy,
            grid=self.grid,
            standing=self.standing,
            client_of=self.client_of,
            guard=ReplyGuard(self.config.runtime, self.strategy, self.routing),
            waiting=self.waiting,
        )
        self._riding = Riding(asking)

    def run(self) -> str:
        """Run the remaining rounds.

        Returns:
            `completed`, or `stopped: ` and the reason.

        Raises:
            RunError: no round was valid.
        """
        self._riding.asking.check()
        status = "completed"
        while self.standing.round < self.config.rounds:
            if reason := self.standing.reason_to_stop(self.config.stopping):
                _LOG.info("stopping after round %d: %s", self.standing.round, reason)
                status = f"stopped: {reason}"
                break
            self.on_round(self._one_round(self.standing.round + 1))
        if not self.standing.valid_rounds:
            raise RunError(f"every round was void; the last one: {self._void_reason}")
        return status

    def _one_round(self, number: int) -> RoundRecord:
        started = time.perf_counter()
        trained, train_metrics, void = self._train(number)
        phases = [trained]
        validation = test = missing = routing = None
        if number % self.config.evaluate_every == 0 or number == self.config.rounds:
            evaluated = self._evaluate(number)
            phases.append(evaluated)
            with section("evaluate"):
                validation = federation_scores(evaluated.inspection.good, "validation")
                test = federation_scores(evaluated.inspection.good, "test")
                if self.routing is not None:
                    kind, good = self.routing.kind, evaluated.inspection.good
                    routing = federation_routing(number, kind, good)
            self.standing.routing = routing.as_json() if routing else None
            # Leaving clients out flatters a method, so that it has to be said; that goes for those
            # that failed, for those that the strategy did not ask, and for those that have gone.
            connected = list(self.grid.get_node_ids())
            everyone = getattr(self.grid, "num_clients", 0) or len(connected)
            self.standing.missing = missing = everyone - len(evaluated.inspection.good)
        up, down = (sum(column) for column in zip(*(p.traffic() for p in phases), strict=True))
        metrics = {
            "round": number,
            "train": {
                "loss": None if train_metrics is None else train_metrics.get(words.LOSS),
                "clients": len(trained.inspection.good),
                "failures": len(trained.inspection.failures),
                "void": void,
            },
            "validation": validation,
            "test": test,
            "missing": missing,
            "bytes": {"up": up, "down": down},
            "seconds": time.perf_counter() - started,
        }
        self.standing.finish_round(metrics, self.config.stopping.min_delta)
        if self.standing.reason_to_stop(self.config.stopping):
            # What has come of the next round was sent all the same.
            self.standing.count_bytes(metrics, *self._riding.throw_away())
        return self._record(metrics, trained, routing)

    def _record(
        self, metrics: dict[str, Any], trained: Phase, routing: FederationRouting | None
    ) -> RoundRecord:
        """All that is written down about a round."""
        number, void = metrics["round"], metrics["train"]["void"]
        insights = {} if void else getattr(self.strategy, "insight_lines", {})
        self.standing.insights += len(insights.get("round", ()))
        _LOG.info(
            "round %d: %d clients trained, %d failed%s", number, len(trained.inspection.good),
            len(trained.inspection.failures), "; void" if void else "", extra=FILE_ONLY,
        )  # fmt: skip
        return RoundRecord(
            round=number,
            metrics=metrics,
            clients=trained.client_columns(number, self.client_of),
            insights=insights,
            findings=getattr(self.strategy, "findings", None) if insights else None,
            routing=routing,
        )

    def _train(self, number: int) -> tuple[Phase, MetricRecord | None, bool]:
        """Train and aggregate; too few good replies, or an aggregation that fails, void it."""
        phase = self._riding.run(number, evaluate=False)
        self._failures.report(number, "train", self._failed(phase))
        metrics, reason = self._aggregate(number, phase)
        if reason is None:
            self.standing.valid_rounds += 1
        else:
            self._void_reason = reason
            _LOG.warning("round %d is void: %s", number, reason)
        return phase, metrics, reason is not None

    def _aggregate(self, number: int, phase: Phase) -> tuple[MetricRecord | None, str | None]:
        """The strategy's step; returns its metrics, or why the round is void."""
        good, least = phase.inspection.good, self.config.runtime.min_replies
        if len(good) < least:
            return None, f"{len(good)} good replies, {least} needed{self._example(phase)}"
        try:
            with section("aggregate"):
                arrays, metrics = self.strategy.aggregate_train(number, good)
        except _CANNOT_MERGE as error:
            return None, str(error) or type(error).__name__
        if arrays is None and metrics is None:  # how Flower's strategies skip a step
            return None, "the strategy made nothing of the replies"
        if arrays is not None:
            self.standing.arrays = same_dtypes(arrays, self.standing.arrays)
        return metrics, None

    def _example(self, phase: Phase) -> str:
        """One client's reason, for a message about many."""
        for client, reason in self._failed(phase).items():
            return f" (client {client}: {reason})"
        return ""

    def _failed(self, phase: Phase) -> dict[int, str]:
        """Why clients failed, by client."""
        failures = phase.inspection.failures
        return {self.client_of(node): failures[node] for node in sorted(failures)}

    def _evaluate(self, number: int) -> Phase:
        """Let the clients evaluate, and the strategy see the results: scores are not its own."""
        phase = self._riding.run(number, evaluate=True)
        self._failures.report(number, "evaluate", self._failed(phase))
        try:
            with section("aggregate"):
                self.strategy.aggregate_evaluate(number, phase.inspection.good)
        except _CANNOT_MERGE as error:
            _LOG.warning("round %d: the strategy could not merge metrics: %s", number, error)
        return phase


def same_dtypes(arrays: ArrayRecord, like: ArrayRecord) -> ArrayRecord:
    """Arrays in the dtypes of the model: Flower's FedOpt family returns float64 for float32."""
    wanted = signature_of(like)
    if all(dtype == wanted[name][1] for name, (_, dtype) in signature_of(arrays).items()):
        return arrays
    return to_record(
        {name: array.numpy().astype(like[name].dtype) for name, array in arrays.items()}
    )
