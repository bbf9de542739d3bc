"""Federated averaging.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data",
arXiv 1602.05629, algorithm 1.

Deviation: the fraction C of the clients is rounded down, with at least one client, as in
Flower; the paper's max(C K, 1) leaves the rounding open.
"""

from fedmoe.strategies.base import StackedFedAvg


class FedAvg(StackedFedAvg):
    """Average the clients' weights by their numbers of examples."""

    evaluation_rides = True
