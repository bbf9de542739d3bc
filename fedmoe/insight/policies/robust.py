"""What keeps a client that lies from deciding for all.

Letters: C clients of a round.
"""

import numpy as np
from numpy.typing import NDArray

MOST = 10.0  # times the median: honest clients differ by less, or lose little


def winsorised(values_C: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Cut values at `MOST` times their median.

    Args:
        values_C: none below 0.

    Returns:
        The values, and which of them were cut.
    """
    most = MOST * float(np.median(values_C))
    return np.minimum(values_C, most), values_C > most
