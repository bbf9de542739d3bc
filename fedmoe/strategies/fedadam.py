"""FedAdam: Reddi et al., "Adaptive federated optimization", arXiv 2003.00295, algorithm 2.

The server optimiser is Flower's own, on our sampling and averaging. Flower deviates from the
paper in correcting the moments' bias, with round + 1 as the step (see its source).
"""

from typing import Any

from flwr.serverapp import strategy as flower

from fedmoe.strategies.base import ONE_IS_ENOUGH, StackedFedAvg


class FedAdam(flower.FedAdam, StackedFedAvg):
    """Adam at the server, on the average of the clients' changes."""

    mergeable = True
    evaluation_rides = True

    def __init__(self, *, seed: int, **options: Any) -> None:
        super().__init__(**{**ONE_IS_ENOUGH, **options})
        self.seed = seed  # not among the arguments that Flower's class hands on
