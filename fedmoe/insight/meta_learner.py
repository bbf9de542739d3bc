"""The MetaLearner: observes insights, and turns them into guidance by a list of policies."""

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from fedmoe.data.federation import Ints
from fedmoe.insight.columns import RoundInsights
from fedmoe.insight.guidance import Guidance
from fedmoe.insight.insight import Insight
from fedmoe.insight.memory import Memory
from fedmoe.insight.policies import POLICIES, Policy, Setting
from fedmoe.insight.screening import strange_numbers
from fedmoe.schema import MetaLearnerConfig, PriorPolicyConfig, PrototypesPolicyConfig

DEFAULT = MetaLearnerConfig(
    prior=PriorPolicyConfig(), prototypes=PrototypesPolicyConfig(strength=2.0, of="cluster")
)
_SUMMARISED = (
    "final_loss", "loss_improvement", "mean_grad", "validation_loss", "uncertainty",
    "calibration_error", "volatility",
)  # fmt: skip


class MetaLearner:
    """Learns from a memory of insights by the policies that the configuration lists.

    Attributes:
        config: which policies, and how strong they are.
        memory: what has been observed.
        policies: those that are on.
        history: one summary a round, oldest first; of as many as the memory keeps.
    """

    def __init__(self, config: MetaLearnerConfig = DEFAULT, memory: Memory | None = None) -> None:
        """Begin with what is known.

        Args:
            config: by default that of `strategy=insight`.
            memory: by default an empty one, as `insight=default` has it.
        """
        self.config = config
        self.memory = Memory() if memory is None else memory
        self.policies: list[Policy] = [
            kind(options)
            for name, kind in POLICIES.items()
            if (options := getattr(config, name)) is not None
        ]
        self.history: list[dict[str, Any]] = []
        self._setting = Setting()
        self._merged: dict[tuple[int, ...], tuple[Guidance, list[Guidance]]] = {}

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the payloads that the policies read."""
        return tuple(dict.fromkeys(name for policy in self.policies for name in policy.reads))

    def prepare(self, setting: Setting) -> None:
        """Say what experiment the policies are for, before the first round."""
        self._setting = setting
        for policy in self.policies:
            policy.setting = setting

    def select(self, round: int, clients: Ints, count: int) -> Ints | None:
        """Who is to train in a round: the first policy that says, see `Policy.select`."""
        for policy in self.policies:
            places = policy.select(self.memory, round, clients, count)
            if places is not None:
                return places
        return None

    def clusters(self, clients: Ints) -> Ints | None:
        """Which clients' data follow one rule: of the first policy that says, see `Policy`."""
        for policy in self.policies:
            found = policy.clusters(clients)
            if found is not None:
                return found
        return None

    def observe(
        self,
        round: int,
        insights: RoundInsights | Iterable[Insight],
        client_of: Mapping[int, int | None] | None = None,
        strange: Mapping[int, str] | None = None,
    ) -> dict[str, Any]:
        """Remember a round's insights and learn from all that are remembered.

        Args:
            round: of the federation.
            insights: that came.
            client_of: see `Policy.answered`; by default everybody who told was known.
            strange: what was found strange before in what clients told, by client.

        Returns:
            The round's summary, see `aggregate`; what the policies decided; `suspects`, whose
            insights are not believed or hold strange numbers, and why; and what is remembered.
        """
        told = insights if isinstance(insights, RoundInsights) else RoundInsights.of(insights)
        if client_of is None:
            client_of = {client: client for client in told.numbers["client_id"].tolist()}
        self.memory.add(told)
        self._merged = {}
        with _one_thread():
            for policy in self.policies:
                policy.answered(client_of)
                policy.learn(self.memory, round)
        suspects = strange_numbers(told.numbers, self._setting.batch_size)
        for found in ((strange or {}), *(policy.suspects for policy in self.policies)):
            for client, reason in found.items():
                if reason not in (reasons := suspects.setdefault(client, [])):
                    reasons.append(reason)
        decisions = {policy.name: dict(policy.decisions) for policy in self.policies}
        memory = {
            "insights": len(self.memory), "bytes": self.memory.nbytes,
            "dropped": dict(self.memory.dropped),
        }  # fmt: skip
        summary = {
            "round": round, **aggregate(told), "decisions": decisions,
            "suspects": [{"client": k, "reasons": suspects[k]} for k in sorted(suspects)],
            "memory": memory,
        }  # fmt: skip
        self.history = [*self.history, summary][-self.memory.max_rounds :]
        return summary

    def guidance(self, client_id: int) -> Guidance:
        """What this client is to be told; the same object for clients that are told the same."""
        advice = [policy.advise(client_id) for policy in self.policies]
        key = tuple(id(one) for one in advice)
        if key not in self._merged:
            # The pieces are kept too: an object that is gone may give its id to another.
            self._merged[key] = _joined(advice), advice
        return self._merged[key][0]

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and plain values that `restore` takes: the memory, and what was learned."""
        arrays, values = self.memory.state()
        arrays = {f"memory/{name}": array for name, array in arrays.items()}
        learned: dict[str, Any] = {}
        for policy in self.policies:
            own, learned[policy.name] = policy.state()
            arrays |= {f"{policy.name}/{name}": array for name, array in own.items()}
        # One text: a checkpoint's JSON is indented, which takes long for thousands of client ids.
        summaries = json.dumps(self.history)
        return arrays, {"memory": values, "policies": learned, "summaries": summaries}

    def restore(self, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]) -> None:
        """Go back to a saved state."""
        self.memory.restore(_below("memory", arrays), values["memory"])
        self.history, self._merged = json.loads(values["summaries"]), {}
        for policy in self.policies:
            own = _below(policy.name, arrays)
            with _one_thread():  # as in `observe`, or sums may be rounded in another way
                policy.restore(self.memory, own, values["policies"][policy.name])


def _one_thread() -> AbstractContextManager[object]:
    """Linear algebra on one thread: policies' many small matrices are slower on several.

    Threads that wait for each other lose most where other processes want the cores.
    """
    return _libraries().limit(limits=1, user_api="blas")  # type: ignore[no-any-return]


@functools.cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


def _below(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    start = f"{prefix}/"
    return {n.removeprefix(start): array for n, array in arrays.items() if n.startswith(start)}


def _joined(advice: Sequence[Guidance]) -> Guidance:
    parts = {name: array for one in advice for name, array in one.parts.items()}
    numbers = {name: x for one in advice for name, x in one.numbers.items()}
    if "learning_rate" in numbers:
        numbers["learning_rate"] = math.prod(a.numbers.get("learning_rate", 1.0) for a in advice)
    return Guidance(parts, numbers)


def aggregate(insights: RoundInsights) -> dict[str, Any]:
    """Means and deviations over a round's insights, and who is more or less certain than most.

    Returns:
        `mean` and `std` by field; `precision_weighted`, see there; `high_uncertainty` and
        `low_uncertainty`, lists of client ids above and not above the mean uncertainty;
        `insights`, how many.
    """
    if not len(insights):
        return {"insights": 0}
    numbers = insights.numbers
    clients, uncertainty_C = numbers["client_id"], numbers["uncertainty"]
    high_C = uncertainty_C > uncertainty_C.mean()
    return {
        "insights": len(insights),
        "mean": {name: float(numbers[name].mean()) for name in _SUMMARISED},
        "std": {name: float(numbers[name].std()) for name in _SUMMARISED},
        "precision_weighted": precision_weighted(numbers),
        "high_uncertainty": clients[high_C].tolist(),
        "low_uncertainty": clients[~high_C].tolist(),
    }


def precision_weighted(numbers: Mapping[str, NDArray[Any]]) -> dict[str, float | None]:
    """The clients' validation losses, each weighed by what is known of it: n_c / u_c^2.

    A mean over n samples of deviation u has precision n / u^2, and the combination of independent
    estimates with the least variance weighs each by its precision. For regression u is
    the root mean squared error; for classes, whose u is an entropy, the rule is a heuristic. An
    uncertainty below a tenth of the median counts as that, lest one client that is sure of
    itself, or says so, is all that is heard.

    Args:
        numbers: of a round's insights, (C,) by name.

    Returns:
        `validation_loss`; `None` if nobody has held anything out.
    """
    count_C, own_C = numbers["validation_examples"], numbers["uncertainty"]
    least = 0.1 * float(np.median(own_C)) or 1.0
    weight_C = count_C / np.maximum(own_C, least) ** 2
    if not weight_C.any():
        return {"validation_loss": None}
    return {"validation_loss": float(weight_C @ numbers["validation_loss"] / weight_C.sum())}
