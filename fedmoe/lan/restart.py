"""Where the server of a deployment begins, when it is started for the first time or again."""

from dataclasses import asdict

from fedmoe.schema import ExperimentConfig
from fedmoe.tracking import RunDirectory, latest_checkpoint


def goes_on(config: ExperimentConfig, directory: RunDirectory) -> bool:
    """Whether there are rounds to go on from; else the directory is ready for the first.

    A server may be killed at any moment, so also before its first checkpoint. To go on from
    there is to begin again: its rounds are made once more, to the same numbers, since clients find
    no state of an earlier round. That is so too where a run has waited for clients in vain.

    Args:
        config: of the run, checked; `resume` says whether it was started before.
        directory: the run's.
    """
    if config.resume is None:
        directory.write_json("config.json", asdict(config))  # what `resume` will look for
        return False
    if latest_checkpoint(directory.path) is not None or not config.tracking.checkpoint_every:
        return True  # of a run that keeps none nothing is thrown away: it is refused
    for file in directory.path.glob("*.jsonl"):
        directory.truncate(file.name, 0)
    return False
