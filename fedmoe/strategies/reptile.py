"""Reptile: Nichol, Achiam and Schulman, "On first-order meta-learning algorithms", 2018.

arXiv 1803.02999, the batched version of section 3: w <- w + epsilon mean_k (w_k - w), w_k what
client k has made of w by some steps of its own. With epsilon = 1 it is FedAvg: averaging clients'
weights *is* this rule of meta-learning. The server's step is Flower's `FedAvgM` without momentum,
on our sampling and averaging.

Deviations: clients weigh by their numbers of examples, so that epsilon = 1 is FedAvg to the digit,
where the paper's tasks weigh the same; epsilon is constant, where the authors' code lets it fall
to 0.
"""

from typing import Any

from flwr.serverapp import strategy as flower

from fedmoe.strategies.base import ONE_IS_ENOUGH, StackedFedAvg


class Reptile(flower.FedAvgM, StackedFedAvg):
    """A step of length epsilon towards the average of the clients' weights."""

    mergeable = True
    evaluation_rides = True

    def __init__(self, *, seed: int, epsilon: float, **options: Any) -> None:
        step = {"server_learning_rate": epsilon, "server_momentum": 0.0}
        super().__init__(**{**ONE_IS_ENOUGH, **options, **step})
        self.seed = seed  # not among the arguments that Flower's class hands on
