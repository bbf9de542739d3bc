"""Which expert explains a client's samples, and how much the client trusts each expert.

With gate logits phi(x), a client's log prior b and expert likelihoods p_e(y | x), the gate is
g = softmax(phi(x) + b), and the posterior of expert e for a sample is
q_e = g_e p_e / sum_f g_f p_f (FedEM, arXiv 2108.10252, equation 5, where phi = 0).

Letters: C clients, E experts, B samples.
"""

import torch
from torch import Tensor


def posterior(log_likelihood_CEB: Tensor, gate_logits_CEB: Tensor, prior_CE: Tensor) -> Tensor:
    """The experts' posterior for each sample, (C, E, B); sums to 1 over experts.

    Args:
        log_likelihood_CEB: log p_e(y | x) up to a constant of the sample: the negative loss.
        gate_logits_CEB: phi(x), without the prior.
        prior_CE: b, up to a constant of the client.
    """
    return (log_likelihood_CEB + gate_logits_CEB + prior_CE.unsqueeze(2)).softmax(dim=1)


def fit_prior(
    log_likelihood_CEB: Tensor,
    gate_logits_CEB: Tensor,
    prior_CE: Tensor,
    weight_CB: Tensor,
    *,
    iterations: int,
    pseudo_count: float | Tensor,
    centre_CE: Tensor | None = None,
) -> Tensor:
    """Each client's log prior that best explains its samples, by generalised EM.

    With pi = softmax(b) and a Dirichlet over pi that counts as a samples shared out as m,
    b_e <- b_e + log((a m_e + sum_i q_ie) / (a pi_e + sum_i g_ie)). Where the gate knows nothing
    of x, this is pi_e = (a m_e + sum_i q_ie) / (a + n), FedEM's mean posterior (equation 6) but
    for a. Where the gate does know, it moves the mean gate towards the mean posterior. It rests
    where the gradient of log-likelihood plus log density of the Dirichlet by b is 0.

    Args:
        log_likelihood_CEB: as in `posterior`.
        gate_logits_CEB: as in `posterior`.
        prior_CE: to start from.
        weight_CB: 1 for a sample, 0 for padding.
        iterations: EM steps, at least 0.
        pseudo_count: a, above 0; a large one holds the prior at m. One, or (C, 1).
        centre_CE: m, each above 0, of sum 1; even shares, 1 / E, by default.

    Returns:
        (C, E) log prior that sums to 1 as a distribution.
    """
    weight_C1B = weight_CB.unsqueeze(1)
    centre = 1 / prior_CE.shape[1] if centre_CE is None else centre_CE
    for _ in range(iterations):
        gate_CEB = (gate_logits_CEB + prior_CE.unsqueeze(2)).softmax(dim=1)
        q_CEB = posterior(log_likelihood_CEB, gate_logits_CEB, prior_CE)
        found_CE = (q_CEB * weight_C1B).sum(dim=2) + pseudo_count * centre
        held_CE = (gate_CEB * weight_C1B).sum(dim=2) + pseudo_count * prior_CE.softmax(dim=1)
        prior_CE = prior_CE + (found_CE / held_CE).log()
    return prior_CE.log_softmax(dim=1)


def best_expert(log_likelihood_CEB: Tensor, weight_CB: Tensor) -> Tensor:
    """The expert with the least total loss on each client, (C,); the first of equals.

    IFCA's choice (arXiv 2006.04088, algorithm 1, line 7).
    """
    return torch.einsum("ceb,cb->ce", log_likelihood_CEB, weight_CB).max(dim=1).indices
