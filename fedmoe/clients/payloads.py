"""The payloads of a cohort's insights.

Letters: C clients of the cohort.
"""

from collections.abc import Sequence

from torch import Tensor

from fedmoe.clients.experiment import Experiment
from fedmoe.insight.payloads import Sources
from fedmoe.training.pool import Samples


def make_payloads(
    experiment: Experiment, names: Sequence[str], samples: Samples
) -> dict[str, Tensor]:
    """Some payloads of each client, (C, ...) by name of the array.

    Raises:
        ValueError: there is no such payload for the task and the model.
    """
    payloads = experiment.payloads.by_name
    if unknown := [name for name in names if name not in payloads]:
        raise ValueError(
            f"payload {unknown[0]!r} is unknown or does not fit; there are {sorted(payloads)}"
        )
    if not names:
        return {}
    sources = Sources(*samples.padded())
    return {n: array for name in names for n, array in payloads[name].make(sources).items()}
