"""Gaussians: number, sum and squares of a client's inputs of each class.

Sums of several clients add up to the sums of their samples together, from which the mean and the
covariance of each class follow. CCVR (arXiv 2106.05001, section 4.2) and FedPFT (arXiv 2402.01862,
section 4) have clients send means and covariances of a frozen extractor's features, from which
the server samples to train a head. Deviations: these are of the inputs, since there is no common
extractor; sums instead of means, so that they can be added; and `insight.covariance` says how
much is told of how classes spread. Squares are told as float32: of a feature whose mean is some
hundred times its deviation too little is left of them, so that such features must be centred.

What it tells: which classes a client has, how many samples of each, their mean and how they
spread. Of one sample that is the sample; of two, sum and squares give both away (each feature's
pair, and with products the two samples themselves); with products, samples no more than features
span the space that is told. Classes with fewer than `insight.min_count_squares` samples are not
told.

Letters: C clients, n most samples of a client, D features, O classes, T = D (D + 1) / 2 pairs,
W columns of a sketch.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedmoe.data.drawing import Stream, generator
from fedmoe.insight.payloads.base import (
    ROUNDING,
    ClassPayload,
    Shapes,
    Sources,
    shortened,
    wrong_counts,
)
from fedmoe.insight.payloads.products import is_negative, products_of, unpacked
from fedmoe.schema import InsightConfig
from fedmoe.training.representations import class_sums

Doubles = NDArray[np.float64]
_MORE_COLUMNS = 20  # of a sketch than the rank that is looked for, as range finders have


class Gaussians(ClassPayload):
    """`gaussian_count` (O,), `gaussian_sum` (O, D), and what `insight.covariance` asks for.

    See `covariance_of` for `auto`. `diagonal`: `gaussian_squares` (O, D). `class`:
    `gaussian_products` (O, T), the sums of x x'. `pooled`: `gaussian_totals` (O,), the sums of
    |x|^2, and `gaussian_products` (T,) of all classes that are told. `sketch`, where there are
    too many features for that: totals, `gaussian_squares` (D,) and `gaussian_sketch` (D, W), the
    pooled products times `sketching`,
    from which their leading eigenvectors follow (Halko, Martinsson and Tropp, SIAM Review 2011,
    section 5.5). Products are packed, see `products.unpacked`.
    """

    name = "gaussians"

    @property
    @override
    def shapes(self) -> Shapes:
        outputs, features = self.facts.task.num_outputs, self.facts.task.num_features
        pairs = features * (features + 1) // 2
        first: Shapes = {"gaussian_count": (outputs,), "gaussian_sum": (outputs, features)}
        totals: Shapes = {"gaussian_totals": (outputs,)}
        more: dict[str, Shapes] = {
            "diagonal": {"gaussian_squares": (outputs, features)},
            "class": {"gaussian_products": (outputs, pairs)},
            "pooled": {**totals, "gaussian_products": (pairs,)},
            "sketch": {
                **totals,
                "gaussian_squares": (features,),
                "gaussian_sketch": (features, self._columns),
            },
        }
        return {**first, **more[self._covariance]}

    @property
    def _covariance(self) -> str:
        return covariance_of(self.facts.config, self.facts.task.num_features)

    @property
    def _columns(self) -> int:
        return _sketch_columns(self.facts.config, self.facts.task.num_features)

    def _sketching(self) -> Doubles:
        return sketching(self.facts.seed, self.facts.task.num_features, self._columns)

    @override
    def make(self, sources: Sources) -> dict[str, Tensor]:
        config, outputs = self.facts.config, self.facts.task.num_outputs
        x_CnD, told_Cn = told_samples(sources, config.clip, config.min_count_squares, outputs)
        sum_COD, count_CO = class_sums(x_CnD, sources.y_Cn, told_Cn, outputs)
        told = {"gaussian_count": count_CO, "gaussian_sum": sum_COD}
        squares_COD, _ = class_sums(x_CnD.square(), sources.y_Cn, told_Cn, outputs)
        covariance = self._covariance
        if covariance == "diagonal":
            return {**told, "gaussian_squares": squares_COD}
        if covariance == "class":
            each = [products_of(x_CnD, told_Cn & (sources.y_Cn == c)) for c in range(outputs)]
            return {**told, "gaussian_products": torch.stack(each, dim=1)}
        told["gaussian_totals"] = squares_COD.sum(dim=2)
        if covariance == "pooled":
            return {**told, "gaussian_products": products_of(x_CnD, told_Cn)}
        own_CnD = x_CnD.where(told_Cn.unsqueeze(-1), 0)
        columns_DW = torch.from_numpy(self._sketching()).to(own_CnD)
        told["gaussian_squares"] = squares_COD.sum(dim=1)
        return {**told, "gaussian_sketch": torch.bmm(own_CnD.mT, own_CnD @ columns_DW)}

    @override
    def implausible(
        self, arrays: Mapping[str, NDArray[Any]], num_examples_C: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Counts as of prototypes; squares too small for their sum or too large for `clip`.

        Products must leave a covariance without negative eigenvalues.
        """
        config = self.facts.config
        came = {name: array.astype(np.float64) for name, array in arrays.items()}
        count_CO = came["gaussian_count"]
        bad_C = wrong_counts(count_CO, num_examples_C, config.min_count_squares)
        # By these a sum's outer product is that of the mean times the number of samples.
        scaled_COD = came["gaussian_sum"] / np.sqrt(np.maximum(count_CO, 1))[..., None]
        total_CO = totals_of(came)
        bad_C |= _too_small(total_CO, (scaled_COD**2).sum(axis=2)).any(axis=1)
        most = np.inf if config.clip is None else (1 + ROUNDING) * config.clip**2
        with np.errstate(invalid="ignore"):  # infinity times 0 samples is none at all
            most_CO = np.where(count_CO > 0, most * count_CO, 0.0)
        bad_C |= (total_CO > most_CO).any(axis=1)
        for squares, needed in self._squares(came, scaled_COD):
            bad_C |= _too_small(squares, needed).reshape(len(bad_C), -1).any(axis=1)
        for scatter, trace_C in self._scatters(came, scaled_COD):
            bad_C |= is_negative(scatter, trace_C)
        if "gaussian_totals" in came:
            held_C, all_C = self._held(came), total_CO.sum(axis=1)
            bad_C |= np.abs(held_C - all_C) > ROUNDING * all_C
        return np.asarray(bad_C)

    @staticmethod
    def _held(came: Mapping[str, Doubles]) -> Doubles:
        """The sum of all totals, as pooled squares or products have it, (C,)."""
        if "gaussian_squares" in came:
            return np.asarray(came["gaussian_squares"].sum(axis=1))
        return np.asarray(_diagonal(came).sum(axis=1))

    @staticmethod
    def _squares(
        came: Mapping[str, Doubles], scaled_COD: Doubles
    ) -> Iterator[tuple[Doubles, Doubles]]:
        """Each feature's squares, and what they must be at least by Cauchy and Schwarz."""
        if "gaussian_squares" in came:
            squares = came["gaussian_squares"]
            yield squares, (scaled_COD**2 if squares.ndim == 3 else (scaled_COD**2).sum(axis=1))

    def _scatters(
        self, came: Mapping[str, Doubles], scaled_COD: Doubles
    ) -> Iterator[tuple[Doubles, Doubles]]:
        """Sums of products about the classes' means, and the trace of those about 0."""
        if self._covariance == "pooled":
            products_CDD = unpacked(came["gaussian_products"])
            scatter_CDD = products_CDD - np.swapaxes(scaled_COD, 1, 2) @ scaled_COD
            yield scatter_CDD, np.trace(products_CDD, axis1=1, axis2=2)
        elif self._covariance == "class":
            for c in range(scaled_COD.shape[1]):
                products_CDD = unpacked(came["gaussian_products"][:, c])
                outer_CDD = scaled_COD[:, c, :, None] * scaled_COD[:, c, None]
                yield products_CDD - outer_CDD, np.trace(products_CDD, axis1=1, axis2=2)
        elif self._covariance == "sketch":
            columns_DW = self._sketching()
            about_0_CWW = columns_DW.T @ came["gaussian_sketch"]
            means_COW = scaled_COD @ columns_DW
            scatter_CWW = about_0_CWW - np.swapaxes(means_COW, 1, 2) @ means_COW
            yield scatter_CWW, np.trace(about_0_CWW, axis1=1, axis2=2)


def covariance_of(config: InsightConfig, features: int) -> str:
    """`insight.covariance`; for `auto` that which tells main directions in fewest numbers."""
    if config.covariance != "auto":
        return config.covariance
    pooled = features * (features + 1) // 2
    return "pooled" if pooled <= features * _sketch_columns(config, features) else "sketch"


def _sketch_columns(config: InsightConfig, features: int) -> int:
    return min(config.rank + _MORE_COLUMNS, features)


def sketching(seed: int, features: int, columns: int) -> Doubles:
    """What pooled products are multiplied by, (D, W): N(0, 1), the same for all."""
    return generator(seed, Stream.SKETCHING).standard_normal((features, columns))


def told_samples(
    sources: Sources, clip: float | None, fewest: int, outputs: int
) -> tuple[Tensor, Tensor]:
    """Inputs, (C, n, D), and which of them are of a class with enough samples, (C, n)."""
    x_CnD = shortened(sources, clip)
    _, count_CO = class_sums(x_CnD[..., :0], sources.y_Cn, sources.real_Cn, outputs)
    return x_CnD, sources.real_Cn & (count_CO >= fewest).gather(1, sources.y_Cn)


def totals_of(came: Mapping[str, Doubles]) -> Doubles:
    """Each class's sum of |x|^2, (C, O), from what clients told."""
    if "gaussian_totals" in came:
        return came["gaussian_totals"]
    if "gaussian_squares" in came:
        return np.asarray(came["gaussian_squares"].sum(axis=2))
    return np.asarray(_diagonal(came).sum(axis=2))


def _diagonal(came: Mapping[str, Doubles]) -> Doubles:
    """The squares among products, (C, D) or (C, O, D)."""
    rows, columns = np.triu_indices(came["gaussian_sum"].shape[-1])
    squares: Doubles = came["gaussian_products"][..., rows == columns]
    return squares


def _too_small(squares: Doubles, needed: Doubles) -> NDArray[np.bool_]:
    return np.asarray(squares * (1 + ROUNDING) < needed)
