"""Experts that part slowly: their bodies are pulled together, ever less.

What clients of unlike rules have in common is mostly how to read an input (a representation that
all train, as in FedRep, arXiv 2102.07078), and experts that part at once each learn that from
their own clients alone. So after the warm-up they differ in their heads first, and in their
bodies by and by; soft sharing of the layers between tasks (Duong et al., ACL 2015), with a
strength that fades.

Letters: E experts.
"""

from collections.abc import Collection, Mapping

from torch import Tensor

from fedmoe.models import Parameters


def share_of_mean(rounds: int, half_life: float) -> float:
    """How far bodies are pulled to their mean, 1 (all the way) to 0: 2^(-rounds / half_life).

    Args:
        rounds: since the experts were made.
        half_life: in rounds, above 0.
    """
    return float(2 ** (-rounds / half_life))


def pull_together(params: Mapping[str, Tensor], names: Collection[str], share: float) -> Parameters:
    """w_e + share (mean_f w_f - w_e) for some parameters; the others as they are.

    Args:
        params: of a mixture, (E, ...) by name.
        names: of the parameters that are pulled, such as those of the experts' bodies.
        share: 0 to 1.
    """
    return {
        name: value.lerp(value.mean(dim=0, keepdim=True), share) if name in names else value
        for name, value in params.items()
    }
