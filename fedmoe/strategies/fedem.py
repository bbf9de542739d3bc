"""FedEM's server: every component is FedAvg's average (arXiv 2108.10252, algorithm 1, line 12).

What makes it FedEM happens at the clients, see `fedmoe.clients.algorithms.fedem`.
"""

from fedmoe.strategies.base import StackedFedAvg


class FedEm(StackedFedAvg):
    """Average all components by the clients' numbers of examples."""

    evaluation_rides = True
