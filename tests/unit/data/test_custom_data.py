"""Data of the user's own: what a factory gets, and what is refused in one line."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fedmoe.data import (
    Dataset,
    LazyDataset,
    LazyFederation,
    Task,
    load_federation,
    pooled,
    register,
)
from fedmoe.data.sources import custom
from fedmoe.errors import ConfigError, DataError
from fedmoe.schema import CustomDataConfig, IidConfig, NaturalConfig
from fedmoe.training.pool import Pool

CLASSES = Task(kind="classification", num_features=3, num_outputs=2)
NUMBERS = Task(kind="regression", num_features=3, num_outputs=1)
IID = IidConfig(name="iid", min_samples=1, num_clients=2)
NATURAL = NaturalConfig(name="natural", min_samples=1)


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom.REGISTRY, "factories", {})


def config(factory: str = "mine", **options: Any) -> CustomDataConfig:
    return CustomDataConfig(
        name="custom", on_missing="error", validation_fraction=0.0, test_fraction=0.2,
        factory=factory, options=options,
    )  # fmt: skip


def dataset(**changes: Any) -> Dataset:
    values: dict[str, Any] = {"name": "own", "origin": "real", "task": CLASSES}
    values |= {"x_ND": np.arange(30.0).reshape(10, 3), "y_N": np.arange(10) % 2}
    return Dataset(**(values | changes))


def lazy(**changes: Any) -> LazyDataset:
    def build(client: int) -> tuple[Any, Any]:
        return np.full((5, 3), client), np.arange(5) % 2

    values: dict[str, Any] = {"name": "own", "origin": "real", "task": CLASSES}
    return LazyDataset(**(values | {"num_clients": 4, "build": build} | changes))


def test_the_factory_gets_the_seed_and_its_options() -> None:
    seen: list[Any] = []

    @register("mine")
    def mine(**options: Any) -> Dataset:
        seen.append(options)
        return dataset()

    load_federation(config(rows=3), IID, 17)
    assert seen == [{"seed": 17, "rows": 3}]


def test_a_pooled_data_set_is_converted_and_divided() -> None:
    register("mine")(lambda seed: dataset())
    federation = pooled(load_federation(config(), IID, 0))
    assert [str(a.dtype) for a in (federation.x_ND, federation.y_N)] == ["float32", "int64"]
    assert federation.x_ND.tolist() == np.arange(30.0).reshape(10, 3).tolist()
    assert (federation.name, federation.num_clients, federation.num_samples) == ("own", 2, 10)
    assert federation.task.class_names == ("0", "1")
    assert federation.client_name(1) == "client 1"


def test_arrays_come_out_as_torch_takes_them() -> None:
    x_ND, y_N = np.arange(30, dtype=np.float32).reshape(10, 3)[::-1], np.arange(10)[::-1] % 2
    x_ND.flags.writeable = False
    register("mine")(lambda seed: dataset(x_ND=x_ND, y_N=np.broadcast_to(y_N[1], 10)))
    federation = pooled(load_federation(config(), IID, 0))
    pool = Pool.of(federation.x_ND, federation.y_N)
    np.testing.assert_array_equal(pool.x_ND, x_ND)
    assert pool.y_N.tolist() == [y_N[1]] * 10


def test_natural_clients_get_names() -> None:
    register("mine")(lambda seed: dataset(client_N=np.repeat([0, 2], 5).astype(np.int32)))
    federation = pooled(load_federation(config(), replace(NATURAL, min_samples=0), 0))
    assert federation.client_names == ("client 0", "client 1", "client 2")
    assert federation.parts["train"].counts_K.tolist() == [4, 0, 4]


def test_one_target_may_lack_its_second_axis() -> None:
    targets = np.linspace(0, 1, 10)
    register("mine")(lambda seed: dataset(task=NUMBERS, y_N=targets))
    federation = pooled(load_federation(config(), IID, 0))
    assert federation.y_N.dtype == np.float32
    np.testing.assert_allclose(federation.y_N, targets[:, None], rtol=1e-6)
    assert federation.task.class_names == ()


def test_a_lazy_data_set_is_made_client_by_client() -> None:
    register("mine")(lambda seed: lazy())
    federation = load_federation(config(), NATURAL, 0)
    assert isinstance(federation, LazyFederation)
    assert federation.num_clients == 4
    assert federation.task.class_names == ("0", "1")
    x_nD, y_n = federation.client(3, "train")
    assert [str(a.dtype) for a in (x_nD, y_n)] == ["float32", "int64"]
    assert x_nD.tolist() == [[3.0] * 3] * 4


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"^data\.factory=mine: no such data; .*: none"):
        load_federation(config(), IID, 0)
    register("zebra")(lambda seed: dataset())
    register("ape")(lambda seed: dataset())
    with pytest.raises(ConfigError, match=r"registered: ape, zebra$"):
        load_federation(config(), IID, 0)


def test_wrong_options_are_a_matter_of_the_configuration() -> None:
    register("mine")(lambda seed: dataset())
    with pytest.raises(ConfigError, match=r"^data\.options={'rows': 3}: .*rows"):
        load_federation(config(rows=3), IID, 0)


def missing_file(seed: int) -> Dataset:
    raise FileNotFoundError(2, "No such file or directory", "own.csv")


X, Y = np.zeros((10, 3)), np.zeros(10, dtype=np.int64)
NAN = np.where(np.arange(30).reshape(10, 3) == 7, np.nan, X)
ONE_CLASS = Task(kind="classification", num_features=3, num_outputs=1)
NAMED = Task(kind="classification", num_features=3, num_outputs=2, class_names=("a", "b", "c"))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (missing_file, r"\[Errno 2\] No such file or directory: 'own.csv'"),
        (lambda seed: [1, 2], "made a list, expected a Dataset or LazyDataset of fedmoe.data"),
        (lambda seed: dataset(x_ND=X[:, :2]), r"x has shape \(10, 2\), expected \(samples, 3\)"),
        (lambda seed: dataset(x_ND=X[:0], y_N=Y[:0]), "there are no samples"),
        (lambda seed: dataset(x_ND=X[:9]), "x has 9 samples, y has 10"),
        (lambda seed: dataset(x_ND=NAN), r"x\[2, 1\] is nan; all must be finite in float32"),
        (lambda seed: dataset(x_ND=X + 1e300), r"x\[0, 0\] is inf"),
        (lambda seed: dataset(x_ND=[["a"] * 3] * 10), "x must be an array of numbers: .*'a'"),
        (lambda seed: dataset(y_N=Y + 0.5), "y must be whole numbers, got float64"),
        (lambda seed: dataset(y_N=Y[:, None]), r"y has shape \(10, 1\), expected \(samples,\)"),
        (lambda seed: dataset(y_N=Y - 1), "y has class -1, classes are 0 to 1"),
        (lambda seed: dataset(y_N=Y + 2), "y has class 2, classes are 0 to 1"),
        (
            lambda seed: dataset(task=NUMBERS, y_N=np.zeros((10, 2))),
            r"y has shape \(10, 2\), expected \(samples, 1\)",
        ),
        (lambda seed: dataset(task=ONE_CLASS), "a classification task needs at least .* 2 outputs"),
        (lambda seed: dataset(task=NAMED), "3 class_names for 2 classes"),
        (lambda seed: dataset(image_shape=(2, 2)), r"image_shape \(2, 2\) does not make 3 feat"),
        (lambda seed: dataset(client_N=Y[:3]), "client_N must be 10 numbers from 0 upwards"),
        (lambda seed: dataset(client_N=Y - 1), "client_N must be 10 numbers from 0 upwards"),
        (lambda seed: dataset(client_N=X[:, 0]), "client_N must be whole numbers"),
        (
            lambda seed: dataset(client_N=Y + 1, client_names=("a",)),
            "client_N has client 1, client_names has 1 names",
        ),
        (lambda seed: lazy(num_clients=0), "num_clients must be at least 1, got 0"),
        (lambda seed: lazy(task=ONE_CLASS), "a classification task needs"),
    ],
)
def test_what_is_no_data_is_refused_in_one_line(factory: Any, message: str) -> None:
    register("mine")(factory)
    with pytest.raises(DataError, match=rf"^data\.factory=mine: {message}") as refused:
        load_federation(config(), IID, 0)
    assert "\n" not in str(refused.value)


def test_the_first_lazy_client_is_tried_at_once() -> None:
    register("mine")(lambda seed: lazy(build=lambda client: (np.zeros((5, 2)), [0] * 5)))
    with pytest.raises(DataError, match=r"^own: client 0: x has shape \(5, 2\), expected"):
        load_federation(config(), NATURAL, 0)


def test_lazy_data_cannot_be_divided_otherwise() -> None:
    register("mine")(lambda seed: lazy())
    with pytest.raises(DataError, match="iid: own makes each client's samples on demand"):
        load_federation(config(), IID, 0)


def test_the_seed_cuts_lazy_data_into_parts() -> None:
    def build(client: int) -> tuple[Any, Any]:
        return np.arange(60).reshape(20, 3), np.arange(20) % 2

    register("mine")(lambda seed: lazy(build=build))
    held_out = [
        load_federation(config(), NATURAL, seed).client(1, "test")[0].tolist() for seed in (0, 0, 1)
    ]
    assert held_out[0] == held_out[1]
    assert held_out[0] != held_out[2]
