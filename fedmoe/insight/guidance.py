"""Guidance: what the MetaLearner gives back to one client.

Letters: O outputs (classes), D features, P = D + 1 coefficients of a linear model with bias.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.data.federation import Floats


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Changes one client's local training; a part that is `None` changes nothing.

    Attributes:
        prior_mean: (P, O) mean of the prior on a linear model's coefficients, bias last.
        prior_ratio: noise variance over prior variance, sigma^2 / tau^2; larger pulls harder.
        prototypes: (O, D) mean input of each class over the federation; rows of unknown classes
            are zero.
        prototype_weight: (O,) weight of each class's rehearsal; 0 where there is no prototype.
    """

    prior_mean: Floats | None = None
    prior_ratio: float = 0.0
    prototypes: Floats | None = None
    prototype_weight: Floats | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The parts that are there, by name, as they travel."""
        parts = {
            "prior_mean": self.prior_mean,
            "prior_ratio": None if self.prior_mean is None else np.float32(self.prior_ratio),
            "prototypes": self.prototypes,
            "prototype_weight": self.prototype_weight,
        }
        return {name: np.asarray(value) for name, value in parts.items() if value is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "Guidance":
        """Put received guidance together.

        Raises:
            ValueError: an unknown part, or one that is not finite.
        """
        known = {"prior_mean", "prior_ratio", "prototypes", "prototype_weight"}
        if unknown := set(arrays) - known:
            raise ValueError(f"guidance has unknown parts: {sorted(unknown)}")
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise ValueError(f"guidance {name} is not finite")
        return cls(
            prior_mean=arrays.get("prior_mean"),
            prior_ratio=float(arrays.get("prior_ratio", 0.0)),
            prototypes=arrays.get("prototypes"),
            prototype_weight=arrays.get("prototype_weight"),
        )
