"""What a client says of its router: sums that its samples could have made.

Letters: C clients, J numbers of a client.
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
        most_of_error = known * (1.0 if kind.has_classes else MOST)
        most = {  # for each sample
            "answered": 1.0,
            "gate_entropy": (math.log(kind.num_experts) + _ROUNDING) * above,
            "compared": 1.0,
            "changed": 1.0,
            "errors": most_of_error,
            "random_errors": most_of_error,
            "similarity": known * kind.num_experts**2 * above,
        }
        places = [("load", 1.0)] * kind.num_experts + [(name, most[name]) for name in TOTALS]
        places += [("class_load", above)] * (kind.num_experts * kind.num_classes)
        self._names, limits = zip(*places, strict=True)
        self._most_J = np.array(limits)
        self._compared, self._changed = map(self._names.index, ("compared", "changed"))

    def check(self, sums_J: Tensor, count: object) -> None:
        """Check one client's sums, which are of the signature and finite.

        Args:
            sums_J: what travels.
            count: how many samples the client has by its own account.

        Raises:
            ReplyError: its samples could not have made them; names the first that is wrong.
        """
        sums_CJ, count_C = sums_J.cpu().numpy()[None], np.array([count])
        if self._bad(sums_CJ, count_C)[0]:
            outside_J = (sums_CJ < 0) | (sums_CJ > count_C * self._most_J)
            name = self._names[outside_J.argmax()] if outside_J.any() else "changed or class_load"
            raise ReplyError(f"routing {name}: not what {count} samples add up to")

    def doubtful(self, sums_CJ: Tensor, count_C: NDArray[Any]) -> Bad:
        """Which of many clients' sums, (C,), `check` would refuse, or are not finite.

        Args:
            sums_CJ: of the signature.
            count_C: see `check`.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            return self._bad(sums_CJ.cpu().numpy(), count_C)

    def _bad(self, sums_CJ: NDArray[Any], count_C: NDArray[Any]) -> Bad:
        """Which are not between 0 and what as many samples add up to, (C,); NaN is not."""
        fits_CJ = sums_CJ <= count_C[:, None] * self._most_J
        weight_C = sums_CJ[:, self.kind.num_experts + len(TOTALS) :].sum(axis=1, dtype=np.float64)
        good_C = fits_CJ.all(axis=1) & (sums_CJ.min(axis=1) >= 0)
        good_C &= sums_CJ[:, self._changed] <= sums_CJ[:, self._compared]
        good_C &= weight_C <= count_C * (1 + _ROUNDING)
        return np.asarray(~good_C)
