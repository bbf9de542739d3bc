"""Where a deployment's server begins that was killed, with clients that keep what they had."""

from dataclasses import replace
from pathlib import Path

import pytest
from desk_runs import ServerDiedError, serve
from federation_runs import CLASSES, all_lines
from flwr.app import Message

from fedmoe.config import load_config
from fedmoe.configuration.resuming import resumed_config
from fedmoe.errors import RunError
from fedmoe.lan import launch
from fedmoe.lan.restart import goes_on
from fedmoe.schema import ExperimentConfig
from fedmoe.tracking import RunDirectory, latest_checkpoint

ROUNDS = 4


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
    assert not goes_on(directory.path, config.tracking.checkpoint_every)
    again, _ = serve(config, tmp_path / "killed")
    again.directory, again.federation.began = directory, True
    again.run()
    assert all_lines(directory.path) == all_lines(tmp_path / "whole" / "run")


def test_one_that_has_a_checkpoint_goes_on_from_it(tmp_path: Path) -> None:
    config = config_of("strategy=fedavg", "tracking.checkpoint_every=1")
    assert goes_on(killed(config, tmp_path).path, config.tracking.checkpoint_every)


def test_one_that_wants_no_checkpoint_is_refused_and_loses_no_record(tmp_path: Path) -> None:
    config = config_of("strategy=fedavg", "tracking.checkpoint_every=0")
    directory = killed(config, tmp_path)
    before = all_lines(directory.path)
    assert goes_on(directory.path, config.tracking.checkpoint_every)
    again, _ = serve(config, tmp_path, resume=True)
    again.directory, again.federation.began = directory, True
    with pytest.raises(RunError, match="no checkpoint in"):
        again.run()
    assert before["metrics.jsonl"] and all_lines(directory.path) == before


def test_one_that_is_killed_at_once_can_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its SuperLink is not there yet; nor is anything else but what it was to do."""

    def die(*_: object) -> None:
        raise ServerDiedError

    monkeypatch.setattr(launch, "listener", die)
    with pytest.raises(ServerDiedError):
        launch.serve(config_of("strategy=local"), tmp_path / "run")
    resumed = resumed_config(load_config([f"resume={tmp_path / 'run'}"]), ())
    assert resumed.strategy.name == "local"
    assert not goes_on(tmp_path / "run", resumed.tracking.checkpoint_every)


def test_a_server_that_cannot_listen_changes_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For one that is still there, the same command was typed once more."""
    config = config_of("strategy=fedavg", "tracking.checkpoint_every=10")
    directory = killed(config, tmp_path)
    before = all_lines(directory.path)

    def refuse(*_: object) -> None:
        raise RunError("somebody listens there")

    monkeypatch.setattr(launch, "listener", refuse)
    with pytest.raises(RunError, match="somebody listens"):
        launch.serve(replace(config, resume=str(directory.path)), directory.path)
    assert before["metrics.jsonl"] and all_lines(directory.path) == before
