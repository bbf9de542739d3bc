"""One run of a federation, from the first round or from a checkpoint, to its summary."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

from flwr.serverapp import Grid

from fedmoe.clients import Experiment
from fedmoe.guard.routing import RoutingCheck
from fedmoe.heap import settled_heap
from fedmoe.interrupt import deferred_interrupt
from fedmoe.ordered_grid import OrderedGrid
from fedmoe.pictures import draw_run
from fedmoe.profiling import section
from fedmoe.round_profile import PROFILE_FILE, RoundProfile, profile_totals
from fedmoe.rounds import RoundLoop, RoundRecord
from fedmoe.routing_scores import CLIENTS_FILE, ROUTING_FILE, FederationRouting, write_clients
from fedmoe.run_state import RunState
from fedmoe.schema import ExperimentConfig
from fedmoe.tracking import (
    FILE_ONLY,
    RunDirectory,
    git_commit,
    open_progress,
    print_summary,
    versions,
)
from fedmoe.training.process import prepare_process
from fedmoe.waiting import Waiting

_LOG = logging.getLogger("fedmoe.run.FederationRun")
LINE_FILES = (
    "metrics.jsonl", "clients.jsonl", "insights.jsonl", "findings.jsonl", ROUTING_FILE, PROFILE_FILE
)  # fmt: skip


@dataclass
class FederationRun:
    """Rounds from where a server stands to the last that the configuration says, on record.

    Attributes:
        experiment: data and model, as the server knows them.
        config: the experiment's, with as many rounds as this run is to reach.
        state: what is changed.
        grid: any Flower grid with the clients behind it.
        directory: where records go.
        client_of: the client behind a node id.
    """

    experiment: Experiment
    config: ExperimentConfig
    state: RunState
    grid: Grid
    directory: RunDirectory
    client_of: Callable[[int], int]
    _routing: FederationRouting | None = field(init=False, default=None)  # of the last evaluation

    def run(self) -> dict[str, Any]:
        """Run to the end.

        Returns:
            The summary, which is also written, whatever happens.

        Raises:
            KeyboardInterrupt: after Ctrl-C, once all is written.
            FedmoeError: the run could not go on.
        """
        if self.state.torn:
            self._drop_later_records()
        self.directory.write_json("config.json", asdict(self.config))
        data = self.experiment.data
        _LOG.info(
            "%s: %s (%s) among %d clients, seed %d", self.config.name, data.name, data.origin,
            data.num_clients, self.config.seed, extra=FILE_ONLY,
        )  # fmt: skip
        status = "failed"
        reason: str | None = None
        self.state.torn = True
        try:
            status = self._run_rounds()
            self.state.torn = False
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        except Exception as error:
            status, reason = "failed", str(error) or type(error).__name__
            raise
        finally:
            _LOG.info("%s after round %d", status, self.state.standing.round, extra=FILE_ONLY)
            summary = self.summary(status, reason)
            self.directory.write_json("summary.json", summary)
            if self._routing is not None:
                write_clients(self.directory.path / CLIENTS_FILE, self._routing, self.client_of)
        return summary

    def _run_rounds(self) -> str:
        mode, start = self.config.tracking.progress, self.state.standing.round
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
                    self.state.torn = False  # nothing is lost: a checkpoint has just been written
                    raise KeyboardInterrupt

            loop = RoundLoop(
                config=self.config,
                strategy=self.state.strategy,
                grid=self.grid,
                standing=self.state.standing,
                client_of=self.client_of,
                on_round=on_round,
                routing=RoutingCheck(plan.kind) if plan else None,
                waiting=self._waiting(),
            )
            status = loop.run()
            self._checkpoint()
        return status

    def _waiting(self) -> Waiting | None:
        """What waits for clients that are other processes."""
        others = isinstance(self.grid, OrderedGrid)
        return Waiting(self.grid, self.config.runtime) if others else None

    def _record(self, record: RoundRecord) -> None:
        # The round's own line comes last: where it stands, the others are whole.
        self.directory.append_columns("clients.jsonl", record.clients)
        self.directory.append_columns("insights.jsonl", record.insights)
        if record.findings is not None:
            self.directory.append("findings.jsonl", record.findings)
        if record.routing is not None:
            self._routing = record.routing
            self.directory.append(ROUTING_FILE, record.routing.as_json())
        self.directory.append("metrics.jsonl", record.metrics)

    def _checkpoint(self) -> None:
        if self.state.save(self.directory.path):
            _LOG.info("checkpoint of round %d", self.state.standing.round, extra=FILE_ONLY)

    def _drop_later_records(self) -> None:
        """Go on from the last round that stands: what was written of later ones is void."""
        number = self.state.standing.round
        for file in LINE_FILES:
            self.directory.truncate(file, number)
        _LOG.info("resuming %s after round %d", self.directory.path, number)

    def summary(self, status: str, reason: str | None = None) -> dict[str, Any]:
        """What `summary.json` holds."""
        standing, data = self.state.standing, self.experiment.data
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
            **({"strikes": standing.strikes} if standing.strikes else {}),
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
