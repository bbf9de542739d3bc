"""Guidance: what the MetaLearner gives back to one client.

Parts are arrays that a client keeps until it is told others, so that each travels once; numbers
hold for one round.

Letters: O outputs (classes), S public inputs, E experts, D features, P = D + 1 coefficients of a
linear model with bias, r directions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.data.federation import Task
from fedmoe.insight.payloads.gaussians import covariance_of
from fedmoe.insight.payloads.products import is_negative, unpacked
from fedmoe.schema import InsightConfig

# By name: what a part is, and its shape for a task.
#   prior_mean: mean of the prior on a linear model's coefficients, bias last
#   prior_ratio: noise variance over prior variance, sigma^2 / tau^2; larger pulls harder
#   prototypes: mean input of each class over the federation; rows of unknown classes are 0
#   prototype_weight: weight of each class's rehearsal; 0 where there is no prototype
#   gaussian_basis: directions, one a column, in which clients tell how their classes spread
#   gaussian_means: mean of each class; rows of unknown classes are 0
#   gaussian_spread: covariance of each class in those directions, packed
#   gaussian_residual: variances that the directions leave; each class's where there are none
#   gaussian_weight: weight of each class's rehearsal; 0 where nothing is known of it
#   expert: 1 + the expert of a mixture at which a client's prior begins and is held
#   soft_labels: probabilities of the classes of each public input
#   soft_weight: weight of learning them, against a client's own samples
#   expert_bias: what is added to a loss-free router's scores where it chooses experts
PARTS = (
    "prior_mean", "prior_ratio", "prototypes", "prototype_weight", "gaussian_basis",
    "gaussian_means", "gaussian_spread", "gaussian_residual", "gaussian_weight", "expert",
    "soft_labels", "soft_weight", "expert_bias",
)  # fmt: skip
_VARIANCES = ("gaussian_residual", "gaussian_weight")
# What a number is:
#   learning_rate: factor on the configured learning rate; factors of several policies multiply
#   epochs: passes over the client's data in place of the configured ones
NUMBERS = ("learning_rate", "epochs")


def part_shapes(
    task: Task, config: InsightConfig, num_experts: int | None = None
) -> dict[str, tuple[int, ...]]:
    """The shape that each part must have; `num_experts` is `None` where there is no mixture."""
    features, outputs = task.num_features, task.num_outputs
    rank = min(config.rank, features)
    by_class = covariance_of(config, features) == "diagonal"
    return {
        "prior_mean": (features + 1, outputs),
        "prior_ratio": (),
        "prototypes": (outputs, features),
        "prototype_weight": (outputs,),
        "expert": (),
        "gaussian_basis": (features, rank),
        "gaussian_means": (outputs, features),
        "gaussian_spread": (outputs, rank * (rank + 1) // 2),
        "gaussian_residual": (outputs, features) if by_class else (features,),
        "gaussian_weight": (outputs,),
        "soft_labels": (config.public_samples, outputs),
        "soft_weight": (),
        "expert_bias": (num_experts or 0,),
    }


@dataclass(frozen=True)
class Guidance:
    """Changes one client's local training; what is not there changes nothing.

    Attributes:
        parts: float32 arrays by name, one of `PARTS` each.
        numbers: by name, one of `NUMBERS` each.
    """

    parts: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    def with_parts(self, parts: Mapping[str, NDArray[Any]]) -> "Guidance":
        """The same with other parts; one that is equal stays the same object.

        What is the same object is not told again.
        """
        return Guidance(
            {
                name: self.parts[name]
                if name in self.parts and np.array_equal(self.parts[name], new)
                else new
                for name, new in parts.items()
            },
            self.numbers,
        )

    def check(self, task: Task, config: InsightConfig, num_experts: int | None = None) -> None:
        """Refuse guidance that does not fit; see `part_shapes`.

        Raises:
            ValueError: an unknown part, one of a wrong shape, one that is not finite or no
                covariance; a number that is unknown or no positive one.
        """
        shapes = part_shapes(task, config, num_experts)
        if unknown := set(self.parts) - set(shapes) | set(self.numbers) - set(NUMBERS):
            raise ValueError(f"guidance has unknown parts: {sorted(unknown)}")
        for name, array in self.parts.items():
            if array.shape != shapes[name]:
                raise ValueError(
                    f"guidance {name} has shape {array.shape}, expected {shapes[name]}"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"guidance {name} is not finite")
            if name in _VARIANCES and (array < 0).any():
                raise ValueError(f"guidance {name} is below 0")
            if name == "gaussian_spread":
                spread_Orr = unpacked(array)
                if is_negative(spread_Orr, np.trace(spread_Orr, axis1=1, axis2=2)).any():
                    raise ValueError(f"guidance {name} is no covariance")
        for name, value in self.numbers.items():
            if not 0 < value < np.inf or (name == "epochs" and value != int(value)):
                kind = "a whole number" if name == "epochs" else "a finite number"
                raise ValueError(f"guidance {name}={value}: must be {kind} above 0")
