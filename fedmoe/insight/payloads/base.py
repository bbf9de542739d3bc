"""What a payload is: arrays that an insight carries besides its numbers.

A payload says how large it is before it is sent, is computed for many clients at once, and knows
what no honest client could have sent. Both sides make it from the same configuration.

Letters: C clients, n most samples of a client, D features, O outputs, P parameters, E experts,
S public inputs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from fedmoe.data.federation import Task
from fedmoe.models import MixtureOfExperts
from fedmoe.models.router_losses import FederationLoad
from fedmoe.schema import ExperimentConfig, InsightConfig, ModelConfig

MAX_MAGNITUDE = 1e12  # no honest statistic of ours comes near; keeps sums finite
ROUNDING = 1e-3  # what float32 may lose of a sum, and more
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Facts:
    """What both sides know beforehand, and payloads are made by.

    Attributes:
        task: what is to be learnt.
        model: as configured.
        config: the rules of disclosure among it.
        num_experts: of the mixture that clients train; `None` where it is none.
        seed: of what is drawn the same by all clients.
    """

    task: Task
    model: ModelConfig
    config: InsightConfig
    num_experts: int | None
    seed: int

    @classmethod
    def of(cls, config: ExperimentConfig, task: Task, model: nn.Module) -> "Facts":
        """Those of an experiment whose clients train such a model."""
        experts = model.num_experts if isinstance(model, MixtureOfExperts) else None
        return cls(task, config.model, config.insight, experts, config.seed)


@dataclass(frozen=True)
class Sources:
    """What payloads are computed from; what takes work is done when it is asked for.

    Attributes:
        x_CnD: training inputs; padding may hold anything.
        y_Cn: classes, or (C, n, O) targets.
        real_Cn: which samples are not padding.
        change: (C, P) what the round changed of the models, of what the strategy shares of them.
        load: how the models use their experts, (C, E), on the training inputs; of a mixture.
        part: (C, ...) a part of the guidance that the clients hold, by name.
        answers: (C, S, O) what the models say of the public inputs: logits or predictions.
    """

    x_CnD: Tensor
    y_Cn: Tensor
    real_Cn: Tensor
    change: Callable[[], Tensor]
    load: Callable[[], FederationLoad]
    part: Callable[[str], Tensor]
    answers: Callable[[], Tensor]


class Payload(ABC):
    """One kind of payload.

    Attributes:
        name: in the configuration.
        of_data: whether it follows from a client's data alone, so that it is told once; else it
            changes with the model and is told whenever it is asked for.
        made_by: the part of guidance that it follows from besides; `None` for none.
        facts: what it is made by.
    """

    name: ClassVar[str]
    of_data: ClassVar[bool] = True
    made_by: ClassVar[str | None] = None

    def __init__(self, facts: Facts) -> None:
        self.facts = facts

    def due(self, round: int) -> bool:
        """Whether it is asked for in a round, from 1, where it changes with the model."""
        del round
        return True

    @property
    def fits(self) -> bool:
        """Whether there is such a thing for the task and the model."""
        return True

    @property
    @abstractmethod
    def shapes(self) -> Shapes:
        """A client's arrays, float32, by name."""

    @property
    def nbytes(self) -> int:
        """Of a client's arrays, without what a message puts around them."""
        return sum(4 * prod(shape) for shape in self.shapes.values())

    @abstractmethod
    def make(self, sources: Sources) -> dict[str, Tensor]:
        """The clients' arrays, (C, ...) by name; what must not be disclosed is 0."""

    def implausible(
        self, arrays: Mapping[str, NDArray[Any]], num_examples_C: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Which clients' arrays of good shape and size no honest client could have sent, (C,)."""
        del arrays
        return np.full(len(num_examples_C), False)


class ClassPayload(Payload):
    """One that tells of each class."""

    @property
    @override
    def fits(self) -> bool:
        return self.facts.task.kind == "classification"


def out_of_range(array_C: NDArray[Any]) -> NDArray[np.bool_]:
    """Which clients' array, (C, ...), holds what is no number or absurdly large, (C,)."""
    flat = array_C.reshape(len(array_C), -1)
    low, high = flat.min(axis=1, initial=0), flat.max(axis=1, initial=0)
    # NaN compares with nothing.
    return np.asarray(~((high <= MAX_MAGNITUDE) & (low >= -MAX_MAGNITUDE)))


def wrong_counts(
    count_CO: NDArray[Any], num_examples_C: NDArray[Any], fewest: int
) -> NDArray[np.bool_]:
    """Which clients' samples by class are no whole numbers, too few to be told, or too many, (C,).

    Args:
        count_CO: samples told; 0 where there are none or too few.
        num_examples_C: that each client has.
        fewest: that may be told.
    """
    bad_CO = (count_CO != 0) & (count_CO < fewest)
    bad_CO |= count_CO != np.rint(count_CO)
    return np.asarray(bad_CO.any(axis=1) | (count_CO.sum(axis=1) > num_examples_C))


def enough(sources: Sources, fewest: int, array: Tensor) -> Tensor:
    """Clients' arrays, (C, ...); 0 of those with fewer samples."""
    enough_C = sources.real_Cn.sum(dim=1) >= fewest
    return array.where(enough_C.view(-1, *[1] * (array.dim() - 1)), 0)


def shortened(sources: Sources, clip: float | None) -> Tensor:
    """Inputs, (C, n, D), of L2 norm `clip` at most; padding is 0."""
    x_CnD = sources.x_CnD.where(sources.real_Cn.unsqueeze(-1), 0)
    if clip is None:
        return x_CnD
    norm_Cn1 = x_CnD.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return x_CnD * torch.clamp_max(clip / norm_Cn1, 1.0)
