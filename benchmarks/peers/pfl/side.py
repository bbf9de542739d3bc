"""pfl 0.6's federated averaging on its simulated PyTorch backend: side.py WORK.

No privacy, no evaluation but the first round's, which pfl does not do without. pfl walks through
each client's samples in their order: its data sets do not shuffle.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn import functional

from benchmarks.child import Pace, Parent
from benchmarks.plain import Work

ENDLESS = 1_000_000


def with_loss(module: torch.nn.Module) -> torch.nn.Module:
    """Give the module the two functions that pfl asks of a model."""

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(module(x), y)

    @torch.no_grad()
    def metrics(x: torch.Tensor, y: torch.Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(float(loss(x, y)) * len(y), len(y))}

    module.loss, module.metrics = loss, metrics  # type: ignore[assignment]
    return module


class EachRound(TrainingProcessCallback):
    """Plays on while the parent says so."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Whether to stop."""
        del aggregate_metrics, model, central_iteration
        return not self.pace.round_ended(), Metrics()


def federation(work: Work) -> FederatedDataset:
    """Each client's samples in memory; every round takes the next clients in turn."""
    clients = range(len(work.rows))
    sets = [PyTorchTensorDataset(work.client(client), user_id=str(client)) for client in clients]
    return FederatedDataset(sets.__getitem__, get_user_sampler("minimize_reuse", list(clients)))


def main() -> None:
    """Play rounds."""
    torch.set_num_threads(1)
    parent, work = Parent(), Work(Path(sys.argv[1]))
    module = with_loss(work.module())
    model = PyTorchModel(
        module,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
    )
    data = federation(work)
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=ENDLESS,
            evaluation_frequency=ENDLESS,
            train_cohort_size=work.sampled,
            val_cohort_size=None,
        ),
        SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_batch_size=work.batch_size,
            local_num_epochs=1,
            local_learning_rate=work.learning_rate,
        ),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[EachRound(Pace(parent))],
        send_metrics_to_platform=False,
    )
    parent.say(loss=work.loss(module))


if __name__ == "__main__":
    main()
