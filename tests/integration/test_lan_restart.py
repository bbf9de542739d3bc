"""Where a deployment's server begins that was killed, with clients that keep what they had."""

from dataclasses import replace
from pathlib import Path

import pytest
from desk_runs import serve
from federation_runs import CLASSES, all_lines
from flwr.app import Message

from fedmoe.config import load_config
from fedmoe.configuration.resuming import resumed_config
from fedmoe.lan.restart import goes_on
from fedmoe.schema import ExperimentConfig
from fedmoe.tracking import RunDirectory, latest_checkpoint

ROUNDS = 4


class ServerDiedError(Exception):
    """What a test kills a server with."""


def config_of(*words: str) -> ExperimentConfig:
    return load_config([*CLASSES, "runtime=lan", f"rounds={ROUNDS}", *words])


def killed(config: ExperimentConfig, folder: Path) -> RunDirectory:
    """A server that dies in round 3, when one of its clients has replied."""
    server, grid = serve(config, folder)
    replies: list[Message] = []

    def die(message: Message, reply: Message) -> Message:
        replies.append(reply)
        if len(replies) > 3 * len(grid.desks):
            raise ServerDiedError
        return reply

    grid.spoil = die
    with pytest.raises(ServerDiedError):
        server.run()
    return RunDirectory.reopen(folder / "run")


@pytest.mark.parametrize("strategy", ["fedavg", "insight", "local"])
def test_one_that_had_no_checkpoint_begins_again_to_the_same_numbers(
    strategy: str, tmp_path: Path
) -> None:
    words = f"strategy={strategy}", "training.reset_optimizer=false"
    config = config_of(*words, "tracking.checkpoint_every=10")
    serve(config, tmp_path / "whole")[0].run()

    directory = killed(config, tmp_path / "killed")
    assert latest_checkpoint(directory.path) is None
    assert directory.read_lines("metrics.jsonl")
    assert any((tmp_path / "killed" / "state").rglob("round-00003.json"))
    assert not goes_on(replace(config, resume=str(directory.path)), directory)
    again, _ = serve(config, tmp_path / "killed")
    again.directory = directory
    again.run()
    assert all_lines(directory.path) == all_lines(tmp_path / "whole" / "run")


@pytest.mark.parametrize("every", [1, 0])
def test_one_that_has_a_checkpoint_or_wants_none_throws_nothing_away(
    every: int, tmp_path: Path
) -> None:
    config = config_of("strategy=fedavg", f"tracking.checkpoint_every={every}")
    directory = killed(config, tmp_path)
    before = all_lines(directory.path)
    assert goes_on(replace(config, resume=str(directory.path)), directory)
    assert all_lines(directory.path) == before


def test_one_that_is_killed_at_once_can_be_started_again(tmp_path: Path) -> None:
    config, directory = config_of("strategy=local"), RunDirectory.claim(tmp_path / "run")
    assert not goes_on(config, directory)
    typed = load_config([f"resume={directory.path}"])
    resumed = resumed_config(typed, ())
    assert resumed.strategy.name == "local"
    assert not goes_on(resumed, directory)
