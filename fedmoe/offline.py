"""Nothing phones home: what must be in the environment before Flower and Ray are imported."""

import os

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def be_quiet() -> None:
    """Switch their calls off in this process and its children, unless the user asked for them."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
