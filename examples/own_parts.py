"""A model and a strategy of your own, in an experiment of fedmoe's.

python examples/own_parts.py model=custom model.factory=residual model.options.width=32 \
    strategy=custom strategy.factory=momentum strategy.options.beta=0.8
"""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor, nn

from fedmoe import models, strategies
from fedmoe.data import Task
from fedmoe.messages.arrays import from_record, to_record
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

    def __init__(self, *, beta: float, **options: Any) -> None:
        super().__init__(**options)
        self.beta = beta
        self.velocity: dict[str, Tensor] = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what was sent out."""
        self.sent = from_record(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step from what was sent towards the average."""
        average, metrics = super().aggregate_train(server_round, replies)
        if average is None:
            return None, metrics
        for name, mean in from_record(average).items():
            before = self.velocity.get(name, torch.zeros_like(mean))
            self.velocity[name] = self.beta * before + self.sent[name] - mean
        moved = {name: self.sent[name] - self.velocity[name] for name in self.sent}
        return to_record(moved), metrics


if __name__ == "__main__":
    sys.exit(main())
