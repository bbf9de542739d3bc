"""Gaussians: number, sum and squares of a client's inputs of each class.

Sums of several clients add up to the sums of their samples together, from which the mean and the
covariance of each class follow. CCVR (arXiv 2106.05001, section 4.2) and FedPFT (arXiv 2402.01862,
section 4) have clients send means and covariances of a frozen extractor's features, from which
the server samples to train a head. Deviations: these are of the inputs, since there is no common
extractor; sums instead of means, so that they can be added; and `insight.covariance` says how
much is told of how a class spreads. Squares are told as float32: of a feature whose mean is some
hundred times its deviation too little is left of them, so that such features must be centred.

What it tells: which classes a client has, how many samples of each, their mean and how they
spread. Of one sample that is the sample; of two, sum and squares give both away (each feature's
pair, and with products the two samples themselves); with products, samples no more than features
span the space that is told. Classes with fewer than `insight.min_count_squares` samples are not
told.

Letters: C clients, n most samples of a client, D features, O classes, T = D (D + 1) / 2 pairs.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedmoe.insight.payloads.base import Payload, Shapes, Sources, shortened, wrong_counts
from fedmoe.training.representations import class_sums

# What float32 may lose: of a sum, and of the smallest eigenvalue of one over the sum of all.
_ROUNDING, _ROUNDING_EIGENVALUE = 1e-3, 1e-5


class Gaussians(Payload):
    """`gaussian_count` (O,), `gaussian_sum` (O, D), and what `insight.covariance` asks for.

    `diagonal`: `gaussian_squares` (O, D); `pooled`: these, and `gaussian_products` (T,) of all
    classes told; `class`: `gaussian_products` (O, T). Products are upper triangles, row by row,
    of sums of x x'; see `unpacked`.
    """

    name = "gaussians"

    @property
    @override
    def fits(self) -> bool:
        return self.facts.task.kind == "classification"

    @property
    @override
    def shapes(self) -> Shapes:
        outputs, features = self.facts.task.num_outputs, self.facts.task.num_features
        pairs = features * (features + 1) // 2
        told = {"gaussian_count": (outputs,), "gaussian_sum": (outputs, features)}
        if self.facts.config.covariance != "class":
            told["gaussian_squares"] = (outputs, features)
        if self.facts.config.covariance == "pooled":
            told["gaussian_products"] = (pairs,)
        if self.facts.config.covariance == "class":
            told["gaussian_products"] = (outputs, pairs)
        return told

    @override
    def make(self, sources: Sources) -> dict[str, Tensor]:
        config, outputs = self.facts.config, self.facts.task.num_outputs
        x_CnD = shortened(sources, config.clip)
        _, count_CO = class_sums(x_CnD[..., :0], sources.y_Cn, sources.real_Cn, outputs)
        enough_CO = count_CO >= config.min_count_squares
        told_Cn = sources.real_Cn & enough_CO.gather(1, sources.y_Cn)
        sum_COD, count_CO = class_sums(x_CnD, sources.y_Cn, told_Cn, outputs)
        told = {"gaussian_count": count_CO, "gaussian_sum": sum_COD}
        if config.covariance != "class":
            told["gaussian_squares"] = class_sums(x_CnD.square(), sources.y_Cn, told_Cn, outputs)[0]
        if config.covariance == "pooled":
            told["gaussian_products"] = _products(x_CnD, told_Cn)
        if config.covariance == "class":
            each = [_products(x_CnD, told_Cn & (sources.y_Cn == c)) for c in range(outputs)]
            told["gaussian_products"] = torch.stack(each, dim=1)
        return told

    @override
    def implausible(
        self, arrays: Mapping[str, NDArray[Any]], num_examples_C: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Counts as of prototypes; squares too small for their sum or too large for `clip`.

        Products must leave a covariance without negative eigenvalues, and hold the squares.
        """
        config = self.facts.config
        count_CO = arrays["gaussian_count"].astype(np.float64)
        sum_COD = arrays["gaussian_sum"].astype(np.float64)
        squares_COD = _squares(arrays).astype(np.float64)
        bad_C = wrong_counts(count_CO, num_examples_C, config.min_count_squares)
        # Cauchy and Schwarz: the square of n numbers' sum is no more than n times their squares.
        needed_COD = sum_COD**2 / np.maximum(count_CO, 1)[..., None]
        bad_C |= (squares_COD * (1 + _ROUNDING) < needed_COD).any(axis=(1, 2))
        most = np.inf if config.clip is None else (1 + _ROUNDING) * config.clip**2
        with np.errstate(invalid="ignore"):  # infinity times 0 samples is none at all
            most_CO = np.where(count_CO > 0, most * count_CO, 0.0)
        bad_C |= (squares_COD.sum(axis=2) > most_CO).any(axis=1)
        for products_CT, own_COD, number_CO, held_CD in self._products_of(
            arrays, sum_COD, count_CO, squares_COD
        ):
            bad_C |= _no_covariance(products_CT, own_COD, number_CO, held_CD)
        return np.asarray(bad_C)

    def _products_of(
        self,
        arrays: Mapping[str, NDArray[Any]],
        sum_COD: NDArray[np.float64],
        count_CO: NDArray[np.float64],
        squares_COD: NDArray[np.float64],
    ) -> Iterator[tuple[NDArray[Any], ...]]:
        """Products, and the sums, counts and squares of the classes that they are of."""
        products = arrays.get("gaussian_products")
        if products is None:
            return
        if self.facts.config.covariance == "pooled":
            yield products, sum_COD, count_CO, squares_COD.sum(axis=1)
            return
        for c in range(count_CO.shape[1]):
            one = slice(c, c + 1)
            yield products[:, c], sum_COD[:, one], count_CO[:, one], squares_COD[:, c]


def unpacked(packed: NDArray[Any], num_features: int) -> NDArray[np.float64]:
    """Symmetric matrices, (..., D, D), of their upper triangles, (..., T)."""
    rows, columns = np.triu_indices(num_features)
    whole = np.zeros((*packed.shape[:-1], num_features, num_features))
    whole[..., rows, columns] = packed
    whole[..., columns, rows] = packed
    return whole


def _products(x_CnD: Tensor, chosen_Cn: Tensor) -> Tensor:
    """(C, T): upper triangle of each client's sum of x x' over some of its samples."""
    own_CnD = x_CnD.where(chosen_Cn.unsqueeze(-1), 0)
    rows, columns = torch.triu_indices(x_CnD.shape[-1], x_CnD.shape[-1], device=x_CnD.device)
    return torch.bmm(own_CnD.mT, own_CnD)[:, rows, columns]


def _squares(arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """(C, O, D): each class's squares, which may be told among its products."""
    if "gaussian_squares" in arrays:
        return arrays["gaussian_squares"]
    rows, columns = np.triu_indices(arrays["gaussian_sum"].shape[-1])
    squares: NDArray[Any] = arrays["gaussian_products"][..., rows == columns]
    return squares


def _no_covariance(
    products_CT: NDArray[Any],
    sum_COD: NDArray[np.float64],
    count_CO: NDArray[np.float64],
    squares_CD: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Which products, less those of the classes' means, have a negative eigenvalue, (C,).

    Or do not hold the squares that were told.
    """
    features = sum_COD.shape[2]
    products_CDD = unpacked(products_CT, features)
    diagonal_CD = np.diagonal(products_CDD, axis1=1, axis2=2)
    other_C = (np.abs(diagonal_CD - squares_CD) > _ROUNDING * squares_CD).any(axis=1)
    scaled_COD = sum_COD / np.sqrt(np.maximum(count_CO, 1))[..., None]
    scatter_CDD = products_CDD - np.swapaxes(scaled_COD, 1, 2) @ scaled_COD
    slack_C = _ROUNDING_EIGENVALUE * diagonal_CD.sum(axis=1) + np.finfo(np.float64).tiny
    scatter_CDD += slack_C[:, None, None] * np.eye(features)
    # A Cholesky factor exists of positive definite matrices alone, and is cheaper to look for.
    failed_C = torch.linalg.cholesky_ex(torch.from_numpy(scatter_CDD)).info.numpy() != 0
    return np.asarray(other_C | failed_C)
