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
from fedmoe.data.load import class_counts, load_federation

__all__ = [
    "Dataset",
    "FederatedData",
    "Floats",
    "Ints",
    "Part",
    "Rows",
    "Task",
    "class_counts",
    "load_federation",
]
