"""FedProx: Li et al., "Federated optimization in heterogeneous networks", arXiv 1812.06127.

The server is FedAvg's; it tells the clients mu, and they add mu / 2 ||w - w_t||^2 to their loss
(equation 2, see `fedmoe.training.terms.Proximal`). The paper's variable amount of local work is
not part of it: every client makes the configured epochs.
"""

from typing import Any

from flwr.serverapp import strategy as flower

from fedmoe.strategies.base import ONE_IS_ENOUGH, StackedFedAvg


class FedProx(flower.FedProx, StackedFedAvg):
    """Flower's FedProx on our sampling and averaging."""

    evaluation_rides = True

    def __init__(self, *, seed: int, **options: Any) -> None:
        super().__init__(**{**ONE_IS_ENOUGH, **options})
        self.seed = seed  # not among the arguments that Flower's class hands on
