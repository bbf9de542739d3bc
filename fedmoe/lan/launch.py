"""What `fedmoe.server` does: a SuperLink, a submitted run, and an eye on both until it ends.

The rounds themselves run in Flower's ServerApp process, which writes the run directory; what is
shown here is read from there.
"""

import json
import logging
import os
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

from fedmoe.binding import check_binding
from fedmoe.configuration.dividing import divided_among
from fedmoe.errors import ConfigError, RunError
from fedmoe.lan import NODES, RESUME, RUN_DIR
from fedmoe.lan.access import ServerKeys
from fedmoe.lan.fleet_proxy import fleet_proxy, listener
from fedmoe.lan.processes import Family
from fedmoe.lan.restart import goes_on
from fedmoe.lan.signals import Asked, asked_to_end, raise_as
from fedmoe.lan.superlink import SuperLink
from fedmoe.lan.tail import Tail, warning_of
from fedmoe.schema import ExperimentConfig, LanConfig, NaturalConfig
from fedmoe.tracking import (
    RunDirectory,
    configure_logging,
    open_progress,
    open_run_directory,
    print_summary,
)

_LOG = logging.getLogger("fedmoe.lan.Launch")
_STEP = 0.1  # seconds between two looks at the run directory
_ASK_EVERY = 10.0  # seconds between two questions to Flower, which are for when a run died unseen
_LAST_WORD_SECONDS = 60.0  # for the end of a run to be known
_NODES_FILE = "nodes.json"
_SERVER_APP = "flwr-serverapp"
_PREFIX = "ServerApp failed with exception: "  # Flower's, before an error's own words


def serve(config: ExperimentConfig, run_dir: Path, typed: Collection[str] = ()) -> dict[str, Any]:
    """Run an experiment with clients that come over the network.

    Args:
        config: of `runtime=lan`; with `resume` the run directory named there is continued.
        run_dir: where to write; if another run has it, a sibling is taken.
        typed: keys that the user set, who may have said how many clients share the data.

    Returns:
        The run's summary, as in `summary.json`.

    Raises:
        FedmoeError: bad data or configuration, or a run that cannot go on.
        KeyboardInterrupt: after Ctrl-C, once the last round's checkpoint is written.
        SystemExit: after SIGTERM, likewise.
    """
    config = _shared_out(config, typed)
    runtime = config.runtime
    assert isinstance(runtime, LanConfig)
    keys = _keys(runtime)
    has_keys = keys is not None
    warnings = check_binding(
        runtime.host, tls=has_keys, insecure=runtime.insecure, client_keys=has_keys
    )
    directory = open_run_directory(config, run_dir)
    if config.resume is None:
        directory.write_json("config.json", asdict(config))  # a run killed at once can be resumed
    elif not goes_on(directory.path, config.tracking.checkpoint_every):
        warnings.append(f"no checkpoint in {directory.path} yet: beginning with round 1")
    home = directory.path / ".flower"
    environment = {
        "FLWR_HOME": str(home),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        RUN_DIR: str(directory.path),
        RESUME: "1" if config.resume else "",
        NODES: str(home / _NODES_FILE),
    }
    log = directory.path / "superlink.log"
    try:
        with (
            configure_logging(config.tracking, directory.path / "server.log"),
            asked_to_end() as asked,
            Family(environment, log) as family,
        ):
            for warning in warnings:
                _LOG.warning("%s", warning)
            return _Launch(config, directory, family, asked).run(home, log, keys)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _shared_out(config: ExperimentConfig, typed: Collection[str]) -> ExperimentConfig:
    """The data among as many clients as are waited for, where the user says nothing else.

    Raises:
        ConfigError: more are waited for than there are.
    """
    runtime = config.runtime
    assert isinstance(runtime, LanConfig)
    said = {"partition.num_clients", "data.num_clients"} & set(typed)
    if not (said or config.resume or isinstance(config.partition, NaturalConfig)):
        config = divided_among(config, runtime.min_clients)
    shares = getattr(config.partition, "num_clients", None)
    if shares is not None and runtime.min_clients > shares:
        raise ConfigError(
            f"runtime.min_clients={runtime.min_clients}: the data are divided among {shares} "
            "clients (partition.num_clients)"
        )
    return config


def _keys(runtime: LanConfig) -> ServerKeys | None:
    """What the server and its clients are known by, where they have keys.

    Raises:
        ConfigError: some are missing, or are none.
    """
    if runtime.keys is None:
        return None
    keys = ServerKeys.of(runtime.keys)
    keys.known()  # so that a file that holds no key is found out now
    return keys


def _federation(directory: RunDirectory) -> str:
    """The name that clients keep their private state under, the same for as long as the run."""
    path = directory.path / "federation.json"
    if not path.exists():
        directory.write_json("federation.json", {"federation": uuid.uuid4().hex})
    return str(json.loads(path.read_text())["federation"])


class _Launch:
    """One run, seen from outside."""

    def __init__(
        self, config: ExperimentConfig, directory: RunDirectory, family: Family, asked: Asked
    ) -> None:
        self._config, self._directory, self._family, self._asked = config, directory, family, asked
        self._summary_path = directory.path / "summary.json"
        self._written_before = self._written()
        self._metrics = Tail(directory.path / "metrics.jsonl")
        self._run_log = Tail(directory.path / "run.log")

    def run(self, home: Path, log: Path, keys: ServerKeys | None) -> dict[str, Any]:
        runtime = self._config.runtime
        assert isinstance(runtime, LanConfig)
        with listener(runtime.host, runtime.port) as door:
            link = SuperLink(runtime.control_port, keys, self._family, home, log)
            (home / _NODES_FILE).write_text(json.dumps(link.start()))
            # Clients are let in when their keys are known: who is refused then is a stranger.
            with fleet_proxy(door, link.address, runtime.max_reply_bytes, keys):
                _LOG.info(
                    "listening at %s:%d for %d clients; Flower's own commands at %s; results go "
                    "to %s", runtime.host, runtime.port, runtime.min_clients, link.address,
                    self._directory.path,
                )  # fmt: skip
                link.submit(replace(self._config, resume=None), _federation(self._directory))
                self._follow(link)
                return self._outcome(link)

    def _follow(self, link: SuperLink) -> None:
        """Show rounds as they come, until the run has ended or was asked to."""
        next_question = time.monotonic() + _ASK_EVERY
        start, over = self._rounds_done(), False
        with open_progress(self._config.tracking.progress, self._config.rounds, start) as progress:
            while True:
                # Asked first: what is read afterwards holds all that was written until the end.
                ended = over or self._written() != self._written_before
                for line in self._metrics.lines():
                    progress.update(json.loads(line))
                for line in self._run_log.lines():
                    if (message := warning_of(line)) is not None:
                        _LOG.warning("%s", message)
                if ended:
                    return
                if self._asked():
                    self._stop()
                link.check()
                if time.monotonic() > next_question:
                    over = link.status()[0].startswith("finished")
                    next_question = time.monotonic() + _ASK_EVERY
                time.sleep(_STEP)

    def _stop(self) -> NoReturn:
        """Ask the rounds to end after the present one, and wait for that, or for a second word."""
        _LOG.info("ending after this round; once more to end at once")
        for pid in self._family.members(_SERVER_APP):
            os.kill(pid, signal.SIGINT)
        while (
            self._written() == self._written_before
            and self._family.members(_SERVER_APP)
            and self._asked.times < 2
        ):
            time.sleep(_STEP)
        _LOG.warning("interrupted; go on with resume=%s", self._directory.path)
        raise_as(self._asked)

    def _outcome(self, link: SuperLink) -> dict[str, Any]:
        """The summary of a run that Flower, too, calls completed.

        Raises:
            RunError: it failed; says why.
        """
        deadline = time.monotonic() + _LAST_WORD_SECONDS
        while not (told := link.status())[0].startswith("finished"):
            if time.monotonic() > deadline:
                raise RunError(f"the run is {told[0]}, although its summary is written")
            time.sleep(_STEP)
        fresh = self._written() != self._written_before
        summary: dict[str, Any] = json.loads(self._summary_path.read_text()) if fresh else {}
        if told[0] != "finished:completed" or summary.get("status", "failed") == "failed":
            reason = str(summary.get("reason") or told[1] or told[0]).removeprefix(_PREFIX)
            if not fresh:  # it came to an end before it came to rounds
                failed = {"name": self._config.name, "status": "failed", "reason": reason}
                self._directory.write_json("summary.json", failed)
            raise RunError(reason)
        print_summary(summary, self._directory.path)
        return summary

    def _rounds_done(self) -> int:
        if self._config.resume is None:
            return 0
        lines = self._directory.read_lines("metrics.jsonl")
        return max((line["round"] for line in lines), default=0)

    def _written(self) -> tuple[int, int] | None:
        """Which summary there is: it is replaced as a whole."""
        try:
            found = self._summary_path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns
