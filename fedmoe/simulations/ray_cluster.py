"""Ray itself: started or joined, and how many workers it has room for."""

import os
import socket
from typing import Any

from fedmoe.errors import ConfigError
from fedmoe.schema import RayConfig

_PATIENCE = 10.0  # seconds for a cluster's head to take a connection


def connect(config: RayConfig) -> tuple[Any, bool]:
    """The `ray` module, connected; and whether Ray was started here.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing that we start phones home
    # Ray warns of a change to come; `Worker` itself sees to it that no GPU means none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError("runtime=ray needs Ray: pip install 'fedmoe[ray]'") from error
    if ray.is_initialized():
        return ray, False
    quiet: dict[str, Any] = {
        "include_dashboard": False, "log_to_driver": False, "configure_logging": False,
    }  # fmt: skip
    try:
        _check_reachable(config.address)
        if config.address == "local":
            ray.init(address="local", **quiet)
        else:
            ray.init(address=config.address, log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = f"no such cluster ({first_line(error)})"
        raise ConfigError(f"runtime.address={config.address}: {reason}") from error
    return ray, True


def number_of_workers(ray: Any, config: RayConfig) -> int:
    """As many workers as are wanted, or as the cluster has room for.

    Raises:
        ConfigError: there is no room for them.
    """
    has = ray.cluster_resources()
    room = has.get("CPU", 0) / config.cpus_per_worker
    if config.gpus_per_worker:
        room = min(room, has.get("GPU", 0) / config.gpus_per_worker)
    if room < max(1, config.workers or 1):
        raise ConfigError(
            f"runtime.workers={config.workers or 1} with {config.cpus_per_worker:g} CPUs and "
            f"{config.gpus_per_worker:g} GPUs each: the cluster has {has.get('CPU', 0):g} CPUs "
            f"and {has.get('GPU', 0):g} GPUs"
        )
    return config.workers or int(room)


def _check_reachable(address: str) -> None:
    """See that somebody listens at HOST:PORT; Ray would try for many minutes.

    Raises:
        OSError: nobody does.
        ValueError: it is no address.
    """
    host, colon, port = address.rpartition(":")
    if address in ("auto", "local") or "://" in address:
        return
    if not (host and colon and port.isdigit()):
        raise ValueError("must be local, auto or HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


def first_line(error: Exception) -> str:
    """Of what an error says."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
