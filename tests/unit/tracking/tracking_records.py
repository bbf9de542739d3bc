"""Records in the shape that the round loop writes."""

from typing import Any


def parts(measure: str, means: dict[str, float | None]) -> dict[str, Any]:
    """PARTS with a mean per model, a worst decile 0.1 below it, and 0.05 deviation."""
    result: dict[str, Any] = {"global": None, "personalised": None}
    for model, mean in means.items():
        worst = None if mean is None else mean - 0.1
        result[model] = {measure: {"mean": mean, "worst_decile": worst, "std": 0.05}}
    return result


def record(number: int, test: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    """A line of `metrics.jsonl`."""
    return {
        "round": number,
        "train": {"loss": 0.412, "clients": 20, "failures": 0, "void": False} | train,
        "validation": test,
        "test": test,
        "bytes": {"up": 1_230_000, "down": 2_500},
        "seconds": 0.05,
    }


def summary(final: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    """A `summary.json` of a completed run."""
    return {
        "name": "insight",
        "status": "completed",
        "rounds": 20,
        "final": final,
        "best": None if final is None else final | {"round": 17},
        "bytes": {"up": 1_230_000, "down": 2_500},
        "seconds": 3.2,
        "data": {"name": "digits", "origin": "real", "clients": 20, "samples": 1797},
        "versions": {},
        "seed": 0,
        "git_commit": None,
        "objective": 0.9,
    } | changes
