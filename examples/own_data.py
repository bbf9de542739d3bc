"""Data of your own, made for each client when it is asked for: sensors that see four waves.

python examples/own_data.py data=custom data.factory=sensors data.options.num_sensors=1000 \
    partition=natural model=mlp strategy.fraction_train=0.05 evaluate_every=10
"""

import sys

import numpy as np
from numpy.typing import NDArray

from fedmoe import data
from fedmoe.data import LazyDataset, Task
from fedmoe.simulate import main

WAVES = ("sine", "square", "saw", "flat")
LENGTH = 32


@data.register("sensors")
def sensors(seed: int, num_sensors: int, samples: int = 60) -> LazyDataset:
    """Called with the experiment's seed and `data.options`."""

    def build(client: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """A sensor's samples: the same whenever it is asked; reading its own file would do too."""
        rng = np.random.default_rng([seed, client])
        gain, noise = rng.uniform(0.5, 1.5), rng.uniform(0.2, 0.6)
        y = rng.integers(len(WAVES), size=samples)
        phase = (np.linspace(0, 2, LENGTH) + 0.2 * rng.random((samples, 1))) % 1
        sine = np.sin(2 * np.pi * phase)
        waves = np.stack([sine, np.sign(sine), 2 * phase - 1, np.zeros_like(phase)])
        x = gain * waves[y, np.arange(samples)] + noise * rng.standard_normal((samples, LENGTH))
        return x, y

    return LazyDataset(
        name="sensors",
        origin="synthetic",
        task=Task(
            kind="classification",
            num_features=LENGTH,
            num_outputs=len(WAVES),
            class_names=WAVES,
        ),
        num_clients=num_sensors,
        build=build,
        num_samples=num_sensors * samples,
    )


if __name__ == "__main__":
    sys.exit(main())
