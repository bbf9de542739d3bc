"""Reading the parts of a `metrics.jsonl` record, and saying them in words.

PARTS is `{"global": METRICS | None, "personalised": METRICS | None}`, METRICS maps a measure
to STATS, and STATS is `{"mean", "worst_decile", "std"}` over the clients.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

Model = Literal["global", "personalised"]
Measure = Literal["accuracy", "mse"]
MODELS: tuple[Model, ...] = ("global", "personalised")
MEASURES: tuple[Measure, ...] = ("accuracy", "mse")


def measure_of(parts: Mapping[str, Any] | None) -> Measure | None:
    """The measure of the task: accuracy, or mse for regression; `None` if not evaluated."""
    for model in MODELS:
        for measure in MEASURES:
            if measure in ((parts or {}).get(model) or {}):
                return measure
    return None


def stats_of(
    parts: Mapping[str, Any] | None, model: Model, measure: Measure
) -> Mapping[str, float | None] | None:
    """The statistics of one model on one measure, or `None` where there are none."""
    metrics = (parts or {}).get(model) or {}
    stats: Mapping[str, float | None] | None = metrics.get(measure)
    return stats


def format_number(value: float | None) -> str:
    """Three decimals, or three figures where that would hide or bloat the number."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def format_bytes(count: float) -> str:
    """Bytes in decimal units: `1.2 MB` is 1,200,000 bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        # 999.95 and more would be printed as 1000.0 of this unit.
        if abs(count) < 999.95:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_seconds(seconds: float) -> str:
    """`0.05 s`, `12.3 s`, `4 min 05 s` or `2 h 03 min`."""
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
