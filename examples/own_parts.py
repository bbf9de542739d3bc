"""A model and a strategy of your own, in an experiment of fedmoe's.

python examples/own_parts.py model=custom model.factory=residual model.options.width=32 \
    strategy=custom strategy.factory=momentum strategy.options.beta=0.8
"""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor, nn

from fedmoe import models, strategies
from fedmoe.data import Task
from fedmoe.messages.arrays import from_record
from fedmoe.messages.replies import Replies
from fedmoe.models import Parameters
from fedmoe.simulate import main


class Residual(nn.Module):
    """Any module from (batch, features) to (batch, outputs); cohorts run it under vmap."""

    def __init__(self, features: int, outputs: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(features, width)
        self.back = nn.Linear(width, features)
        self.head = nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(x + self.back(torch.relu(self.inner(x))))
        return logits


@models.register("residual")
def residual(task: Task, width: int) -> nn.Module:
    """Called with the task and `model.options`."""
    return Residual(task.num_features, task.num_outputs, width)


@strategies.register("momentum")
class ServerMomentum(strategies.StackedFedAvg):
    """FedAvgM (arXiv 1909.06335): v <- beta v + (w - mean w_k); w <- w - v."""

    mergeable = True  # the mean is all that `merge` needs: Ray's workers then send no more

    def __init__(self, *, beta: float, **options: Any) -> None:
        super().__init__(**options)
        self.beta = beta
        self.velocity: Parameters = {}  # checkpoints keep it

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what is sent out."""
        self.sent = from_record(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def merge(self, replies: Replies) -> Parameters:
        """Step from what was sent towards the clients' mean."""
        moved = {}
        for name, mean in super().merge(replies).items():
            before = self.velocity.get(name, torch.zeros_like(mean))
            self.velocity[name] = self.beta * before + self.sent[name] - mean
            moved[name] = self.sent[name] - self.velocity[name]
        return moved


if __name__ == "__main__":
    sys.exit(main())
