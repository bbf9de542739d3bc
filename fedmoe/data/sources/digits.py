"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, ten classes.

The file inside the wheel is read directly: it is what `sklearn.datasets.load_digits` reads, and
importing `sklearn.datasets` for it takes half a second.
"""

import numpy as np

from fedmoe.data.federation import Dataset
from fedmoe.data.sources.missing import image_classes, made_up_images, packaged_file
from fedmoe.schema import DigitsConfig

_SHAPE = (8, 8)
_SAMPLES = 1797


def load(config: DigitsConfig, _rng: np.random.Generator) -> Dataset:
    """Read the digits; pixels of 0 to 16 are scaled to [0, 1].

    Raises:
        MissingDataError: if scikit-learn is not installed.
        DataError: if its file cannot be read.
    """
    path = packaged_file(
        "sklearn",
        "datasets/data/digits.csv.gz",
        distribution="scikit-learn",
        install="scikit-learn",
    )
    return image_classes(config.name, path, _SHAPE, highest=16.0)


def stand_in(config: DigitsConfig, rng: np.random.Generator) -> Dataset:
    """Made-up images of the same number and size."""
    return made_up_images(config.name, _SAMPLES, _SHAPE, rng)
