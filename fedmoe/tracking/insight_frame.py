"""A run's insights as a table."""

from pathlib import Path
from typing import TYPE_CHECKING

from fedmoe.errors import RunError
from fedmoe.tracking.run_directory import RunDirectory

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

_SIZES = "payload_bytes"


def insights_frame(run_dir: str | Path) -> "pd.DataFrame":
    """One row for each insight of a run, by round and client.

    Args:
        run_dir: its folder, finished or not.

    Returns:
        A pandas frame. Columns are the fields of an insight (`round`, `client_id`, `num_examples`
        and so on), `payload_bytes`, bytes of all payloads that came with it, and one column
        `payload_bytes_NAME` for each payload that anybody told in the run.

    Raises:
        RunError: pandas is not there, there is no such run, or a line cannot be read.
    """
    try:
        import pandas as pd  # late: start-up time
    except ImportError as error:
        raise RunError("insights_frame needs pandas: pip install 'fedmoe[frames]'") from error
    records = RunDirectory.reopen(Path(run_dir)).read_lines("insights.jsonl")
    sizes = [record.pop(_SIZES) for record in records]
    frame = pd.DataFrame.from_records(records)
    if frame.empty:
        return pd.DataFrame(columns=["round", "client_id", _SIZES])
    frame = frame[["round", *frame.columns.drop("round")]]
    frame[_SIZES] = [sum(own.values()) for own in sizes]
    for name in dict.fromkeys(name for own in sizes for name in own):
        frame[f"{_SIZES}_{name}"] = [own.get(name, 0) for own in sizes]
    return frame
