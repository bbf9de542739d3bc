import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.data.drawing import Stream, dirichlet, generator


@given(
    alpha=st.floats(min_value=0.0, exclude_min=True, allow_infinity=False),
    size=st.integers(1, 50),
    seed=st.integers(0, 2**31 - 1),
)
def test_dirichlet_yields_proportions_for_any_concentration(
    alpha: float, size: int, seed: int
) -> None:
    drawn = dirichlet(np.random.default_rng(seed), alpha, (3, size))
    assert np.isfinite(drawn).all()
    assert (drawn >= 0.0).all()
    np.testing.assert_allclose(drawn.sum(axis=1), 1.0)


@pytest.mark.parametrize("alpha", [0.05, 0.5, 3.0, 50.0])
def test_dirichlet_has_the_moments_of_the_distribution(alpha: float) -> None:
    drawn = dirichlet(np.random.default_rng(0), alpha, (40_000, 4))
    variance = 0.25 * 0.75 / (4 * alpha + 1)
    np.testing.assert_allclose(drawn.mean(axis=0), 0.25, atol=5 * np.sqrt(variance / 40_000))
    np.testing.assert_allclose(drawn.var(axis=0), variance, rtol=0.05)


def test_dirichlet_becomes_a_point_mass_or_uniform() -> None:
    rng = np.random.default_rng(0)
    np.testing.assert_allclose(dirichlet(rng, 1e-6, (20, 5)).max(axis=1), 1.0)
    np.testing.assert_allclose(dirichlet(rng, 1e12, (20, 5)), 0.2, rtol=1e-4)


def test_streams_of_one_seed_are_independent_and_repeatable() -> None:
    first = {stream: generator(7, stream).random(4).tolist() for stream in Stream}
    again = {stream: generator(7, stream).random(4).tolist() for stream in Stream}
    assert first == again
    assert len({tuple(drawn) for drawn in first.values()}) == len(Stream)
    assert generator(8, Stream.SPLIT).random() != first[Stream.SPLIT][0]
