"""The ClientApp of a plain SuperNode, called as Flower calls it."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict

from fedmoe.client_app import train
from fedmoe.config import load_config, to_json
from fedmoe.lan.packing import pack, unpack
from fedmoe.lan.supernode import STATE
from fedmoe.messages import words
from fedmoe.messages.riding import parted
from fedmoe.messages.seams import ensure_task_identity, with_content

WORDS = [
    "data=digits", "partition=iid", "partition.num_clients=2", "model=linear", "training=sgd",
    "training.epochs=1", "strategy=local",
]  # fmt: skip


@pytest.mark.parametrize("on_disk", [False, True])
def test_it_evaluates_along_with_training(on_disk: bool, tmp_path: Path) -> None:
    ensure_task_identity()
    node: dict[str, Any] = {words.PARTITION_ID: 0, "num-partitions": 2}
    node |= {STATE: str(tmp_path)} if on_disk else {}
    run = {"config": to_json(load_config(WORDS)), "overrides": "", "federation": "abc"}
    context = Context(1, 2, node, RecordDict(), {**run})
    losses: list[Any] = []
    for number in (1, 2):
        asked: dict[str, Any] = {
            words.CONFIG: ConfigRecord({words.SERVER_ROUND: number}),
            words.EVALUATION: ConfigRecord({words.SERVER_ROUND: number - 1}),
        }
        reply = train(Message(pack(RecordDict(asked)), 2, MessageType.TRAIN), context)
        trained, scored = parted(with_content(reply, unpack(reply.content)))
        assert words.LOSS in trained.content.metric_records[words.METRICS]
        losses.append(scored.content.metric_records[words.METRICS]["test-personalised-loss"])
    assert losses[1] < losses[0]  # before and after the first training
