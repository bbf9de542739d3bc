"""Scores of the whole federation from the clients' evaluation replies."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import Message

from fedmoe.messages.replies import Replies
from fedmoe.tracking.summary import statistics

Scores = dict[str, Any]  # {"global": METRICS | None, "personalised": METRICS | None}

_METRICS = ("accuracy", "loss", "mse")
_HIGHER_IS_BETTER = ("accuracy",)


def federation_scores(replies: Sequence[Message], part: str) -> Scores:
    """Mean, worst decile and deviation over all clients that replied.

    Args:
        replies: good evaluation replies.
        part: `validation` or `test`.

    Returns:
        By `global` and `personalised`: each metric's statistics, or `None` where no client
        scored such a model.
    """
    numbers = Replies.of(replies).numbers() if replies else {}
    counts = numbers.get(f"{part}-num-examples", np.zeros(len(replies)))
    scores: Scores = {"global": None, "personalised": None}
    for which in scores:
        metrics = {
            name: statistics(
                numbers[key], counts, worst="lowest" if name in _HIGHER_IS_BETTER else "highest"
            )
            for name in _METRICS
            if (key := f"{part}-{which}-{name}") in numbers
        }
        if metrics and counts.sum() > 0:
            scores[which] = metrics
    return scores


def objective(scores: Scores | None) -> tuple[float, bool] | None:
    """The one number that a run is judged by, and whether higher is better.

    The personalised model's mean accuracy (mse for regression), or the global model's where
    there is no personalised one; `None` if nothing was scored.
    """
    for which in ("personalised", "global"):
        metrics = (scores or {}).get(which)
        if metrics:
            name = "accuracy" if "accuracy" in metrics else "mse"
            return metrics[name]["mean"], name in _HIGHER_IS_BETTER
    return None
