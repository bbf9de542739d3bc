"""Data of the user's own making, registered under a name."""

from collections.abc import Callable
from dataclasses import replace

from fedmoe.data.checking import checked_dataset, checked_task
from fedmoe.data.federation import Dataset
from fedmoe.data.lazy import LazyDataset
from fedmoe.errors import ConfigError, DataError
from fedmoe.registry import Registry
from fedmoe.schema import CustomDataConfig

Factory = Callable[..., Dataset | LazyDataset]
REGISTRY = Registry("data.factory", "data", "fedmoe.data.register")


def register(name: str) -> Callable[[Factory], Factory]:
    """Make data of your own available as `data=custom data.factory=NAME`.

    The factory is called as `factory(seed=SEED, **data.options)`, with the experiment's seed. It
    returns a `Dataset`, all samples in one array, for any partition; or a `LazyDataset`, which
    makes each client's samples on demand, for `partition=natural`.
    """
    return REGISTRY.add(name)


def load(config: CustomDataConfig, seed: int) -> Dataset | LazyDataset:
    """What the registered factory makes, checked.

    Raises:
        ConfigError: no such factory, or options that it does not take.
        DataError: files that cannot be read, or a result that is no data set.
    """
    factory = REGISTRY.find(config.factory)
    try:
        dataset: Dataset | LazyDataset = factory(seed=seed, **config.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"data.options={config.options}: {error}") from error
    except OSError as error:
        raise DataError(f"data.factory={config.factory}: {error}") from error
    try:
        return _checked(dataset)
    except DataError as error:
        raise DataError(f"data.factory={config.factory}: {error}") from error


def _checked(dataset: Dataset | LazyDataset) -> Dataset | LazyDataset:
    if isinstance(dataset, Dataset):
        return checked_dataset(replace(dataset, task=checked_task(dataset.task)))
    if not isinstance(dataset, LazyDataset):
        raise DataError(
            f"made a {type(dataset).__name__}, expected a Dataset or LazyDataset of fedmoe.data"
        )
    if dataset.num_clients < 1:
        raise DataError(f"num_clients must be at least 1, got {dataset.num_clients}")
    return replace(dataset, task=checked_task(dataset.task))
