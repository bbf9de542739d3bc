"""Steps of plain SGD on stacked models, their gradients written by hand.

Layout: samples lie on the last axis (C, O, B), not the classes: on a CPU softmax over a last axis
shorter than a vector register takes ten times as long, and an expert's block of a stacked product
is contiguous only so.
The learning rate and the samples' weights are multiplied into the gradient of the loss, so the
last products of the backward pass add the update to the weights in place.

Letters: C clients, D features, O outputs, H hidden, E experts, B batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Weights = dict[str, Tensor]

HIDDEN, EXPERTS, TOP_K, EXPERT_HIDDEN, BALANCE = 128, 4, 2, 64, 0.01


def loss_gradient(y_COB: Tensor, y_C1B: Tensor, share_C1B: Tensor, rate: float) -> Tensor:
    """Minus the learning rate times the gradient of the mean cross-entropy; takes `y_COB`."""
    step_C1B = share_C1B * -rate
    gradient = y_COB.softmax(dim=1).mul_(step_C1B)
    return gradient.scatter_add_(1, y_C1B, -step_C1B)


def linear_step(w: Weights, x: Tensor, target: Tensor, share: Tensor, rate: float) -> None:
    """Softmax regression: y = W x + b."""
    y = torch.baddbmm(w["bias"].unsqueeze(2), w["weight"], x.mT)
    dy = loss_gradient(y, target, share, rate)
    w["weight"].baddbmm_(dy, x)
    w["bias"].add_(dy.sum(dim=2))


def mlp_step(w: Weights, x: Tensor, target: Tensor, share: Tensor, rate: float) -> None:
    """Perceptron: y = W2 relu(W1 x + b1) + b2."""
    hidden = torch.baddbmm(w["biases.0"].unsqueeze(2), w["weights.0"], x.mT).relu_()
    y = torch.baddbmm(w["biases.1"].unsqueeze(2), w["weights.1"], hidden)
    dy = loss_gradient(y, target, share, rate)
    dh = behind_relu(torch.bmm(w["weights.1"].mT, dy), hidden)
    w["weights.1"].baddbmm_(dy, hidden.mT)
    w["biases.1"].add_(dy.sum(dim=2))
    w["weights.0"].baddbmm_(dh, x)
    w["biases.0"].add_(dh.sum(dim=2))


def moe_step(w: Weights, x: Tensor, target: Tensor, share: Tensor, rate: float) -> None:
    """Mixture: y = sum_e g_e (W2_e relu(W1_e x + b1_e) + b2_e), g a renormalised softmax top-k."""
    clients, batch, _ = x.shape
    experts, outputs, inner = w["experts.weights.1"].shape[1:]
    probs = torch.baddbmm(w["router.bias"].unsqueeze(2), w["router.weight"], x.mT).softmax(dim=1)
    chosen = torch.zeros_like(probs).scatter_(1, probs.topk(TOP_K, dim=1).indices, 1.0)
    kept = probs * chosen
    mix = kept / kept.sum(dim=1, keepdim=True)
    first = w["experts.weights.0"].flatten(1, 2)
    hidden = torch.baddbmm(w["experts.biases.0"].flatten(1).unsqueeze(2), first, x.mT).relu_()
    hidden = hidden.view(clients * experts, inner, batch)
    second = w["experts.weights.1"].view(clients * experts, outputs, inner)
    bias = w["experts.biases.1"].view(clients * experts, outputs, 1)
    answers = torch.baddbmm(bias, second, hidden).view(clients, experts, outputs, batch)
    y = (answers * mix.unsqueeze(2)).sum(dim=1)
    dy = loss_gradient(y, target, share, rate)
    dmix = (answers * dy.unsqueeze(1)).sum(dim=2)
    danswers = (dy.unsqueeze(1) * mix.unsqueeze(2)).view(clients * experts, outputs, batch)
    dhidden = behind_relu(torch.bmm(second.mT, danswers), hidden)
    second.baddbmm_(danswers, hidden.mT)
    w["experts.biases.1"].add_(danswers.sum(dim=2).view(clients, experts, outputs))
    dhidden = dhidden.view(clients, experts * inner, batch)
    first.baddbmm_(dhidden, x)
    w["experts.biases.0"].view(clients, -1).add_(dhidden.sum(dim=2))
    # Both through the softmax: the mixing weights, and the balance loss E sum_e load_e mean p_e.
    load = (chosen * share).sum(dim=2, keepdim=True) / TOP_K
    dprobs = load * share.mul(-rate * BALANCE * experts)
    dlogits = mix * (dmix - (dmix * mix).sum(dim=1, keepdim=True))
    dlogits += probs * (dprobs - (dprobs * probs).sum(dim=1, keepdim=True))
    w["router.weight"].baddbmm_(dlogits, x)
    w["router.bias"].add_(dlogits.sum(dim=2))


def behind_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """The gradient where ReLU let its input through; masks by booleans cost 20 times as much."""
    masked: Tensor = torch.ops.aten.threshold_backward(gradient, output, 0, grad_input=gradient)
    return masked


Step = Callable[[Weights, Tensor, Tensor, Tensor, float], None]
STEPS: dict[str, Step] = {"linear": linear_step, "mlp": mlp_step, "moe": moe_step}


def initial_weights(model: str, features: int, outputs: int, seed: int) -> Weights:
    """U(-1, 1) / sqrt(fan-in)."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "linear": {"weight": (outputs, features), "bias": (outputs,)},
        "mlp": {
            "weights.0": (HIDDEN, features), "weights.1": (outputs, HIDDEN),
            "biases.0": (HIDDEN,), "biases.1": (outputs,),
        },
        "moe": {
            "router.weight": (EXPERTS, features), "router.bias": (EXPERTS,),
            "experts.weights.0": (EXPERTS, EXPERT_HIDDEN, features),
            "experts.biases.0": (EXPERTS, EXPERT_HIDDEN),
            "experts.weights.1": (EXPERTS, outputs, EXPERT_HIDDEN),
            "experts.biases.1": (EXPERTS, outputs),
        },
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (2 * torch.rand(shape, generator=generator) - 1) / shape[-1] ** 0.5
        for name, shape in shapes[model].items()
    }
