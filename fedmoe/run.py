"""One run of a federation, from the first round or from a checkpoint, to its summary."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedmoe.clients import Experiment
from fedmoe.guard.routing import RoutingCheck
from fedmoe.heap import settled_heap
from fedmoe.interrupt import deferred_interrupt
from fedmoe.messages.arrays import to_record
from fedmoe.pictures import draw_run
from fedmoe.profiling import section
from fedmoe.round_profile import PROFILE_FILE, RoundProfile, profile_totals
from fedmoe.rounds import RoundLoop, RoundRecord
from fedmoe.routing_scores import CLIENTS_FILE, ROUTING_FILE, FederationRouting, write_clients
from fedmoe.schema import ExperimentConfig
from fedmoe.standing import Standing
from fedmoe.strategies import build_strategy
from fedmoe.strategies.state import restore_strategy, strategy_state
from fedmoe.tracking import (
    FILE_ONLY,
    RunDirectory,
    git_commit,
    load_checkpoint,
    open_progress,
    print_summary,
    save_checkpoint,
    versions,
)
from fedmoe.training.process import prepare_process

_LOG = logging.getLogger("fedmoe.run.FederationRun")
LINE_FILES = (
    "metrics.jsonl", "clients.jsonl", "insights.jsonl", "findings.jsonl", ROUTING_FILE, PROFILE_FILE
)  # fmt: skip

Arrays = dict[str, NDArray[Any]]


class PrivateState(Protocol):
    """Where clients' private arrays can be saved from and restored to."""

    def state(self) -> Arrays:
        """Arrays by path."""
        ...

    def restore(self, arrays: Arrays) -> None:
        """Undo `state`."""
        ...


@dataclass
class FederationRun:
    """Everything one run needs.

    Attributes:
        experiment: configuration, data and model, as the server knows them.
        grid: any Flower grid with the clients behind it.
        directory: where records go.
        client_of: the client behind a node id.
        clients: the clients' private state, where this process holds it; else `None`.
    """

    experiment: Experiment
    grid: Grid
    directory: RunDirectory
    client_of: Callable[[int], int]
    clients: PrivateState | None = None

    def __post_init__(self) -> None:
        self.strategy = build_strategy(self.config, self.experiment.data.task)
        self.standing = Standing(to_record(self.experiment.shared))
        self._saved_round = -1
        self._routing: FederationRouting | None = None  # of the last evaluated round

    @property
    def config(self) -> ExperimentConfig:
        """The experiment's configuration."""
        return self.experiment.config

    def run(self) -> dict[str, Any]:
        """Run to the end.

        Returns:
            The summary, which is also written, whatever happens.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once all is written.
            FedmoeError: the run could not go on.
        """
        if self.config.resume is not None:
            self._resume()
        self.directory.write_json("config.json", asdict(self.config))
        data = self.experiment.data
        _LOG.info(
            "%s: %s (%s) among %d clients, seed %d", self.config.name, data.name, data.origin,
            data.num_clients, self.config.seed, extra=FILE_ONLY,
        )  # fmt: skip
        status = "failed"
        reason: str | None = None
        try:
            status = self._run_rounds()
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        except Exception as error:
            status, reason = "failed", str(error) or type(error).__name__
            raise
        finally:
            _LOG.info("%s after round %d", status, self.standing.round, extra=FILE_ONLY)
            summary = self.summary(status, reason)
            self.directory.write_json("summary.json", summary)
            if self._routing is not None:
                write_clients(self.directory.path / CLIENTS_FILE, self._routing, self.client_of)
        return summary

    def _run_rounds(self) -> str:
        mode, start = self.config.tracking.progress, self.standing.round
        plan = self.experiment.router
        profile = RoundProfile(self.directory) if self.config.tracking.profile else None
        with (
            profile.profile.at_work() if profile else nullcontext(),
            deferred_interrupt() as interrupted,
            open_progress(mode, self.config.rounds, start) as progress,
        ):

            def on_round(record: RoundRecord) -> None:
                with section("record"):
                    self._record(record)
                    progress.update(record.metrics)
                    every = self.config.tracking.checkpoint_every
                    if interrupted() or (every and record.round % every == 0):
                        self._checkpoint()
                if profile is not None:
                    profile.end_round(record.round)
                if interrupted():
                    raise KeyboardInterrupt

            loop = RoundLoop(
                config=self.config,
                strategy=self.strategy,
                grid=self.grid,
                standing=self.standing,
                client_of=self.client_of,
                on_round=on_round,
                routing=RoutingCheck(plan.kind) if plan else None,
            )
            status = loop.run()
            self._checkpoint()
        return status

    def _record(self, record: RoundRecord) -> None:
        # The round's own line comes last: where it stands, the others are whole.
        self.directory.append_columns("clients.jsonl", record.clients)
        self.directory.append_many("insights.jsonl", record.insights)
        if record.findings is not None:
            self.directory.append("findings.jsonl", record.findings)
        if record.routing is not None:
            self._routing = record.routing
            self.directory.append(ROUTING_FILE, record.routing.as_json())
        self.directory.append("metrics.jsonl", record.metrics)

    def _checkpoint(self) -> None:
        if self._saved_round == self.standing.round:
            return
        strategy_arrays, strategy_values = strategy_state(self.strategy)
        arrays: Arrays = {f"global/{k}": a.numpy() for k, a in self.standing.arrays.items()}
        arrays |= {f"strategy/{k}": np.asarray(a) for k, a in strategy_arrays.items()}
        if self.clients is not None:
            arrays |= {f"clients/{k}": a for k, a in self.clients.state().items()}
        values = {"standing": self.standing.as_json(), "strategy": strategy_values}
        save_checkpoint(self.directory.path, self.standing.round, arrays, values)
        _LOG.info("checkpoint of round %d", self.standing.round, extra=FILE_ONLY)
        self._saved_round = self.standing.round

    def _resume(self) -> None:
        """Go back to the newest checkpoint, and drop the records of later rounds."""
        checkpoint = load_checkpoint(self.directory.path)
        groups: dict[str, Arrays] = {"global": {}, "strategy": {}, "clients": {}}
        for path, array in checkpoint.arrays.items():
            group, _, name = path.partition("/")
            groups[group][name] = array
        values = checkpoint.state["standing"]
        self.standing = Standing.from_json(to_record(groups["global"]), values)
        restore_strategy(self.strategy, groups["strategy"], checkpoint.state["strategy"])
        if self.clients is not None:
            self.clients.restore(groups["clients"])
        for file in LINE_FILES:
            self.directory.truncate(file, checkpoint.round)
        self._saved_round = checkpoint.round
        _LOG.info("resuming %s after round %d", self.directory.path, checkpoint.round)

    def summary(self, status: str, reason: str | None = None) -> dict[str, Any]:
        """What `summary.json` holds."""
        standing, data = self.standing, self.experiment.data
        nothing = {"global": None, "personalised": None}
        return {
            "name": self.config.name,
            "status": status,
            **({"reason": reason} if reason else {}),
            "rounds": standing.round,
            "final": standing.final or nothing,
            "best": standing.best or {**nothing, "round": None},
            "missing": standing.missing,
            "objective": standing.best_objective,
            "bytes": {"up": standing.bytes_up, "down": standing.bytes_down},
            "seconds": standing.seconds,
            "insights": standing.insights,
            **({"routing": standing.routing} if standing.routing else {}),
            **(
                {"profile": profile_totals(self.directory.read_lines(PROFILE_FILE))}
                if self.config.tracking.profile
                else {}
            ),
            "data": {
                "name": data.name,
                "origin": data.origin,
                "clients": data.num_clients,
                "samples": data.num_samples,
            },
            "seed": self.config.seed,
            "versions": versions(),
            "git_commit": git_commit(),
        }


def conduct(run: FederationRun) -> dict[str, Any]:
    """Run to the end, draw the pictures, and show the summary: what every runtime does.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once all is written and drawn.
        FedmoeError: the run could not go on.
    """
    prepare_process(run.config.training.num_threads)
    with settled_heap():
        try:
            summary = run.run()
        except KeyboardInterrupt:
            _LOG.warning("interrupted; go on with resume=%s", run.directory.path)
            raise
        finally:
            if run.config.tracking.plots:
                draw_run(run.experiment, run.directory)
        print_summary(summary, run.directory.path)
    return summary
