"""FedEx: clients try configurations of local training, and those that do well become likelier.

Khodak et al., "Federated hyperparameter tuning: challenges, baselines, and connections to weight-
sharing", NeurIPS 2021, arXiv 2106.04502, algorithm 2. Of c configurations each client draws one
by the probabilities theta, trains with it, and tells the loss s_k of what came out on its v_k
validation samples. Then, by exponentiated gradient,

    theta_j <- theta_j exp(-eta g_j) / Z,    g_j = sum_{k drew j} w_k (s_k - b) / theta_j,

w_k = v_k / sum v, b a baseline, and eta = sqrt(2 ln c) over what `schedule` says. What is tuned
is how well clients do with the model as *they* trained it, with its probabilities at the server.

Deviations. b is a discounted mean of the rounds' mean losses as in the authors' code, but the
round's own is the first of them: losses fall from round to round, and in a mean that lags behind
all that was drawn looks good. A client that was asked and told nothing counts as the round's
largest loss, with the mean weight: its training may have diverged, as too large steps do. Losses
and numbers of validation samples are cut at ten times their median, so that no liar decides alone.
One theta over all configurations, as the authors' code has for lists.

A draw depends on the experiment's seed, the last round that was learned from, and the client.

Letters: C clients of a round, J configurations.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe.data.drawing import hash_keys
from fedmoe.insight.columns import Columns
from fedmoe.insight.guidance import Guidance
from fedmoe.insight.memory import Memory
from fedmoe.insight.policies.base import Policy, State
from fedmoe.insight.policies.robust import winsorised
from fedmoe.schema import HyperparametersPolicyConfig

Doubles = NDArray[np.float64]
_WORD = 0x6665646578  # sets these draws apart from others by seed, round and client
_BLOCK = 256  # clients to draw for at once: one by one takes fifty times as long
_ROUNDING = 1e-12
_LIKELY = 0.01  # less is not worth a line in the records


class Hyperparameters(Policy):
    """Probabilities over configurations, and a draw for each client and round."""

    name = "hyperparameters"

    def __init__(self, config: HyperparametersPolicyConfig) -> None:
        super().__init__()
        self.config = config
        self.choices = [
            Guidance({}, {"learning_rate": rate, **({} if epochs is None else {"epochs": epochs})})
            for rate, epochs in product(config.learning_rates, config.epochs or (None,))
        ]
        self._log_theta_J = np.full(len(self.choices), -np.log(len(self.choices)))
        self._round = 0
        self._squares, self._rounds = 0.0, 0  # what `adaptive` and `root` go by
        self._past = np.zeros(2)  # discounted sum of mean losses, and of their weights
        self._client_of: Mapping[int, int | None] = {}
        # By seed and block of client ids, until the next step.
        self._drawn: dict[tuple[int, int], list[int]] = {}

    @property
    def theta_J(self) -> Doubles:
        """The configurations' probabilities."""
        share_J = np.exp(self._log_theta_J)
        theta_J: Doubles = share_J / share_J.sum()
        return theta_J

    def draw(self, client_id: int) -> int:
        """Which configuration a client has until the next round is learned from."""
        block, place = divmod(client_id, _BLOCK)
        key = self.setting.seed, block
        if key not in self._drawn:
            ids = np.arange(block * _BLOCK, (block + 1) * _BLOCK)
            share = hash_keys(self.setting.seed, _WORD, self._round, ids) / 2**64
            drawn = np.searchsorted(self.theta_J.cumsum(), share, side="right")
            self._drawn[key] = np.minimum(drawn, len(self.choices) - 1).tolist()
        return self._drawn[key][place]

    @override
    def advise(self, client_id: int) -> Guidance:
        return self.choices[self.draw(client_id)]

    @override
    def answered(self, client_of: Mapping[int, int | None]) -> None:
        self._client_of = client_of

    @override
    def learn(self, memory: Memory, round: int) -> None:
        """Take a step, if anybody told a loss on validation data."""
        told = memory.of_round(round)
        if told is not None and told["validation_examples"].any():
            self._step(*self._losses(told))
        self._round, self._drawn = round, {}

    def _losses(self, told: Columns) -> tuple[NDArray[np.int64], Doubles, Doubles, list[int]]:
        """What was drawn by those asked, their losses and weights; and whose loss was cut."""
        loss_C, cut_C = winsorised(np.maximum(told["validation_loss"], 0.0))
        seen_C, many_C = winsorised(told["validation_examples"].astype(np.float64))
        client_C = told["client_id"].tolist()
        found = dict(zip(client_C, zip(loss_C, seen_C, strict=True), strict=True))
        nobody = loss_C.max(), seen_C.mean()
        rows = [
            (self.draw(name), *(nobody if client is None else found.get(client, nobody)))
            for name, client in self._client_of.items()
        ]
        drawn, losses, weights = (np.array(column) for column in zip(*rows, strict=True))
        return drawn, losses, weights, told["client_id"][cut_C | many_C].tolist()

    def _step(
        self, drawn_C: NDArray[np.int64], loss_C: Doubles, weight_C: Doubles, cut: list[int]
    ) -> None:
        weight_C = weight_C / weight_C.sum()
        self._past = self.config.baseline * self._past + [float(weight_C @ loss_C), 1.0]
        baseline = float(self._past[0] / self._past[1])
        theta_J = self.theta_J
        gradient_J = np.zeros(len(theta_J))
        np.add.at(gradient_J, drawn_C, weight_C * (loss_C - baseline) / theta_J[drawn_C])
        largest = float(np.abs(gradient_J).max())
        # Where all drew the same there is nothing to compare, and rounding is all that is left.
        step = self._step_size(largest) if largest > _ROUNDING * abs(baseline) else 0.0
        self._log_theta_J = np.log(theta_J) - step * gradient_J
        self._log_theta_J -= np.logaddexp.reduce(self._log_theta_J)
        self._decide(baseline, step, cut)

    def _step_size(self, largest: float) -> float:
        self._squares, self._rounds = self._squares + largest**2, self._rounds + 1
        divisor = {
            "aggressive": largest,
            "adaptive": np.sqrt(self._squares),
            "root": np.sqrt(self._rounds),
            "constant": 1.0,
        }[self.config.schedule]
        return float(np.sqrt(2 * np.log(len(self.choices))) / divisor)

    def _decide(self, baseline: float, step: float, cut: list[int]) -> None:
        theta_J = self.theta_J
        best = int(theta_J.argmax())
        self.decisions = {
            "probabilities": [
                {**choice.numbers, "probability": float(theta)}
                for choice, theta in zip(self.choices, theta_J, strict=True)
                if theta >= _LIKELY
            ],
            "entropy": float(-(theta_J * np.log(np.maximum(theta_J, 1e-300))).sum()),
            "baseline": baseline,
            "step": step,
            "cut": cut,
            "reason": (
                f"{self.choices[best].numbers} is likeliest, at {theta_J[best]:.2f}, by validation "
                f"losses against {baseline:.3g}"
            ),
        }

    @override
    def state(self) -> State:
        return (
            {"log_theta": self._log_theta_J, "past": self._past},
            {"round": self._round, "squares": self._squares, "rounds": self._rounds},
        )

    @override
    def restore(
        self, memory: Memory, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
    ) -> None:
        self._log_theta_J, self._past = arrays["log_theta"].copy(), arrays["past"].copy()
        self._round, self._drawn = values["round"], {}
        self._squares, self._rounds = values["squares"], values["rounds"]
