"""The end of a run: statistics over clients, what it ran on, and the last thing a user sees.

Letters: K clients.
"""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

import fedmoe
from fedmoe.tracking.records import (
    MODELS,
    format_bytes,
    format_number,
    format_seconds,
    measure_of,
    stats_of,
)

if TYPE_CHECKING:
    from rich.table import Table

_PACKAGES = {"torch": "torch", "flwr": "flwr", "numpy": "numpy", "hydra": "hydra-core"}
_GIT_TIMEOUT_SECONDS = 2.0


def statistics(
    values: ArrayLike, weights: ArrayLike, worst: Literal["lowest", "highest"] = "lowest"
) -> dict[str, float]:
    """Sum up one measure over the clients.

    Clients without samples (weight 0) are left out, whatever their value. A client that has
    samples and a value of NaN has diverged: that is not hidden, and everything becomes NaN.

    Args:
        values: (K,) each client's measure on its own samples.
        weights: (K,) how many samples that was.
        worst: which end is bad: `lowest` for accuracy, `highest` for mse and loss.

    Returns:
        `mean`: weighted by samples, that is, the score on the pooled samples, as papers give.
        `worst_decile`: mean over the ceil(k / 10) worst of the k clients that have samples,
        each counting the same.
        `std`: weighted standard deviation over clients.
        All NaN if no client has samples.

    Raises:
        ValueError: if the shapes differ, or a weight is negative or not finite.
    """
    values_K, weights_K = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    if values_K.ndim != 1 or values_K.shape != weights_K.shape:
        raise ValueError(
            f"values and weights must be two lists of one length, got shapes {values_K.shape} "
            f"and {weights_K.shape}"
        )
    if not np.all((weights_K >= 0) & np.isfinite(weights_K)):
        raise ValueError("weights must be finite and at least 0")
    present_K = weights_K > 0
    values_K, weights_K = values_K[present_K], weights_K[present_K]
    if values_K.size == 0 or np.isnan(values_K).any():
        return {"mean": float("nan"), "worst_decile": float("nan"), "std": float("nan")}
    return {
        "mean": float(np.average(values_K, weights=weights_K)),
        "worst_decile": _worst_decile(values_K, worst),
        "std": _deviation(values_K, weights_K),
    }


def versions() -> dict[str, str]:
    """The versions of Python, fedmoe and what its results depend on, by name."""
    found = {"python": platform.python_version(), "fedmoe": fedmoe.__version__}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_commit() -> str | None:
    """The commit that the running fedmoe was checked out from; `None` if it was not.

    `-dirty` is added if the package differs from that commit or has files that it lacks.
    """
    package = Path(fedmoe.__file__).resolve().parent
    # An installed package may lie inside somebody else's work tree, which says nothing.
    if not (package.parent / ".git").exists():
        return None
    commit = _git(package, "rev-parse", "--verify", "HEAD")
    changes = _git(package, "status", "--porcelain", "--", ".")
    if not commit or changes is None:
        return None
    return f"{commit}-dirty" if changes else commit


def print_summary(summary: Mapping[str, Any], run_dir: Path, file: IO[str] | None = None) -> None:
    """Print the results of a run and where they are.

    Args:
        summary: what is in `summary.json`.
        run_dir: shown relative to the working directory if it lies below it.
        file: defaults to standard output.
    """
    from rich.console import Console
    from rich.text import Text

    # In a notebook, rich would make a block of HTML of every line.
    console = Console(file=file, highlight=False, force_jupyter=False)
    title = Text(
        f"{summary['name']}: {summary['status']} after {_rounds(summary.get('rounds', 0))}"
    )
    title.stylize("bold")
    console.print(title)
    if measure_of(summary.get("final")):
        console.print(_scores(summary))
    else:
        console.print("no round was evaluated")
    for name, words, style in _facts(summary):
        console.print(Text(f"{name:<9}").append(words, style), soft_wrap=True)
    console.print(Text("results  ").append(short_path(run_dir), "bold"), soft_wrap=True)


def short_path(path: Path) -> str:
    """The path relative to the working directory where it lies below it."""
    whole = path.resolve()
    here = Path.cwd()
    return str(whole.relative_to(here)) if whole.is_relative_to(here) else str(whole)


def _worst_decile(values_K: NDArray[np.float64], worst: Literal["lowest", "highest"]) -> float:
    count = -(-values_K.size // 10)
    ordered_K = np.sort(values_K)
    return float(np.mean(ordered_K[:count] if worst == "lowest" else ordered_K[-count:]))


def _deviation(values_K: NDArray[np.float64], weights_K: NDArray[np.float64]) -> float:
    # A loss that overflowed to infinity has no deviation; NaN says so without a warning.
    with np.errstate(invalid="ignore"):
        squares_K = (values_K - np.average(values_K, weights=weights_K)) ** 2
        return float(np.sqrt(np.average(squares_K, weights=weights_K)))


def _git(folder: Path, *words: str) -> str | None:
    """A git command's output, or `None` if it fails or takes long."""
    # Within a git hook these variables point to another repository; and never take a lock.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            check=True,
            env=environment,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_GIT_TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _scores(summary: Mapping[str, Any]) -> "Table":
    from rich import box
    from rich.table import Table

    final, best = summary["final"], summary.get("best")
    measure = measure_of(final)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("test " + str(measure))
    table.add_column("model")
    for heading in ("mean", "worst decile", "std"):
        table.add_column(heading, justify="right")
    labelled = [("final round", final)]
    if best and best.get("round") is not None:
        labelled.append((f"best (round {best['round']})", best))
    for label, parts in labelled:
        for model in MODELS:
            if measure and (stats := stats_of(parts, model, measure)):
                numbers = [format_number(stats[key]) for key in ("mean", "worst_decile", "std")]
                table.add_row(label, model, *numbers)
                label = ""
    return table


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, words and style of each line below the table; a failed run may lack some."""
    facts = []
    if reason := summary.get("reason"):
        facts.append(("reason", str(reason), "red"))
    if missing := summary.get("missing"):
        words = f"{missing} of the clients are not in these scores: their evaluation failed"
        facts.append(("missing", words, "red"))
    if data := summary.get("data"):
        made_up = str(data["origin"]).startswith("synthetic")
        count = data["samples"]
        samples = "samples made on demand" if count is None else f"{count:,} samples"
        size = f"{data['clients']:,} clients, {samples}"
        style = "yellow" if made_up else ""
        facts.append(("data", f"{data['name']} ({data['origin']}), {size}", style))
    if routing := summary.get("routing"):
        facts.append(("router", _router(routing), ""))
    if traffic := summary.get("bytes"):
        up, down = format_bytes(traffic["up"]), format_bytes(traffic["down"])
        facts.append(("traffic", f"up {up}, down {down}", ""))
    if insights := summary.get("insights"):
        facts.append(("insights", f"{insights:,}, one line each in insights.jsonl", ""))
    if (seconds := summary.get("seconds")) is not None:
        facts.append(("time", format_seconds(seconds), ""))
    if profile := summary.get("profile"):
        facts.append(("profile", _shares(profile), ""))
    return facts


def _router(routing: Mapping[str, Any]) -> str:
    """What the router did in the last evaluated round."""
    if not routing["importance"]:
        return "no expert answered"
    experts = len(routing["importance"])
    entropy, necessity = (
        format_number(routing[key]) for key in ("importance_entropy", "necessity")
    )
    alive = experts - routing["dead_experts"]
    return (
        f"{alive} of {experts} experts alive, entropy of their shares {entropy}, "
        f"necessity {necessity}"
    )


def _shares(profile: Mapping[str, float]) -> str:
    """Where the time went, in percent; what is below one half is left out."""
    total = sum(profile.values()) or 1.0
    shares = {name: round(100 * seconds / total) for name, seconds in profile.items()}
    return ", ".join(f"{name} {share} %" for name, share in shares.items() if share)


def _rounds(count: int) -> str:
    return f"{count} round" if count == 1 else f"{count} rounds"
