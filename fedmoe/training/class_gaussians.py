"""Samples drawn from Gaussians of classes, and how likely each class is to have made them.

A class is N(mu_c, S_c), its covariance told in few directions: S_c = U A_c U' + diag(residual),
with U (D, r) of orthonormal columns, the same for all classes of a client. Without directions
(r = 0) each class has its features' variances, S_c = diag(residual_c).

Letters: C clients, M samples drawn, n most samples of a client, D features, O classes, r
directions.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedmoe.data.drawing import hash_keys
from fedmoe.data.federation import Ints
from fedmoe.models.draws import normals, uniforms
from fedmoe.training.terms import Rehearsal
from fedmoe.training.trust import chance_corrected

# Draws lie this much further out than the class does, so that the model sees where classes meet.
_INFLATION = 1.4
# A client's share of a class counts as if it had so many more samples, evenly divided.
_PRIOR_SAMPLES = 10.0
_STREAM = 0x6A55  # keeps draws apart from what else is hashed of seed, round and client
_LEAST = 1e-4  # of the mean variance, that each direction has


@dataclass(frozen=True)
class ClassGaussians:
    """What clients are told of the classes.

    Attributes:
        mean: (C, O, D).
        basis: (C, D, r).
        spread: (C, O, r, r) covariance of each class in the directions.
        residual: (C, O, D) variances that the directions leave.
        weight: (C, O) of the rehearsal, 0 for classes that are not known; sums to its strength.
    """

    mean: Tensor
    basis: Tensor
    spread: Tensor
    residual: Tensor
    weight: Tensor

    def log_density(self, x_CMD: Tensor) -> Tensor:
        """(C, O, M) log N(x; mu_c, S_c) up to a constant that is the same for all classes.

        Outside the directions all classes are as wide, which is the mean of the residual: what
        tells classes apart there is their means.
        """
        if not self.basis.shape[-1]:
            return self._log_density_by_feature(x_CMD)
        basis_CDr, (_, features, rank) = self.basis, self.basis.shape
        noise_C = self.residual.sum(dim=(1, 2)) / (self.residual.shape[1] * max(features - rank, 1))
        noise_C = noise_C.clamp_min(_LEAST * self._scale())
        eye_rr = torch.eye(rank, device=x_CMD.device)
        factor_COrr = torch.linalg.cholesky(self.spread + noise_C.view(-1, 1, 1, 1) * eye_rr)
        half_CO = factor_COrr.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        away_COM = torch.cdist(self.mean, x_CMD).square()
        x_CrM, mean_COr = (x_CMD @ basis_CDr).mT, self.mean @ basis_CDr
        densities = []
        for c in range(self.mean.shape[1]):
            inside_CrM = x_CrM - mean_COr[:, c].unsqueeze(-1)
            solved_CrM = torch.linalg.solve_triangular(factor_COrr[:, c], inside_CrM, upper=False)
            outside_CM = (away_COM[:, c] - inside_CrM.square().sum(dim=1)).clamp_min(0)
            distance_CM = solved_CrM.square().sum(dim=1) + outside_CM / noise_C.unsqueeze(1)
            densities.append(-half_CO[:, c : c + 1] - distance_CM / 2)
        return torch.stack(densities, dim=1)

    def _log_density_by_feature(self, x_CMD: Tensor) -> Tensor:
        least_C = _LEAST * self._scale()
        variance_COD = self.residual.maximum(least_C.view(-1, 1, 1))
        inverse_CDO = variance_COD.reciprocal().mT
        square_CMO = x_CMD.square() @ inverse_CDO - 2 * x_CMD @ (self.mean.mT * inverse_CDO)
        constant_CO = (self.mean.square() / variance_COD + variance_COD.log()).sum(dim=-1)
        return -(square_CMO.mT + constant_CO.unsqueeze(-1)) / 2

    def _scale(self) -> Tensor:
        """(C,) the mean variance of a feature; 1 where nothing is known."""
        traces_CO = self.residual.sum(dim=-1) + self.spread.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
        scale_C = traces_CO.mean(dim=1) / self.residual.shape[-1]
        return scale_C.where(scale_C > 0, torch.ones_like(scale_C))

    def draw(self, class_CM: Tensor, key_C: Tensor) -> Tensor:
        """One sample of each class that is asked for, (C, M, D).

        Args:
            class_CM: the classes.
            key_C: int64, what fixes a client's draws.
        """
        (_, _, features), rank, drawn = self.mean.shape, self.basis.shape[-1], class_CM.shape[1]
        noise_CsM = normals(key_C, rank + features, drawn).to(self.mean)
        width_COD = self.residual.sqrt()
        own_CMD = class_CM.unsqueeze(-1).expand(-1, -1, features)
        x_CMD = width_COD.gather(1, own_CMD) * noise_CsM[:, rank:].mT
        if rank:
            eye_rr = torch.eye(rank, device=class_CM.device)
            least_C111 = (_LEAST * self._scale()).view(-1, 1, 1, 1)
            factor_COrr = torch.linalg.cholesky(self.spread + least_C111 * eye_rr)
            inside_CMr = noise_CsM[:, :rank].mT.clone()
            for c in range(self.mean.shape[1]):
                spread_CMr = noise_CsM[:, :rank].mT @ factor_COrr[:, c].mT
                inside_CMr = torch.where((class_CM == c).unsqueeze(-1), spread_CMr, inside_CMr)
            x_CMD = x_CMD + inside_CMr @ self.basis.mT
        return self.mean.gather(1, own_CMD) + _INFLATION * x_CMD


def class_shares(y_Cn: Tensor, real_Cn: Tensor, known_CO: Tensor) -> Tensor:
    """(C, O) how often a client is to expect each class that is known; 0 for the others.

    Its own shares, drawn to equal ones: rehearsing what it never meets does not help it.
    """
    member_CnO = torch.nn.functional.one_hot(y_Cn, known_CO.shape[1]) * real_Cn.unsqueeze(-1)
    share_CO = (member_CnO.sum(dim=1) + _PRIOR_SAMPLES / known_CO.shape[1]) * known_CO
    return share_CO / share_CO.sum(dim=1, keepdim=True).clamp_min(1e-12)


def gaussian_rehearsal(
    gaussians: ClassGaussians,
    samples: tuple[Tensor, Tensor, Tensor],
    count: int,
    *,
    seed: int,
    round: int,
    client_C: Ints,
) -> Rehearsal:
    """Fresh samples of the classes for one round of training, with soft labels.

    A sample's label is what Bayes' rule makes of it by the Gaussians and the client's shares of
    the classes. Samples are cut to the range that the client's own inputs have. As of
    prototypes, a client relies on the Gaussians as far as they classify its own samples.

    Args:
        gaussians: what the clients were told.
        samples: their own: inputs (C, n, D), classes (C, n), which are real (C, n).
        count: M.
        seed: of the experiment.
        round: of the federation.
        client_C: ids; with `seed` and `round` they fix the draws.
    """
    x_CnD, y_Cn, real_Cn = samples
    known_CO = gaussians.weight > 0
    share_CO = class_shares(y_Cn, real_Cn, known_CO)
    keys = hash_keys(_STREAM, seed, round, client_C).view(np.int64)
    key_C = torch.from_numpy(keys).to(x_CnD.device)
    # Places spread evenly over the cumulated shares, shifted at random: each class is drawn as
    # often as it should be, to the nearest whole number.
    shift_C1 = uniforms(key_C).unsqueeze(1)
    place_CM = (torch.arange(count, device=key_C.device) + shift_C1) / count
    class_CM = torch.searchsorted(share_CO.double().cumsum(dim=1), place_CM)
    class_CM = class_CM.clamp_max(known_CO.shape[1] - 1)
    drawn_CMD = gaussians.draw(class_CM, key_C)
    lowest_C, highest_C = _range(x_CnD, real_Cn)
    drawn_CMD = drawn_CMD.clamp(lowest_C.view(-1, 1, 1), highest_C.view(-1, 1, 1))
    prior_CO1 = share_CO.log().unsqueeze(-1)  # -infinity for a class that is not known
    target_COM = (gaussians.log_density(drawn_CMD) + prior_CO1).softmax(dim=1).nan_to_num(0.0)
    strength_C = gaussians.weight.sum(dim=1) * _trust(gaussians, x_CnD, y_Cn, real_Cn)
    weight_CM = (strength_C / count).unsqueeze(1).expand(-1, count)
    return Rehearsal(drawn_CMD, target_COM.mT.contiguous(), weight_CM.contiguous())


def _range(x_CnD: Tensor, real_Cn: Tensor) -> tuple[Tensor, Tensor]:
    """(C,) and (C,): the smallest and the largest of each client's values."""
    real_Cn1 = real_Cn.unsqueeze(-1)
    low_CnD, high_CnD = x_CnD.where(real_Cn1, math.inf), x_CnD.where(real_Cn1, -math.inf)
    return low_CnD.amin(dim=(1, 2)), high_CnD.amax(dim=(1, 2))


def _trust(gaussians: ClassGaussians, x_CnD: Tensor, y_Cn: Tensor, real_Cn: Tensor) -> Tensor:
    known_CO1 = (gaussians.weight > 0).unsqueeze(-1)
    density_COn = gaussians.log_density(x_CnD.where(real_Cn.unsqueeze(-1), 0))
    guess_Cn = density_COn.masked_fill(~known_CO1, -math.inf).argmax(dim=1)
    return chance_corrected(guess_Cn, y_Cn, real_Cn, known_CO1.shape[1])
