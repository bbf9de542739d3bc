"""Inputs that are held out of a data set for all to know."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmoe.clients import load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.data import load_federation, pooled
from fedmoe.data.federation import FederatedData
from fedmoe.errors import DataError

HELD_OUT = ["insight.public=held_out", "insight.public_samples=100"]


def federation(words: list[str], held_out: int = 0) -> FederatedData:
    config = load_config(words)
    return pooled(load_federation(config.data, config.partition, config.seed, held_out))


def as_set(x_ND: Any) -> set[bytes]:
    return {row.tobytes() for row in x_ND}


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "rotation"])
def test_no_client_has_a_public_input_and_none_is_lost(partition: str) -> None:
    words = [f"partition={partition}", "partition.num_clients=8"]
    whole, less = federation(["partition=iid"]), federation(words, held_out=100)
    assert less.public_SD is not None and less.public_SD.shape == (100, 64)
    assert less.num_samples == len(whole.x_ND) - 100
    owned = np.concatenate([rows.order for rows in less.parts.values()])
    assert sorted(owned.tolist()) == list(range(less.num_samples))
    if partition != "rotation":  # whose clients see other images than there are
        assert as_set(less.x_ND) | as_set(less.public_SD) == as_set(whole.x_ND)
    assert as_set(less.public_SD) <= as_set(whole.x_ND)


def test_public_inputs_are_the_same_for_a_seed_and_others_for_another() -> None:
    one, again, other = (federation([f"seed={seed}"], 50).public_SD for seed in (0, 0, 1))
    assert one is not None and again is not None and other is not None
    np.testing.assert_array_equal(one, again)
    assert as_set(one) != as_set(other)


def test_without_holding_out_nothing_changes() -> None:
    assert federation([]).public_SD is None
    assert federation([]).num_samples == 1797


def test_natural_clients_keep_their_own_samples() -> None:
    words = ["data=synthetic_linear", "partition=natural", "data.num_clients=4"]
    whole, less = federation(words), federation(words, held_out=10)
    for client in range(4):
        mine, all_mine = (
            as_set(np.concatenate([one.client(client, part)[0] for part in one.parts]))
            for one in (less, whole)
        )
        assert mine < all_mine


def test_public_inputs_are_scaled_as_the_clients_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = np.column_stack([100 + 5 * rng.standard_normal((60, 2)), rng.integers(2, size=60)])
    np.savetxt(tmp_path / "mine.csv", table, delimiter=",", header="a,b,y", comments="")
    words = [
        "data=table", f"data.path={tmp_path / 'mine.csv'}", "data.target=y", "partition=iid",
        "partition.num_clients=2", "data.task=classification",
    ]  # fmt: skip
    plain = federation([*words, "data.standardise=false"], held_out=20)
    scaled = federation([*words, "data.standardise=true"], held_out=20)
    train = plain.x_ND[plain.parts["train"].order].astype(np.float64)
    assert plain.public_SD is not None and scaled.public_SD is not None
    expected = (plain.public_SD - train.mean(axis=0)) / train.std(axis=0)
    np.testing.assert_allclose(scaled.public_SD, expected, atol=1e-4)


def test_more_than_there_are_cannot_be_held_out() -> None:
    with pytest.raises(DataError, match=r"public_samples=1797: must be below the 1797 samples"):
        federation([], held_out=1797)


def test_nothing_can_be_held_out_of_samples_made_on_demand() -> None:
    with pytest.raises(DataError, match=r"insight\.public=held_out: synthetic_classes"):
        federation(["data=synthetic_classes", "partition=natural"], held_out=5)


def test_an_experiment_s_public_inputs_are_held_out_or_drawn() -> None:
    held_out = load_experiment(to_json(load_config(HELD_OUT)))
    assert isinstance(held_out.data, FederatedData) and held_out.data.public_SD is not None
    np.testing.assert_array_equal(held_out.public_SD.numpy(), held_out.data.public_SD)
    drawn = load_experiment(to_json(load_config(["insight.public_samples=2000"])))
    assert isinstance(drawn.data, FederatedData) and drawn.data.num_samples == 1797
    x_SD = drawn.public_SD.numpy()
    assert x_SD.shape == (2000, 64) and x_SD.dtype == np.float32
    assert abs(x_SD.mean()) < 0.02 and abs(x_SD.std() - 1) < 0.02
    again = load_experiment(to_json(load_config(["insight.public_samples=2000", "rounds=3"])))
    np.testing.assert_array_equal(x_SD, again.public_SD.numpy())
