# Draws from hashed counters, against Python's integers and NumPy's hash.
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from routers_oracle import _fold, _hash_of_sample, _normal

from fedmoe.data.drawing import hash_keys
from fedmoe.models.draws import choices, fold, hashes_of_samples, normals, uniforms

WORD = st.integers(-(2**63), 2**63 - 1)


@given(state=WORD, word=WORD)
def test_fold_is_a_round_of_splitmix_on_unsigned_integers(state: int, word: int) -> None:
    found = fold(torch.tensor(state), torch.tensor(word)).item()
    assert found % 2**64 == _fold(state, word)


@given(key=st.lists(st.integers(0, 2**62), min_size=1, max_size=4), word=st.integers(0, 2**62))
def test_fold_goes_on_where_the_hash_of_the_key_ends(key: list[int], word: int) -> None:
    state = torch.from_numpy(hash_keys(*key)[None].view(np.int64))
    assert fold(state, torch.tensor(word)).item() % 2**64 == int(hash_keys(*key, word))


def test_normals_are_the_oracles_and_normal() -> None:
    keys = torch.tensor([3, -(2**63), 2**63 - 1])
    draws_CEB = normals(keys, 4, 5)
    for client, key in enumerate(keys.tolist()):
        for e in range(4):
            for b in range(5):
                expected = _normal(key, e, b)
                assert draws_CEB[client, e, b].item() == pytest.approx(expected, abs=1e-9)
    assert torch.equal(normals(keys[1], 4, 5), draws_CEB[1])
    assert torch.equal(normals(keys, 3, 2), draws_CEB[:, :3, :2])
    many = normals(torch.arange(100), 10, 100).flatten()
    assert abs(many.mean().item()) < 0.02
    assert abs(many.std().item() - 1) < 0.02
    assert abs((many.abs() < 1).double().mean().item() - math.erf(1 / math.sqrt(2))) < 0.01


def test_uniforms_stay_within_the_open_interval() -> None:
    ends = uniforms(torch.tensor([0, -1]))
    assert 0 < ends[0].item() < 1e-15
    assert 1 - 1e-15 < ends[1].item() < 1
    assert choices(torch.tensor([0, -1]), 7).tolist() == [0, 6]


def test_hashes_of_samples_are_the_oracles() -> None:
    x_CBD = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    found = hashes_of_samples(x_CBD)
    for client in range(2):
        for b in range(3):
            expected = _hash_of_sample(x_CBD[client, b].tolist())
            assert found[client, b].item() % 2**64 == expected
    assert torch.equal(hashes_of_samples(x_CBD.double()), found)
    zero = torch.zeros(1, 5)
    assert torch.equal(hashes_of_samples(zero), hashes_of_samples(-zero))
