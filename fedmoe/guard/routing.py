"""What a client says of its router: sums that its samples could have made.

Letters: C clients, T totals, J numbers of a client.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedmoe.errors import ReplyError
from fedmoe.messages.arrays import Signature
from fedmoe.messages.words import SUMS
from fedmoe.models.router_metrics import MOST, TOTALS, RouterKind

_ROUNDING = 1e-3  # relative; sums are taken in single precision
_COUNT, _ONE = "count", "one"  # what a total is measured by, besides other totals

Bad = NDArray[np.bool_]


class RoutingCheck:
    """Checks the sums of one kind of model.

    Attributes:
        kind: of the model.
        signature: shape and dtype of what travels.
    """

    def __init__(self, kind: RouterKind) -> None:
        self.kind = kind
        self.signature: Signature = {SUMS: ((kind.size,), "float32")}
        above, known = 1 + _ROUNDING, float(kind.has_answers)
        error = (_COUNT, 0.0, known * (1.0 if kind.has_classes else MOST))
        limits = {  # by what a total is measured, and between which multiples of that it lies
            "answered": (_COUNT, 0.0, 1.0),
            # Rounding may take a probability past 1, and so its entropy below 0.
            "gate_entropy": (
                _COUNT, -_ROUNDING, (math.log(kind.num_experts) + _ROUNDING) * above
            ),
            "compared": (_COUNT, 0.0, 1.0),
            "changed": ("compared", 0.0, 1.0),
            "errors": error,
            "random_errors": error,
            "similarity": (_ONE, 0.0, known * kind.num_experts**2 * above),
        }  # fmt: skip
        measures = [*TOTALS, _COUNT, _ONE]
        self._measure_T = np.array([measures.index(limits[name][0]) for name in TOTALS])
        self._least_T, self._most_T = np.array([limits[name][1:] for name in TOTALS]).T

    def check(self, sums_J: Tensor, count: object) -> None:
        """Check one client's sums, which are of the signature and finite.

        Args:
            sums_J: what travels.
            count: how many samples the client has by its own account.

        Raises:
            ReplyError: its samples could not have made them; names the first that is wrong.
        """
        bad_CN = self._implausible(sums_J.cpu().numpy()[None], np.array([count]))
        for name, bad in zip(("load", "class_load", *TOTALS), bad_CN[0].tolist(), strict=True):
            if bad:
                raise ReplyError(f"routing {name}: not what {count} samples add up to")

    def doubtful(self, sums_CJ: Tensor, count_C: NDArray[Any]) -> Bad:
        """Which of many clients' sums, (C,), `check` would refuse.

        Args:
            sums_CJ: of the signature; of those that are not finite either may be said.
            count_C: see `check`.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(self._implausible(sums_CJ.cpu().numpy(), count_C).any(axis=1))

    def _implausible(self, sums_CJ: NDArray[Any], count_C: NDArray[Any]) -> Bad:
        """(C, 2 + T) for load, load by class, and each total."""
        experts, clients = self.kind.num_experts, len(count_C)
        loads_CJ, totals_CT = sums_CJ[:, : -len(TOTALS)], sums_CJ[:, -len(TOTALS) :]
        load_CE, class_load_CJ = loads_CJ[:, :experts], loads_CJ[:, experts:]
        bad = np.empty((clients, 2 + len(TOTALS)), dtype=np.bool_)
        bad[:, 0] = (load_CE.min(axis=1) < 0) | (load_CE.max(axis=1) > count_C)
        weight_C = class_load_CJ.sum(axis=1, dtype=np.float64)
        bad[:, 1] = (class_load_CJ.min(axis=1) < 0) | (weight_C > count_C * (1 + _ROUNDING))
        measures = np.column_stack([totals_CT, count_C, np.ones(clients)])[:, self._measure_T]
        bad[:, 2:] = (totals_CT < measures * self._least_T) | (totals_CT > measures * self._most_T)
        return bad
