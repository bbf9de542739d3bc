"""Ray's workers as one pool: started, asked, and started again where one is lost.

Whoever can join the Ray cluster can run code on it: a cluster is one domain of trust.
"""

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import Error
from flwr.common.constant import ErrorCode

from fedmoe.clients import Experiment
from fedmoe.clients.states import Kept
from fedmoe.config import to_json
from fedmoe.errors import ConfigError, RunError
from fedmoe.schema import RayConfig
from fedmoe.simulations.parcels import Arrays, Parcel
from fedmoe.simulations.ray_cluster import connect, first_line, number_of_workers
from fedmoe.simulations.ray_worker import REGISTRIES, Answered, Worker

_LOG = logging.getLogger("fedmoe.simulations.WorkerPool")
_PATIENCE = 60.0  # seconds between warnings of workers that do not start
_MOST_WRITES = 8  # calls whose writes to private state are kept one by one


class WorkerPool:
    """Actors, each with a share of the clients.

    What a call writes to its clients' private state is kept in the object store, and not with
    the worker alone: if the worker is lost, another goes on from there, and is asked again what
    the lost one was asked.
    """

    def __init__(self, experiment: Experiment, config: RayConfig) -> None:
        self._ray, self._ours = connect(config)
        self._config, self._restarts = config, 0
        self._workers: list[Any] = []
        self._starting: list[Any] = []
        try:
            count = number_of_workers(self._ray, config)
            self._arguments = (to_json(experiment.config), sys.path, self._factories())
        except ConfigError:
            self.close()  # or the next run of this process would find this Ray, and join it
            raise
        self._remote = self._ray.remote(Worker).options(
            num_cpus=config.cpus_per_worker, num_gpus=config.gpus_per_worker, max_restarts=0
        )
        self._workers = [self._start() for _ in range(count)]
        self._writes: list[list[Any]] = [[] for _ in range(count)]  # references, oldest first
        self._restoring: dict[int, Any] = {}  # by worker, what nobody has looked at yet

    def __len__(self) -> int:
        """Number of workers."""
        return len(self._workers)

    def _factories(self) -> bytes:
        """The user's own; as bytes: a worker reads them once it looks for modules where we do.

        Raises:
            ConfigError: they cannot be sent.
        """
        try:
            return bytes(self._ray.cloudpickle.dumps([one.factories for one in REGISTRIES]))
        except Exception as error:  # pickle raises what it likes
            raise ConfigError(
                f"runtime=ray: what is registered cannot be sent to workers ({error}); it can be "
                "where it is in a module of its own"
            ) from error

    def _start(self) -> Any:
        worker = self._remote.remote(*self._arguments)
        self._starting.append(worker.is_ready.remote())
        return worker

    def put(self, arrays: Arrays) -> Any:
        """Arrays into the object store; returns a reference."""
        return self._ray.put(arrays)

    def answer(self, shares: Sequence[list[Parcel]]) -> list[Answered | Error]:
        """Ask each worker; an error for a worker that does not answer before the deadline.

        Raises:
            RunError: workers are lost again and again, or have a defect.
        """
        late = Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "no reply before the deadline")
        results: list[Answered | Error] = [
            late if share else Answered([], {}, has_written=False) for share in shares
        ]
        asked = {worker: self._ask(worker, own) for worker, own in enumerate(shares) if own}
        self._await_start()
        deadline = time.monotonic() + self._config.round_timeout
        while asked:
            first_returns = {reply[0]: worker for worker, reply in asked.items()}
            left = max(0.0, deadline - time.monotonic())
            ready, _ = self._ray.wait(list(first_returns), timeout=left)
            if not ready:
                break
            worker = first_returns[ready[0]]
            answered = self._take(worker, asked.pop(worker))
            if answered is None:
                asked[worker] = self._ask(worker, shares[worker])
            else:
                results[worker] = answered
        for worker in asked:  # it is still at work on what nobody waits for any more
            self._replace(worker)
        return results

    def _await_start(self) -> None:
        """Wait for workers that start: those seconds are not the clients' to answer for."""
        while self._starting:
            count = len(self._starting)
            _, self._starting = self._ray.wait(self._starting, num_returns=count, timeout=_PATIENCE)
            if self._starting:
                _LOG.warning("%d workers wait for room on the Ray cluster", len(self._starting))

    def _ask(self, worker: int, share: list[Parcel]) -> Any:
        return self._workers[worker].answer.options(num_returns=2).remote(share)

    def _take(self, worker: int, reply: Any) -> Answered | None:
        """A worker's answer, or `None` if it was lost and another has taken its place."""
        answered, written = reply
        try:
            found: Answered = self._ray.get(answered)
        except self._ray.exceptions.RayTaskError as error:
            raise RunError(f"worker {worker} failed: {error.cause!r}") from error
        except self._ray.exceptions.RayError as error:
            self._restart(worker, error)
            return None
        self._check_restored(worker)
        if found.has_written:
            self._writes[worker].append(written)
            self._join_writes(worker)
        return found

    def _restart(self, worker: int, error: Exception) -> None:
        """Start a worker that was lost again.

        Raises:
            RunError: that has happened too often.
        """
        if getattr(error, "actor_init_failed", False):
            raise RunError(f"a worker cannot start: {_last_line(error)}") from error
        self._restarts += 1
        if self._restarts > self._config.max_restarts:
            raise RunError(
                f"worker {worker} was lost ({first_line(error)}), and "
                f"runtime.max_restarts={self._config.max_restarts} are used up"
            ) from error
        _LOG.warning("worker %d was lost and is started again: %s", worker, first_line(error))
        self._replace(worker)

    def _replace(self, worker: int) -> None:
        """Start a worker afresh, with its clients as they were after the last whole call."""
        self._ray.kill(self._workers[worker])
        self._workers[worker] = self._start()
        self._restoring.pop(worker, None)
        if self._writes[worker]:
            self._give_back(worker)

    def _give_back(self, worker: int) -> None:
        """Let a worker's clients go on from what was written."""
        self._restoring[worker] = self._workers[worker].restore.remote(*self._writes[worker])

    def _check_restored(self, worker: int) -> None:
        """See that a worker which has answered had its clients' private state.

        Raises:
            RunError: it is lost, and the clients have begun anew.
        """
        if worker not in self._restoring:
            return
        try:
            self._ray.get(self._restoring.pop(worker))
        except self._ray.exceptions.RayError as error:
            raise RunError(
                f"the private state of worker {worker}'s clients is lost with the machine that "
                f"held it ({type(error).__name__}); a checkpoint has what there was"
            ) from error

    def _join_writes(self, worker: int) -> None:
        """Many calls' writes into one, lest they pile up; if that fails they stay as they are."""
        if len(self._writes[worker]) > _MOST_WRITES:
            done, everything = self._workers[worker].everything.options(num_returns=2).remote()
            try:
                self._ray.get(done)
            except self._ray.exceptions.RayError:
                return
            self._writes[worker] = [everything]

    def everything(self) -> list[Kept]:
        """All clients' private arrays: one entry a record, by client."""
        kept = [one for worker in range(len(self)) for one in self._everything_of(worker)]
        joined = []
        for key in dict.fromkeys(key for key, _, _ in kept):
            clients = np.concatenate([own for name, own, _ in kept if name == key])
            order = np.argsort(clients)
            tables = [arrays for name, _, arrays in kept if name == key]
            whole = {n: np.concatenate([table[n] for table in tables])[order] for n in tables[0]}
            joined.append((key, clients[order], whole))
        return joined

    def _everything_of(self, worker: int) -> list[Kept]:
        while True:
            _, everything = self._workers[worker].everything.options(num_returns=2).remote()
            try:
                found: list[Kept] = self._ray.get(everything)
                self._check_restored(worker)
                return found
            except self._ray.exceptions.RayError as error:
                self._restart(worker, error)

    def restore(self, worker: int, kept: list[Kept]) -> None:
        """Give a worker's clients their private arrays back."""
        self._writes[worker] = [self._ray.put(kept)] if kept else []
        self._give_back(worker)

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for worker in self._workers:
            self._ray.kill(worker)
        self._workers = []
        if self._ours:
            self._ray.shutdown()


def _last_line(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2]
