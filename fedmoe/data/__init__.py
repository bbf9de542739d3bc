"""Data sources, partitions over clients, and each client's train, validation and test part."""

from fedmoe.data.federation import (
    Dataset,
    FederatedData,
    Floats,
    Ints,
    Part,
    Rows,
    Task,
)
from fedmoe.data.lazy import LazyDataset, LazyFederation
from fedmoe.data.load import Federation, class_counts, load_federation, pooled
from fedmoe.data.sources.custom import register

__all__ = [
    "Dataset",
    "FederatedData",
    "Federation",
    "Floats",
    "Ints",
    "LazyDataset",
    "LazyFederation",
    "Part",
    "Rows",
    "Task",
    "class_counts",
    "load_federation",
    "pooled",
    "register",
]
