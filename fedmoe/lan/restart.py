"""Where the server of a deployment begins that was started before."""

from pathlib import Path

from fedmoe.tracking import latest_checkpoint


def goes_on(run_dir: Path, checkpoint_every: int) -> bool:
    """Whether a run that is resumed goes on from a checkpoint, and does not begin again.

    A server may be killed at any moment, so also before its first checkpoint. To go on from
    there is to begin again: its rounds are made once more, to the same numbers, since clients find
    no state of an earlier round. That is so too where a run has waited for clients in vain.

    Args:
        run_dir: the run directory.
        checkpoint_every: the run's `tracking.checkpoint_every`. Of a run that keeps none nothing
            is thrown away: it is refused, as in a simulation.
    """
    return latest_checkpoint(run_dir) is not None or not checkpoint_every
