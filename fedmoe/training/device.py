"""Where to compute."""

from typing import Literal

import torch

from fedmoe.errors import ConfigError


def resolve_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that `training.device` means on this machine.

    Raises:
        ConfigError: CUDA is asked for, and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError(
            "training.device=cuda: torch sees no CUDA device here; use training.device=cpu or auto"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")
