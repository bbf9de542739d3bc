"""FedAdagrad: Reddi et al., "Adaptive federated optimization", arXiv 2003.00295, algorithm 2.

v <- v + d^2 and w <- w + eta d / (sqrt(v) + tau), d the average of the clients' changes; the
paper's beta_1 is 0 here, as in its experiments. The server optimiser is Flower's own, on our
sampling and averaging. Flower deviates from the paper in starting v at 0 and not at tau^2 or
above.
"""

from typing import Any

from flwr.serverapp import strategy as flower

from fedmoe.strategies.base import ONE_IS_ENOUGH, StackedFedAvg


class FedAdagrad(flower.FedAdagrad, StackedFedAvg):
    """Adagrad at the server, on the average of the clients' changes."""

    mergeable = True
    evaluation_rides = True

    def __init__(self, *, seed: int, **options: Any) -> None:
        super().__init__(**{**ONE_IS_ENOUGH, **options})
        self.seed = seed  # not among the arguments that Flower's class hands on
