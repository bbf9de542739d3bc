"""One of Ray's workers: answers for the clients that it owns, and keeps their data and state."""

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from fedmoe import models
from fedmoe.clients import Clients, load_experiment
from fedmoe.clients.states import Kept, StackedStates
from fedmoe.config import from_json
from fedmoe.data.federation import Ints
from fedmoe.data.sources import custom
from fedmoe.messages.arrays import as_arrays
from fedmoe.messages.seams import ensure_task_identity
from fedmoe.models import Parameters
from fedmoe.profiling import Profile
from fedmoe.schema import RayConfig
from fedmoe.simulations.cohort_grid import clients_of
from fedmoe.simulations.parcels import Answer, Parcel, packed_replies
from fedmoe.simulations.shards import answer_in_shards
from fedmoe.training.process import prepare_process

REGISTRIES = (models.REGISTRY, custom.REGISTRY)  # what clients may need of the user's own
Written = list[Kept]  # the private arrays that a call wrote


class Worker:
    """Answers messages to its share of the clients; runs in a process of its own."""

    def __init__(self, config_json: str, path: Sequence[str], factories: bytes) -> None:
        """Start afresh.

        Args:
            config_json: the experiment.
            path: where the run looks for modules, such as the user's own.
            factories: the user's own, of each of `REGISTRIES`, as `cloudpickle` writes them.
        """
        import ray

        sys.path += [folder for folder in path if folder not in sys.path]
        ensure_task_identity()
        config = from_json(config_json)
        if isinstance(config.runtime, RayConfig) and not config.runtime.gpus_per_worker:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks for any
        for registry, own in zip(REGISTRIES, ray.cloudpickle.loads(factories), strict=True):
            registry.factories |= own
        self.experiment = load_experiment(config_json)
        prepare_process(config.training.num_threads)
        self.states = _RecordedStates()

    def is_ready(self) -> bool:
        """True, once the worker has started."""
        return True

    def restore(self, *written: Written) -> None:
        """Put the clients' private arrays back, from what earlier calls returned."""
        self.states = _RecordedStates()
        for call in written:
            self.states.put_back(call)
        self.states.take()

    def everything(self) -> tuple[bool, Written]:
        """Whether there is any private array, and all of them."""
        kept = self.states.everything()
        return bool(kept), kept

    def answer(self, given: Sequence[Parcel]) -> tuple["Answered", Written]:
        """Answer each parcel; also returns what was written to the clients' state."""
        import ray

        profile, answers = Profile(), []
        with profile.at_work(), profile.section("pack"):
            for parcel in given:
                messages = parcel.open(ray.get)
                replies = answer_in_shards(
                    Clients(self.experiment, self.states),
                    messages,
                    clients_of(parcel.nodes),
                    always_merge=True,
                )
                answers.append(packed_replies(replies))
        written = self.states.take()
        return Answered(answers, profile.take(), bool(written)), written


class Answered(NamedTuple):
    """What comes back of one call.

    Attributes:
        answers: one for each parcel.
        seconds: by section.
        has_written: whether private arrays have changed.
    """

    answers: list[Answer]
    seconds: dict[str, float]
    has_written: bool


class _RecordedStates(StackedStates):
    """Remembers what is written, so that it outlives the worker."""

    def __init__(self) -> None:
        super().__init__()
        self._written: Written = []

    def write(self, key: str, clients: Ints, arrays: Parameters) -> None:
        self._written.append((key, clients, as_arrays(arrays)))
        super().write(key, clients, arrays)

    def take(self) -> Written:
        """What was written since this was last asked."""
        written, self._written = self._written, []
        return written
