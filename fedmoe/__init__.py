"""Federated mixtures of experts and insight exchange on Flower."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedmoe.clients import Client as Client
    from fedmoe.config import load_config as load_config
    from fedmoe.insight import MetaLearner as MetaLearner
    from fedmoe.models import Expert as Expert
    from fedmoe.models import Router as Router
    from fedmoe.serving import Server as Server
    from fedmoe.tracking import insights_frame as insights_frame

__version__ = "0.1.0"
__all__ = [
    "Client",
    "Expert",
    "MetaLearner",
    "Router",
    "Server",
    "__version__",
    "insights_frame",
    "load_config",
]

# Where the names are that are imported when they are asked for: start-up time is measured.
_HOMES = {
    "Client": "fedmoe.clients",
    "Expert": "fedmoe.models",
    "MetaLearner": "fedmoe.insight",
    "Router": "fedmoe.models",
    "Server": "fedmoe.serving",
    "insights_frame": "fedmoe.tracking",
    "load_config": "fedmoe.config",
}


def __getattr__(name: str) -> Any:
    """Import the module of a name, and the name from it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Also what has not been imported yet, for whoever completes a name by tab."""
    return sorted({*globals(), *__all__})
