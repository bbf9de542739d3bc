"""The hand-written stacked loop: python -m benchmarks.sides.ceiling WORK."""

import sys
from pathlib import Path

import numpy as np

from benchmarks.ceiling import Ceiling
from benchmarks.child import Parent, play
from benchmarks.plain import Work
from fedmoe.training.process import prepare_process


def main() -> None:
    """Play rounds, with the settings of the process that ours has."""
    prepare_process(num_threads=1)
    parent, work = Parent(), Work(Path(sys.argv[1]))
    ceiling = Ceiling(
        work.model, work.x_ND, work.y_N, work.rows,
        batch_size=work.batch_size, learning_rate=work.learning_rate, weights=work.initial,
    )  # fmt: skip
    random = np.random.default_rng(0)

    def one_round() -> None:
        ceiling.round(np.sort(random.choice(len(work.rows), work.sampled, replace=False)))

    play(parent, one_round, lambda: work.loss(work.module(ceiling.weights)))


if __name__ == "__main__":
    main()
