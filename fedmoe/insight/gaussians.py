"""Gaussians of classes from clients' sums: means, main directions, and how each class spreads.

Clients' sums of x, x x' or of a sketch of x x' add up to those of their samples together. About
the means of the classes they make the pooled scatter, whose leading eigenvectors span the few
directions in which classes differ most; in these, clients tell each class's own products
(`fedmoe.insight.payloads.spreads`). With N_c samples of class c, scatter C_c in the directions
and S the pooled covariance there, a class's covariance is drawn to the pooled one,
A_c = (C_c + s S) / (N_c - 1 + s), s degrees of freedom (Friedman, "Regularized discriminant
analysis", JASA 1989, equation 13, in these units).

Letters: K clients, O classes, D features, W columns of a sketch, r directions, R = r (r + 1) / 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedmoe.insight.payloads.gaussians import sketching
from fedmoe.insight.payloads.products import packed, unpacked

Doubles = NDArray[np.float64]
_SHRINKAGE = 10.0  # s


@dataclass(frozen=True)
class ClassSums:
    """Clients' `gaussians` added up.

    Attributes:
        count_O: samples of each class.
        mean_OD: their means; 0 of a class without samples.
        told: the sums of squares or products, over clients, by the payload's names.
    """

    count_O: Doubles
    mean_OD: Doubles
    told: Mapping[str, Doubles]

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> "ClassSums":
        """From clients' payloads, (K, ...) by name."""
        told = {name: rows.sum(axis=0, dtype=np.float64) for name, rows in arrays.items()}
        count_O, sum_OD = told.pop("gaussian_count"), told.pop("gaussian_sum")
        return cls(count_O, sum_OD / np.maximum(count_O, 1)[:, None], told)

    @property
    def known_O(self) -> NDArray[np.bool_]:
        """Which classes anybody told of."""
        return np.asarray(self.count_O > 0)

    @property
    def freedom(self) -> float:
        """Samples less classes; 1 at least."""
        return max(float(self.count_O.sum() - self.known_O.sum()), 1.0)

    @property
    def has_directions(self) -> bool:
        """Whether they tell how features go together."""
        return "gaussian_products" in self.told or "gaussian_sketch" in self.told

    def variance_OD(self) -> Doubles:
        """Each class's variances, drawn to the pooled ones; of squares by class."""
        scatter_OD = self.told["gaussian_squares"] - self.count_O[:, None] * self.mean_OD**2
        scatter_OD = np.maximum(scatter_OD, 0)
        pooled_D = scatter_OD.sum(axis=0) / self.freedom
        freedom_O1 = np.maximum(self.count_O - 1, 0)[:, None]
        return np.asarray((scatter_OD + _SHRINKAGE * pooled_D) / (freedom_O1 + _SHRINKAGE))

    def directions(self, rank: int, seed: int) -> tuple[Doubles, Doubles]:
        """The leading eigenvectors of the pooled covariance, (D, r), and its eigenvalues, (r,).

        Args:
            rank: r, of no more than D.
            seed: of the sketch; see `sketching`.
        """
        if "gaussian_sketch" not in self.told:
            basis_Dr, values_r = _leading(self._scatter_DD(), rank)
            return basis_Dr, values_r / self.freedom
        # Nystroem's approximation from the products' image of the sketching columns.
        columns_DW = sketching(seed, *self.told["gaussian_sketch"].shape)
        between_DW = (self.mean_OD * self.count_O[:, None]).T @ (self.mean_OD @ columns_DW)
        image_DW = self.told["gaussian_sketch"] - between_DW
        range_DW, _ = np.linalg.qr(image_DW)
        core_WW = columns_DW.T @ image_DW
        inverse_WW = np.linalg.pinv((core_WW + core_WW.T) / 2, rcond=1e-6, hermitian=True)
        image_WW = range_DW.T @ image_DW
        basis_Wr, values_r = _leading(image_WW @ inverse_WW @ image_WW.T, rank)
        return np.asarray(range_DW @ basis_Wr), values_r / self.freedom

    def pooled_variance_D(self) -> Doubles:
        """Of each feature about the classes' means."""
        if "gaussian_products" in self.told:
            return np.asarray(self._scatter_DD().diagonal() / self.freedom)
        about_0_D = self.told["gaussian_squares"]
        scatter_D = about_0_D - (self.count_O[:, None] * self.mean_OD**2).sum(axis=0)
        return np.asarray(np.maximum(scatter_D / self.freedom, 0))

    def _scatter_DD(self) -> Doubles:
        """Sum of the products about the classes' means."""
        products = self.told["gaussian_products"]
        if products.ndim == 2:  # of each class
            products = products.sum(axis=0)
        return unpacked(products) - (self.mean_OD * self.count_O[:, None]).T @ self.mean_OD

    def products_Orr(self, basis_Dr: Doubles) -> Doubles | None:
        """Each class's products in some directions, if they are told by class."""
        products = self.told.get("gaussian_products")
        if products is None or products.ndim != 2:
            return None
        return np.asarray(basis_Dr.T @ unpacked(products) @ basis_Dr)


def spread_of(sums: ClassSums, basis_Dr: Doubles, products_Orr: Doubles) -> tuple[Doubles, Doubles]:
    """How each class spreads in the directions, (O, R) packed, and on average, (r, r).

    Args:
        sums: of the clients that told the products.
        basis_Dr: the directions.
        products_Orr: of each class in these.
    """
    mean_Or = sums.mean_OD @ basis_Dr
    scatter_Orr = products_Orr - np.einsum("o,oi,oj->oij", sums.count_O, mean_Or, mean_Or)
    values_Or, vectors_Orr = np.linalg.eigh(scatter_Orr)  # rounding may leave them below 0
    scatter_Orr = (vectors_Orr * np.maximum(values_Or, 0)[:, None]) @ np.swapaxes(vectors_Orr, 1, 2)
    pooled_rr = scatter_Orr.sum(axis=0) / sums.freedom
    freedom_O11 = np.maximum(sums.count_O - 1, 0)[:, None, None]
    spread_Orr = (scatter_Orr + _SHRINKAGE * pooled_rr) / (freedom_O11 + _SHRINKAGE)
    return packed(spread_Orr), pooled_rr


def _leading(matrix_DD: Doubles, rank: int) -> tuple[Doubles, Doubles]:
    """Eigenvectors and eigenvalues, from the largest; none below 0."""
    values_D, vectors_DD = np.linalg.eigh(matrix_DD)
    return vectors_DD[:, ::-1][:, :rank], np.maximum(values_D[::-1][:rank], 0)
