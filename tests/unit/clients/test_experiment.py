"""Where an experiment finds its clients' samples."""

import numpy as np
import pytest

from fedmoe.clients import Experiment
from fedmoe.config import load_config
from fedmoe.data import Part, load_federation, pooled
from fedmoe.errors import DataError

LAZY = ["data=synthetic_classes", "partition=natural", "data.num_features=3", "model=linear",
        "data.samples_per_client=20", "data.num_clients=50"]  # fmt: skip
POOLED = ["partition.num_clients=5", "model=linear"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")


def experiment(words: list[str]) -> Experiment:
    config = load_config(words)
    return Experiment.of(config, load_federation(config.data, config.partition, config.seed))


@pytest.mark.parametrize("words", [LAZY, POOLED])
@pytest.mark.parametrize("part", PARTS)
def test_samples_are_each_clients_own(words: list[str], part: Part) -> None:
    made = experiment(words)
    clients = np.array([4, 0, 2])
    pool, rows_Cn, count_C = made.samples(part, clients)
    assert rows_Cn.shape == (3, count_C.max())
    for row, client in enumerate(clients.tolist()):
        x_nD, y_n = made.data.client(client, part)
        own = rows_Cn[row, : count_C[row]]
        np.testing.assert_array_equal(pool.x_ND[own], x_nD)
        np.testing.assert_array_equal(pool.y_N[own], y_n)


def test_a_lazy_pool_has_the_cohort_and_no_more() -> None:
    made = experiment(LAZY)
    samples = made.samples("train", np.array([49, 7]))
    assert samples.pool.x_ND.shape == (40, 3)
    again = made.samples("test", np.array([49, 7]))
    assert again.pool.x_ND.data_ptr() == samples.pool.x_ND.data_ptr()


def test_a_pool_of_everybody_is_made_once_and_shared() -> None:
    made = experiment(POOLED)
    pools = [made.samples(part, np.array([k])).pool for part in PARTS for k in (0, 3)]
    assert all(pool is made.pool for pool in pools)
    assert made.pool.x_ND.data_ptr() == pooled(made.data).x_ND.__array_interface__["data"][0]


def test_there_is_no_pool_of_clients_made_on_demand() -> None:
    with pytest.raises(DataError, match="synthetic_classes: clients' samples are made on demand"):
        _ = experiment(LAZY).pool
