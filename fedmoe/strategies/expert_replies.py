"""What clients may say of the experts that they were sent.

Letters: C clients that replied, M experts that a client was sent or sent back.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1.001  # an expert's share of a client's samples may exceed them by so much
_MAX_MISFIT = 1e9  # minus the mean log-likelihood that a client may claim

Told = Mapping[str, NDArray[Any]]


def wrong_experts(
    told: Told, asked_CM: NDArray[np.int64], count_C: NDArray[Any], *, wants_all: bool
) -> NDArray[np.bool_]:
    """Which clients, (C,), do not say what they should, or claim more than their examples.

    Args:
        told: `index` and `examples`, (C, M) if they are as they should be.
        asked_CM: which experts each client was sent.
        count_C: examples that each says it has.
        wants_all: whether all experts are to come back; else one of them.
    """
    index, examples = told["index"], told["examples"]
    wanted = (asked_CM.shape[1] if wants_all else 1,)
    if (
        index.dtype != np.int64
        or examples.dtype.kind != "f"
        or index.shape[1:] != wanted
        or examples.shape[1:] != wanted
    ):
        return np.full(len(index), True)
    same_CM = index == asked_CM
    right_C = same_CM.all(axis=1) if wants_all else same_CM.any(axis=1)
    possible_CM = (examples >= 0) & (examples <= _ROUNDING * count_C[:, None])
    return np.asarray(~(right_C & possible_CM.all(axis=1)))


def wrong_fit(told: Told) -> NDArray[np.bool_]:
    """Which clients, (C,), do not tell a mean log-likelihood for each of their experts."""
    fit = told["fit"]
    if fit.dtype.kind != "f" or fit.shape != told["index"].shape:
        return np.full(len(fit), True)
    return np.asarray(~((fit >= -_MAX_MISFIT) & (fit <= 0)).all(axis=1))


def check_told(
    told: Told, asked_M: NDArray[np.int64], count: int, *, wants_all: bool, wants_fit: bool
) -> None:
    """Refuse what one client says that was sent the experts `asked_M`.

    Args:
        told: (M,) each.
        asked_M: which experts it was sent.
        count: examples that it says it has.
        wants_all: see `wrong_experts`.
        wants_fit: whether `told` is to have `fit`, too.

    Raises:
        ValueError: says what is wrong.
    """
    alone = {name: value[None] for name, value in told.items()}
    if wrong_experts(alone, asked_M[None], np.array([count]), wants_all=wants_all)[0]:
        raise ValueError(
            f"experts {_said(told['index'])} with examples {_said(told['examples'])}: expected "
            f"{'all' if wants_all else 'one'} of {asked_M.tolist()}, int64, with 0 to "
            f"{count} examples each, float"
        )
    if wants_fit and wrong_fit(alone)[0]:
        raise ValueError(
            f"fit of experts {_said(told['fit'])}: expected {len(asked_M)} numbers from "
            f"{-_MAX_MISFIT:g} to 0, float"
        )


def _said(array: NDArray[Any]) -> str:
    return f"{array.dtype}{array.tolist()}"
