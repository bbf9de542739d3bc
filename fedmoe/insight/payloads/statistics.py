"""Sufficient statistics of a linear regression with bias: X'X, X'Y and the squares of Y.

What it tells: the number of samples, the first and second moments of the inputs and their relation
to the targets. The column of ones makes the sum of the inputs part of X'X, so that one sample is
told as it is, and two could be solved for; a client with fewer than `insight.min_count_squares`
samples tells zeros.

Letters: C clients, n most samples of a client, D features, P = D + 1 coefficients, O outputs.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedmoe.insight.payloads.base import Payload, Shapes, Sources, shortened
from fedmoe.insight.payloads.products import is_negative


class Statistics(Payload):
    """`statistics_xx` (P, P), `statistics_xy` (P, O) and `statistics_yy` (O,); bias last."""

    name = "statistics"

    @property
    @override
    def fits(self) -> bool:
        return self.facts.task.kind == "regression" and self.facts.model.name == "linear"

    @property
    @override
    def shapes(self) -> Shapes:
        wide, outputs = self.facts.task.num_features + 1, self.facts.task.num_outputs
        return {
            "statistics_xx": (wide, wide),
            "statistics_xy": (wide, outputs),
            "statistics_yy": (outputs,),
        }

    @override
    def make(self, sources: Sources) -> dict[str, Tensor]:
        enough_C = sources.real_Cn.sum(dim=1) >= self.facts.config.min_count_squares
        real_Cn1 = (sources.real_Cn & enough_C.unsqueeze(1)).unsqueeze(-1)
        x_CnD = shortened(sources, self.facts.config.clip)
        x_CnP = torch.cat([x_CnD, torch.ones_like(x_CnD[..., :1])], dim=-1).where(real_Cn1, 0)
        y_CnO = sources.y_Cn.where(real_Cn1, 0)
        return {
            "statistics_xx": torch.bmm(x_CnP.mT, x_CnP),
            "statistics_xy": torch.bmm(x_CnP.mT, y_CnO),
            "statistics_yy": y_CnO.square().sum(dim=1),
        }

    @override
    def implausible(
        self, arrays: Mapping[str, NDArray[Any]], num_examples_C: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """What no sums of products are: more samples than there are, or a negative eigenvalue."""
        xx_CPP, xy_CPO = arrays["statistics_xx"], arrays["statistics_xy"]
        counted_C = xx_CPP[:, -1, -1]  # the bias's column of ones
        bad_C = np.asarray(counted_C > num_examples_C)
        for output, yy_C in enumerate(arrays["statistics_yy"].T):
            bad_C |= self._impossible(xx_CPP, xy_CPO[:, :, output], yy_C)
        return bad_C

    @staticmethod
    def _impossible(
        xx_CPP: NDArray[Any], xy_CP: NDArray[Any], yy_C: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Whose sums of products of inputs and one output are none, (C,)."""
        wide = xx_CPP.shape[1]
        joint_CQQ = np.zeros((len(xx_CPP), wide + 1, wide + 1))
        joint_CQQ[:, :wide, :wide], joint_CQQ[:, wide, wide] = xx_CPP, yy_C
        joint_CQQ[:, wide, :wide] = joint_CQQ[:, :wide, wide] = xy_CP
        # Units apart: what one feature loses to rounding is nothing to a larger one.
        unit_CQ = np.sqrt(np.maximum(np.diagonal(joint_CQQ, axis1=1, axis2=2), 0))
        unit_CQ = np.where(unit_CQ > 0, unit_CQ, 1)
        joint_CQQ /= unit_CQ[:, :, None] * unit_CQ[:, None, :]
        return is_negative(joint_CQQ, np.full(len(joint_CQQ), wide + 1.0))
