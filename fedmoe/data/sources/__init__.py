"""Data sources, found by name; only the one that is asked for is imported.

Each module has `load(config, rng) -> Dataset` (or `LazyDataset`). One whose data may be missing
raises `MissingDataError` and, where the shape is known beforehand, has `stand_in(config, rng)` too.
The user's own sources are in `custom`.
"""

import importlib
import logging
from dataclasses import replace

import numpy as np

from fedmoe.data.federation import Dataset
from fedmoe.data.lazy import LazyDataset
from fedmoe.data.sources.missing import MissingDataError
from fedmoe.errors import DataError
from fedmoe.schema import DataConfig

logger = logging.getLogger(__name__)

SOURCES: dict[str, str] = {
    "digits": "fedmoe.data.sources.digits",
    "mnist5k": "fedmoe.data.sources.mnist5k",
    "flights": "fedmoe.data.sources.flights",
    "table": "fedmoe.data.sources.table",
    "synthetic_linear": "fedmoe.data.sources.synthetic_linear",
    "synthetic_classes": "fedmoe.data.sources.synthetic_classes",
    "synthetic_mixture": "fedmoe.data.sources.synthetic_mixture",
}


def read_source(config: DataConfig, rng: np.random.Generator) -> Dataset | LazyDataset:
    """Load the configured data set, or what stands in for it if that is allowed.

    Args:
        config: which data set, and what to do if it is missing.
        rng: draws subsamples and synthetic data.

    Returns:
        The data set; its `origin` says whether it is the real one.

    Raises:
        DataError: if the data are missing and nothing may stand in, or are malformed.
    """
    module = importlib.import_module(SOURCES[config.name])
    try:
        loaded: Dataset | LazyDataset = module.load(config, rng)
    except MissingDataError as missing:
        if config.on_missing == "error":
            raise DataError(f"{config.name}: {missing.reason}; {missing.remedy}") from missing
        if not hasattr(module, "stand_in"):
            raise DataError(
                f"{config.name}: {missing.reason}; {missing.remedy} (nothing synthetic can stand "
                "in for it: the shape of the data is not known without them)"
            ) from missing
        substitute: Dataset = module.stand_in(config, rng)
        origin = f"synthetic: {config.name} was not to be had ({missing.reason})"
        logger.warning(
            "NOT REAL DATA: %s was not to be had (%s), so this run uses synthetic data of the "
            "same shape; %s",
            config.name,
            missing.reason,
            missing.remedy,
        )
        return replace(substitute, origin=origin)
    return loaded
