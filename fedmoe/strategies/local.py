"""Nobody talks: each client trains its own model on its own data.

The baseline that every federated method has to beat. Clients get a round number and answer
with metrics; no weights travel in either direction, and each model stays in its client's state.
"""

from fedmoe.strategies.base import StackedFedAvg


class Local(StackedFedAvg):
    """FedAvg's sampling, and nothing else of it."""

    has_global_model = False
    evaluation_rides = True
