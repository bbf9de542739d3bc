"""The server of a global and a local expert (arXiv 2010.02056): FedAvg of the global one.

What makes it a mixture happens at the clients, see `fedmoe.clients.algorithms.local_global`.
"""

from fedmoe.strategies.base import StackedFedAvg


class LocalGlobal(StackedFedAvg):
    """Average the global experts by the clients' numbers of examples."""

    evaluation_rides = True
