"""Random numbers for many clients at once that do not depend on who the others are.

They come from hashed counters: a client's key with an expert's and a sample's place folded in, by
the same rounds as `fedmoe.data.drawing.hash_keys`, here on tensors and so on any device.

Letters: C clients (absent for one client), E experts, B batch, D features.
"""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as signed integers, which torch has
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def fold(state: Tensor, word: Tensor) -> Tensor:
    """Mix integers into hashes, element by element; both int64, broadcast against each other."""
    z = (word ^ state) + _GOLDEN
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def uniforms(hashes: Tensor) -> Tensor:
    """float64 numbers in (0, 1), of the same shape, from the highest 52 bits."""
    # With 53, the largest number plus a half would round to 1.
    return (_shifted(hashes, 12).double() + 0.5) * 2.0**-52


def normals(key: Tensor, experts: int, samples: int) -> Tensor:
    """Standard normal draws, float64.

    Args:
        key: (C,) or () int64, see `StepContext`.
        experts: E.
        samples: B.

    Returns:
        (C, E, B), or (E, B) for one client.
    """
    every_E1 = torch.arange(experts, device=key.device).unsqueeze(1)
    every_B = torch.arange(samples, device=key.device)
    hashes = fold(fold(key[..., None, None], every_E1), every_B)
    found: Tensor = torch.special.ndtri(uniforms(hashes))
    return found


def choices(hashes: Tensor, experts: int) -> Tensor:
    """Numbers from 0 to E - 1, equally likely, int64, of the same shape."""
    return (uniforms(hashes) * experts).long()


def hashes_of_samples(x: Tensor) -> Tensor:
    """(..., B) a hash of each of the (..., B, D) samples: equal samples have equal hashes."""
    # 0.0 for -0.0: they are equal, but not bit by bit.
    bits = (x.float() + 0.0).view(torch.int32).long()
    every_D = torch.arange(x.shape[-1], device=x.device)
    factor_D = fold(torch.zeros_like(every_D), every_D) | 1
    return fold((bits * factor_D).sum(dim=-1), torch.zeros_like(every_D[:1]))


def _shifted(z: Tensor, by: int) -> Tensor:
    """A shift to the right that brings in zeros; torch brings in the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)
