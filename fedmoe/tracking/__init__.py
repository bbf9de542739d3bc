"""What a run leaves behind and shows: records, logs, progress, checkpoints, plots, summaries.

Importing this costs NumPy and nothing heavier: rich and matplotlib are imported by the
functions that draw with them.
"""

from fedmoe.tracking.checkpoint import (
    Checkpoint,
    drop_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from fedmoe.tracking.insight_frame import insights_frame
from fedmoe.tracking.log import FILE_ONLY, configure_logging
from fedmoe.tracking.plots import plot_learning, plot_partition, plot_routing
from fedmoe.tracking.progress import Progress, open_progress
from fedmoe.tracking.run_directory import RunDirectory, open_run_directory
from fedmoe.tracking.summary import git_commit, print_summary, statistics, versions

__all__ = [
    "FILE_ONLY",
    "Checkpoint",
    "Progress",
    "RunDirectory",
    "configure_logging",
    "drop_checkpoint",
    "git_commit",
    "insights_frame",
    "latest_checkpoint",
    "load_checkpoint",
    "open_progress",
    "open_run_directory",
    "plot_learning",
    "plot_partition",
    "plot_routing",
    "print_summary",
    "save_checkpoint",
    "statistics",
    "versions",
]
