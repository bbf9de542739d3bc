"""Federated mixtures of experts and insight exchange on Flower."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmoe.config import load_config as load_config

__version__ = "0.1.0"
__all__ = ["__version__", "load_config"]


def __getattr__(name: str) -> Any:
    """Import the heavier names when they are asked for: start-up time is measured."""
    if name == "load_config":
        from fedmoe.config import load_config

        return load_config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
