import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.training.chunks import CACHE_BYTES, capacity, even_chunks
from fedmoe.training.pool import Pool


@given(clients=st.integers(0, 300), most=st.integers(1, 400))
def test_chunks_are_even_few_and_cover_everybody_once(clients: int, most: int) -> None:
    chunks = even_chunks(clients, most)
    assert [c for chunk in chunks for c in range(clients)[chunk]] == list(range(clients))
    assert len(chunks) <= -(-clients // most)
    sizes = [chunk.stop - chunk.start for chunk in chunks]
    assert all(size <= most for size in sizes)
    assert len(set(sizes[:-1])) <= 1
    assert all(size >= sizes[-1] > 0 for size in sizes)


@pytest.mark.parametrize(
    ("clients", "most", "sizes"),
    [(100, 97, [50, 50]), (9, 4, [3, 3, 3]), (10, 4, [4, 4, 2]), (5, 5, [5]), (0, 3, [])],
)
def test_a_few_too_many_do_not_make_a_tiny_chunk(clients: int, most: int, sizes: list[int]) -> None:
    chunks = even_chunks(clients, most)
    assert [chunk.stop - chunk.start for chunk in chunks] == sizes


def pool_of(features: int, device: str = "cpu") -> Pool:
    return Pool(torch.zeros(3, features, device=device), torch.zeros(3, device=device))


def test_a_chunk_holds_what_fits_the_cache() -> None:
    params = {"weight": torch.zeros(1, 10, 100).expand(7, 10, 100), "bias": torch.zeros(7, 24)}
    each = 4 * (1000 + 24 + 32 * 50)  # parameters and a batch of 32 samples, in single precision
    assert capacity(params, pool_of(50), 32, most=10_000) == CACHE_BYTES // each
    assert capacity({}, pool_of(50), 32, most=10_000) == CACHE_BYTES // (4 * 32 * 50)
    assert capacity(params, pool_of(50), 32, most=9) == 9


def test_a_client_too_large_for_the_cache_is_alone() -> None:
    assert capacity({}, pool_of(1000), 10**6, most=50) == 1


@pytest.mark.parametrize("samples", [1, 10**6])
def test_on_another_device_only_the_limit_counts(samples: int) -> None:
    assert capacity({}, pool_of(1000, "meta"), samples, most=50) == 50
