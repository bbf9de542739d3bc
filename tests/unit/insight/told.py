"""Insights with fields of one's choice."""

from collections.abc import Mapping, Sequence

from fedmoe.insight import Insight, Memory

_USUAL = {
    "num_examples": 10, "epochs_trained": 1, "steps": 4, "guidance_parts": 0, "final_loss": 0.5,
    "loss_improvement": 0.1, "mean_grad": 1.0, "std_grad": 0.2, "distance": 0.3,
    "validation_examples": 3, "validation_loss": 0.6, "uncertainty": 0.3, "calibration_error": 0.1,
    "volatility": 0.2,
}  # fmt: skip


def told(client_id: int, round: int, **fields: float) -> Insight:
    """One client's insight without a payload."""
    return Insight(client_id=client_id, round=round, **{**_USUAL, **fields})  # type: ignore[arg-type]


def add_round(memory: Memory, round: int, columns: Mapping[str, Sequence[float]]) -> None:
    """A round of insights from columns; clients are 0, 1, ... unless `client_id` says."""
    count = len(next(iter(columns.values())))
    clients = columns.get("client_id", range(count))
    rest = {name: column for name, column in columns.items() if name != "client_id"}
    memory.add(
        told(int(client), round, **{name: column[place] for name, column in rest.items()})
        for place, client in enumerate(clients)
    )
