"""How a mixture's answer comes of its experts' answers and the router's weights.

Letters: C clients (absent for one client), E experts, O outputs, B batch.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Mixed(NamedTuple):
    """A mixture's answer.

    Attributes:
        y: (..., O, B).
        saved: (..., E, O, B) what `Combine.behind` has use for.
    """

    y: Tensor
    saved: Tensor


class Combine(Protocol):
    """One way to combine."""

    def mix(self, answers: Tensor, weight: Tensor) -> Mixed:
        """Combine (..., E, O, B) answers by (..., E, B) weights."""
        ...

    def behind(self, mixed: Mixed, weight_CEB: Tensor, y_grad_COB: Tensor) -> tuple[Tensor, Tensor]:
        """The gradients by the answers, (C, E, O, B), and by the weights, (C, E, B).

        The latter is only needed where the weight is not 0.
        """
        ...


class Outputs:
    """y = sum_e g_e y_e (arXiv 1701.06538, equation 1)."""

    def mix(self, answers: Tensor, weight: Tensor) -> Mixed:
        """See `Combine`."""
        return Mixed((answers * weight.unsqueeze(-2)).sum(dim=-3), answers)

    def behind(self, mixed: Mixed, weight_CEB: Tensor, y_grad_COB: Tensor) -> tuple[Tensor, Tensor]:
        """See `Combine`."""
        y_grad_C1OB = y_grad_COB.unsqueeze(1)
        return y_grad_C1OB * weight_CEB.unsqueeze(2), (mixed.saved * y_grad_C1OB).sum(dim=2)


class Probabilities:
    """y = log sum_e g_e softmax(y_e): the logarithm of the mixture of the experts' classes.

    Its cross-entropy is the mixture's negative log-likelihood, and the gradient of that by an
    expert is the expert's own, weighted by its posterior (Jacobs et al., "Adaptive mixtures of
    local experts", Neural Computation 1991, equation 1.3; the M step of arXiv 2108.10252). A
    sample that every expert dropped gets equal probabilities.

    Cross-entropy normalises once more, so weights that do not sum to 1 act as if they did.
    """

    def mix(self, answers: Tensor, weight: Tensor) -> Mixed:
        """See `Combine`; kept are log(g_e softmax(y_e))."""
        has_weight = weight != 0  # one that is no number makes an answer that is none
        dropped = ~has_weight.any(dim=-2, keepdim=True)
        # Twice `where`: autograd multiplies the infinite slope of log at 0 by 0.
        log_weight = torch.where(has_weight, weight, 1.0).log()
        log_weight = log_weight.masked_fill(~(has_weight | dropped), -torch.inf)
        joint = answers.log_softmax(dim=-2) + log_weight.unsqueeze(-2)
        return Mixed(joint.logsumexp(dim=-3).masked_fill(dropped, 0.0), joint)

    def behind(self, mixed: Mixed, weight_CEB: Tensor, y_grad_COB: Tensor) -> tuple[Tensor, Tensor]:
        """See `Combine`.

        With P_eo expert e's probability of class o and r_eo = g_e P_eo / sum_e' g_e' P_e'o, the
        gradient by log P_eo is G_o r_eo for G the gradient by y.
        """
        answered_C1B = (weight_CEB > 0).any(dim=1, keepdim=True)
        y_grad_C1OB = (y_grad_COB * answered_C1B).unsqueeze(1)
        log_probs_grad = (mixed.saved - mixed.y.unsqueeze(1)).exp_().mul_(y_grad_C1OB)
        # A weight too small for its reciprocal is as good as none.
        counts = weight_CEB > torch.finfo(weight_CEB.dtype).tiny
        divisor_CEB = torch.where(counts, weight_CEB, torch.inf)
        weight_grad = log_probs_grad.sum(dim=2).div_(divisor_CEB)
        shared = mixed.saved.exp().mul_(weight_grad.unsqueeze(2))
        return log_probs_grad.sub_(shared), weight_grad


COMBINE: dict[str, Combine] = {"outputs": Outputs(), "probabilities": Probabilities()}
