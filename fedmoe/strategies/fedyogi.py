"""FedYogi: Reddi et al., "Adaptive federated optimization", arXiv 2003.00295, algorithm 2.

As FedAdam, but for the second moment, which moves by the sign of its error and so falls no faster
than it has risen: v <- v - (1 - beta_2) d^2 sign(v - d^2), d the average of the clients' changes.
The server optimiser is Flower's own, on our sampling and averaging. Flower deviates from the
paper in starting v at 0 and not at tau^2 or above.
"""

from typing import Any

from flwr.serverapp import strategy as flower

from fedmoe.strategies.base import ONE_IS_ENOUGH, StackedFedAvg


class FedYogi(flower.FedYogi, StackedFedAvg):
    """Yogi at the server, on the average of the clients' changes."""

    mergeable = True
    evaluation_rides = True

    def __init__(self, *, seed: int, **options: Any) -> None:
        super().__init__(**{**ONE_IS_ENOUGH, **options})
        self.seed = seed  # not among the arguments that Flower's class hands on
