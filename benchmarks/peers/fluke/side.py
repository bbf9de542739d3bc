"""fluke 0.8.1's FedAVG with everything in memory: side.py WORK."""

import sys
from pathlib import Path

import torch

if torch.__version__.endswith("+cpu"):
    # torchvision, which fluke imports and this does not use, comes built for CUDA; without its
    # compiled operators it still imports where their names are known.
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from fluke import DDict, FlukeENV
from fluke.algorithms.fedavg import FedAVG
from fluke.data import DataSplitter, DummyDataContainer, FastDataLoader
from fluke.server import EarlyStopping
from fluke.utils import FederationObserver

from benchmarks.child import Pace, Parent
from benchmarks.plain import Work

ENDLESS = 1_000_000


class EachRound(FederationObserver):
    """Plays on while the parent says so."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def end_round(self, round: int) -> None:
        """Called after every round."""
        if not self.pace.round_ended():
            raise EarlyStopping(round)


def loaders(work: Work) -> list[FastDataLoader]:
    """The fast loader of fluke's own for each client."""
    return [
        FastDataLoader(
            *work.client(client),
            num_labels=10,
            batch_size=work.batch_size,
            shuffle=True,
            skip_singleton=False,
        )
        for client in range(len(work.rows))
    ]


def main() -> None:
    """Play rounds."""
    torch.set_num_threads(1)
    parent, work = Parent(), Work(Path(sys.argv[1]))
    environment = FlukeENV()
    environment.set_seed(0)
    environment.set_inmemory(True)
    environment.set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=False)
    training = loaders(work)
    data = DummyDataContainer(training, [None] * len(training), None, num_classes=10)
    algorithm = FedAVG(
        len(training),
        DataSplitter(data, client_split=0.0, server_test=True),
        DDict(
            client={
                "batch_size": work.batch_size,
                "local_epochs": 1,
                "loss": "CrossEntropyLoss",
                "optimizer": {"name": "SGD", "lr": work.learning_rate},
                "scheduler": {"name": "StepLR", "step_size": 1, "gamma": 1},
            },
            server={"weighted": True},
            model=work.module(),
        ),
    )
    algorithm.set_callbacks([EachRound(Pace(parent))])
    algorithm.run(ENDLESS, work.sampled / len(training))
    parent.say(loss=work.loss(algorithm.server.model))


if __name__ == "__main__":
    main()
