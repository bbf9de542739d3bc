"""Spreads: how each class of a client spreads in a few directions, in sums of products.

Of D features each class has D (D + 1) / 2 products (`gaussians` with `insight.covariance=class`),
but a class spreads in few directions. So clients are told some directions, the guidance's part
`gaussian_basis` with columns u_1 to u_r (say the leading eigenvectors of the pooled covariance),
and tell the sums of z z' of each class with z = (u_1' x, ..., u_r' x). They add up over clients
that have the same basis, and are asked for again when a client is told another.

What it tells: what `gaussians` with products do, in r directions. Classes with fewer than
`insight.min_count_squares` samples are not told.

Letters: C clients, n most samples of a client, D features, O classes, r directions,
R = r (r + 1) / 2 pairs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedmoe.insight.payloads.base import ClassPayload, Shapes, Sources
from fedmoe.insight.payloads.gaussians import covariance_of, told_samples
from fedmoe.insight.payloads.products import is_negative, products_of, unpacked

BASIS = "gaussian_basis"


class Spreads(ClassPayload):
    """`spread_products` (O, R), packed, see `products.unpacked`."""

    name = "spreads"
    made_by = BASIS

    @property
    @override
    def fits(self) -> bool:
        """Where `gaussians` tell main directions, but not each class's products."""
        told = covariance_of(self.facts.config, self.facts.task.num_features)
        return super().fits and told in ("pooled", "sketch")

    @property
    @override
    def shapes(self) -> Shapes:
        rank = min(self.facts.config.rank, self.facts.task.num_features)
        return {"spread_products": (self.facts.task.num_outputs, rank * (rank + 1) // 2)}

    @override
    def make(self, sources: Sources) -> dict[str, Tensor]:
        config, outputs = self.facts.config, self.facts.task.num_outputs
        x_CnD, told_Cn = told_samples(sources, config.clip, config.min_count_squares, outputs)
        z_Cnr = torch.bmm(x_CnD, sources.part(BASIS))
        each = [products_of(z_Cnr, told_Cn & (sources.y_Cn == c)) for c in range(outputs)]
        return {"spread_products": torch.stack(each, dim=1)}

    @override
    def implausible(
        self, arrays: Mapping[str, NDArray[Any]], num_examples_C: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Products that have a negative eigenvalue."""
        products_CORR = unpacked(arrays["spread_products"])
        bad_C = np.full(len(num_examples_C), False)
        for products_CRR in np.swapaxes(products_CORR, 0, 1):
            bad_C |= is_negative(products_CRR, np.trace(products_CRR, axis1=1, axis2=2))
        return bad_C
