"""This project: whole runs, with strategy, messages, guard and a run directory.

    python -m benchmarks.sides.ours WORK [WORD ...]

The words come on top of the work's: `runtime=ray`, `strategy=stock`, `evaluate_every=1`. WORK
may be `-`: then all the words are given.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.child import Pace, Parent


def main() -> None:
    """Run until the parent says stop."""
    parent, source, words = Parent(), sys.argv[1], sys.argv[2:]
    if source != "-":
        words = [*read_words(Path(source)), *words]
    # Late, as in fedmoe's own command: what start-up costs is measured as well.
    from fedmoe.config import load_config
    from fedmoe.errors import ConfigError

    try:
        config = load_config(words)
    except ConfigError as error:
        parent.say(refused=str(error))
        return
    from fedmoe.simulations import run_experiment
    from fedmoe.tracking import RunDirectory

    append = RunDirectory.append
    pace = Pace(parent)

    def append_and_wait(self: RunDirectory, file: str, record: Mapping[str, Any]) -> None:
        """A round's own line is the last thing that a round does."""
        append(self, file, record)
        if file == "metrics.jsonl":
            if record["train"]["failures"] or record["train"]["void"]:
                raise RuntimeError(f"a client failed: {record}")
            if not pace.round_ended():
                os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C: the run saves its weights

    with tempfile.TemporaryDirectory(prefix="fedmoe-benchmark-") as folder:
        run_dir = Path(folder, "run")
        try:
            with patch.object(RunDirectory, "append", append_and_wait):
                run_experiment(config, run_dir)
        except ConfigError as error:  # no Ray, no GPU
            parent.say(refused=str(error))
        except KeyboardInterrupt:
            parent.say(loss=None if source == "-" else final_loss(Path(source), run_dir))


def read_words(source: Path) -> list[str]:
    """The work's words, without the cost of importing torch before the run does."""
    import numpy as np

    with np.load(source) as file:
        return [str(word) for word in file["words"]]


def final_loss(source: Path, run_dir: Path) -> float:
    """The loss of the weights that the interrupted run left."""
    import torch

    from benchmarks.plain import Work
    from fedmoe.tracking import load_checkpoint

    saved = load_checkpoint(run_dir).arrays
    work = Work(source)
    return work.loss(
        work.module({name: torch.from_numpy(saved[f"global/{name}"]) for name in work.initial})
    )


if __name__ == "__main__":
    main()
