"""From who owns each row to the rows that each client owns."""

import numpy as np

from fedmoe.data.federation import Ints


def rows_by_owner(owner_N: Ints, num_clients: int) -> list[Ints]:
    """The rows of each of K clients, ascending, given the client of each row."""
    order = np.argsort(owner_N, kind="stable")
    sizes = np.bincount(owner_N, minlength=num_clients)
    return np.split(order, np.cumsum(sizes)[:-1])
