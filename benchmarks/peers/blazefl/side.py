"""BlazeFL 3.0's FedAvg: side.py WORK [serial | threads | processes]."""

import os
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported: no progress bar

import torch
from blazefl.contrib import (
    FedAvgBaseClientTrainer,
    FedAvgBaseServerHandler,
    FedAvgPartitionType,
    FedAvgProcessPoolClientTrainer,
    FedAvgThreadPoolClientTrainer,
)
from blazefl.core import ModelSelector, PartitionedDataset
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from benchmarks.child import Parent, play
from benchmarks.plain import Work

SEED, WORKERS = 0, 2


class Names(StrEnum):
    """BlazeFL chooses models by name."""

    ONLY = "only"


class Models(ModelSelector):
    """The work's model, with its initial weights."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def select_model(self, model_name: str) -> torch.nn.Module:
        """There is but one."""
        del model_name
        return self.work.module()


class Data(PartitionedDataset):
    """Every client's samples in memory; loaders that index a whole batch at once."""

    def __init__(self, work: Work) -> None:
        self.sets = [TensorDataset(*work.client(client)) for client in range(len(work.rows))]

    def get_dataset(self, type_: FedAvgPartitionType, cid: int | None) -> TensorDataset:
        """One client's training samples."""
        del type_
        return self.sets[cid or 0]

    def set_dataset(self, type_: Any, cid: int | None, dataset: Any) -> None:
        """Nothing changes the samples."""

    def get_dataloader(
        self, type_: Any, cid: int | None, batch_size: int | None, generator: Any = None
    ) -> DataLoader:
        """Shuffled batches; much faster than a loader that collates sample by sample."""
        own = self.get_dataset(type_, cid)
        order = RandomSampler(own, generator=generator)
        batches = BatchSampler(order, batch_size or len(own), drop_last=False)
        return DataLoader(own, sampler=batches, batch_size=None)


def trainer_of(mode: str, common: dict[str, Any], folder: str) -> Any:
    """BlazeFL's trainer of clients: one after the other, in threads, or in processes."""
    if mode == "serial":
        return FedAvgBaseClientTrainer(**common)
    if mode == "threads":
        return FedAvgThreadPoolClientTrainer(**common, num_parallels=WORKERS)
    return FedAvgProcessPoolClientTrainer(**common, num_parallels=WORKERS, state_dir=Path(folder))


def main() -> None:
    """Play rounds."""
    torch.set_num_threads(1)
    parent, work = Parent(), Work(Path(sys.argv[1]))
    clients = len(work.rows)
    shared: dict[str, Any] = {
        "model_selector": Models(work), "model_name": Names.ONLY, "dataset": Data(work),
        "device": "cpu", "num_clients": clients, "batch_size": work.batch_size, "seed": SEED,
    }  # fmt: skip
    handler = FedAvgBaseServerHandler(
        **shared, global_round=1_000_000, sample_ratio=work.sampled / clients
    )
    with tempfile.TemporaryDirectory(prefix="fedmoe-benchmark-") as folder:
        mode = sys.argv[2] if len(sys.argv) > 2 else "serial"
        trainer = trainer_of(mode, {**shared, "epochs": 1, "lr": work.learning_rate}, folder)

        def one_round() -> None:
            trainer.local_process(handler.downlink_package(), handler.sample_clients())
            for package in trainer.uplink_package():
                handler.load(package)

        play(parent, one_round, lambda: work.loss(handler.model))


if __name__ == "__main__":
    main()
