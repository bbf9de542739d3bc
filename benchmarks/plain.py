"""The work that every side does, as plain arrays and plain PyTorch modules.

Peers read this from environments without fedmoe: only NumPy and PyTorch are imported.

Letters: N samples, D features, O outputs, E experts, H hidden width, B batch, K clients.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

MLP_HIDDEN, EXPERTS, TOP_K, EXPERT_HIDDEN = 128, 4, 2, 64
# fedmoe's names of parameters, as a state dict of the modules below has them.
_NAMES = {
    "weights.0": "0.weight", "biases.0": "0.bias", "weights.1": "2.weight", "biases.1": "2.bias",
    "router.weight": "gate_weight",
    "router.bias": "gate_bias",
    "experts.weights.0": "hidden_weight",
    "experts.biases.0": "hidden_bias",
    "experts.weights.1": "expert_weight",
    "experts.biases.1": "expert_bias",
}  # fmt: skip


class Work:
    """One federation, one model and how it is trained, read from a file.

    Attributes:
        x_ND, y_N: float32 samples and int64 classes of everybody's training parts.
        rows: each client's samples.
        test_x_ND, test_y_N: samples that nobody trains on.
        model: `linear`, `mlp` or `moe`.
        sampled: clients per round.
        batch_size: samples per step.
        learning_rate: of plain SGD.
        initial: the weights to start from, by fedmoe's names.
        words: the same experiment as fedmoe's command line says it.
    """

    def __init__(self, path: Path) -> None:
        """Read what `benchmarks.cases` wrote."""
        with np.load(path) as file:
            stored: dict[str, Any] = dict(file)
        self.x_ND, self.y_N = stored["x_ND"], stored["y_N"]
        self.test_x_ND, self.test_y_N = stored["test_x_ND"], stored["test_y_N"]
        order, offsets = stored["order"], stored["offsets"].tolist()
        self.rows = [order[start:stop] for start, stop in pairwise(offsets)]
        self.model = str(stored["model"])
        self.words = [str(word) for word in stored["words"]]
        self.sampled, self.batch_size = int(stored["sampled"]), int(stored["batch_size"])
        self.learning_rate = float(stored["learning_rate"])
        self.initial = {
            name.removeprefix("initial/"): torch.from_numpy(array)
            for name, array in stored.items()
            if name.startswith("initial/")
        }

    def client(self, client: int) -> tuple[Tensor, Tensor]:
        """One client's samples: (n, D) and (n,)."""
        rows = self.rows[client]
        return torch.from_numpy(self.x_ND[rows]), torch.from_numpy(self.y_N[rows])

    def module(self, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
        """The model as a textbook has it, with the initial weights or those given."""
        given = self.initial if weights is None else weights
        features, outputs = self.x_ND.shape[1], int(self.y_N.max()) + 1
        module: nn.Module
        if self.model == "linear":
            module = nn.Linear(features, outputs)
        elif self.model == "mlp":
            module = nn.Sequential(
                nn.Linear(features, MLP_HIDDEN), nn.ReLU(), nn.Linear(MLP_HIDDEN, outputs)
            )
        else:
            module = Mixture(features, outputs)
        module.load_state_dict({_NAMES.get(name, name): one for name, one in given.items()})
        return module

    @torch.no_grad()
    def loss(self, module: nn.Module) -> float:
        """Mean cross-entropy on the test samples, in nats."""
        logits = module(torch.from_numpy(self.test_x_ND))
        return float(functional.cross_entropy(logits, torch.from_numpy(self.test_y_N)))


class Mixture(nn.Module):
    """Four experts D-64-O, mixed by the renormalised two largest probabilities of a gate.

    All experts in a few large products, as fast as a plain module gets; one module per expert
    would take twice as long. Without fedmoe's load-balancing loss.
    """

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.gate_weight = nn.Parameter(torch.empty(EXPERTS, features))
        self.gate_bias = nn.Parameter(torch.empty(EXPERTS))
        self.hidden_weight = nn.Parameter(torch.empty(EXPERTS, EXPERT_HIDDEN, features))
        self.hidden_bias = nn.Parameter(torch.empty(EXPERTS, EXPERT_HIDDEN))
        self.expert_weight = nn.Parameter(torch.empty(EXPERTS, outputs, EXPERT_HIDDEN))
        self.expert_bias = nn.Parameter(torch.empty(EXPERTS, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, O) of samples (B, D)."""
        probs = functional.linear(x, self.gate_weight, self.gate_bias).softmax(dim=1)
        best = probs.topk(TOP_K, dim=1)
        mix = torch.zeros_like(probs).scatter(
            1, best.indices, best.values / best.values.sum(dim=1, keepdim=True)
        )
        hidden = functional.linear(x, self.hidden_weight.flatten(0, 1), self.hidden_bias.flatten())
        weighted = hidden.relu().view(len(x), EXPERTS, EXPERT_HIDDEN) * mix.unsqueeze(2)
        side_by_side = self.expert_weight.movedim(0, 1).flatten(1)
        return functional.linear(weighted.flatten(1), side_by_side) + mix @ self.expert_bias
