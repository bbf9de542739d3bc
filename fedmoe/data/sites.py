"""Sites: clients that each bring a table of their own, which no other process ever sees.

The configuration says what all tables must look like (`data.features`, `data.target`,
`data.classes`), so that the server can make the model without any data, and a site's mistake is
found at the site. Features are standardised by a site's own training part: there is no other.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedmoe.data.federation import Dataset, Task
from fedmoe.data.sources.table import from_table
from fedmoe.data.sources.table_files import read_table
from fedmoe.errors import DataError
from fedmoe.schema import DataConfig, TableConfig


@dataclass(frozen=True)
class Site:
    """One client's own table.

    Attributes:
        client: its number.
        path: the file.
    """

    client: int
    path: Path


def is_of_sites(config: DataConfig) -> bool:
    """Whether the configuration describes tables instead of naming one."""
    return isinstance(config, TableConfig) and config.path is None and config.features is not None


def empty_dataset(config: DataConfig) -> Dataset:
    """What a process without a table knows of the data: the task.

    Raises:
        DataError: the description is not whole.
    """
    told, _ = _described(config)
    assert told.features is not None
    classes = told.classes or ()
    return Dataset(
        name=told.name,
        origin="real",
        task=Task(
            kind="classification" if classes else "regression",
            num_features=len(told.features),
            num_outputs=len(classes) or 1,
            class_names=classes,
        ),
        x_ND=np.zeros((0, len(told.features)), dtype=np.float32),
        y_N=np.zeros(0, dtype=np.int64) if classes else np.zeros((0, 1), dtype=np.float32),
    )


def read_site(config: DataConfig, site: Site, num_clients: int) -> Dataset:
    """A site's table.

    Raises:
        DataError: it cannot be read, or is not as described; names file, column and row.
    """
    told, target = _described(config)
    if not 0 <= site.client < num_clients:
        raise DataError(f"client {site.client}: there are {num_clients} clients, numbered from 0")
    return from_table(read_table(site.path), told, target)


def _described(config: DataConfig) -> tuple[TableConfig, str]:
    """The description and its target.

    Raises:
        DataError: there is none, or it is not whole.
    """
    if not isinstance(config, TableConfig) or not is_of_sites(config):
        raise DataError(
            f"data={config.name}: a client can bring a table of its own only to data=table with "
            "data.features and without data.path"
        )
    if config.target is None:
        raise DataError("table: data.target is not set")
    if (config.task == "classification") != (config.classes is not None) or config.task == "auto":
        raise DataError(
            "table: tables of sites need data.task=regression, or data.task=classification with "
            "data.classes"
        )
    return config, config.target
