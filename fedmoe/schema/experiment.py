"""The records, when to stop, and the experiment as a whole."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedmoe.schema.data import DataConfig
from fedmoe.schema.insight import InsightConfig, MetaLearnerConfig
from fedmoe.schema.model import ModelConfig
from fedmoe.schema.partition import PartitionConfig
from fedmoe.schema.runtime import RuntimeConfig
from fedmoe.schema.strategy import StrategyConfig
from fedmoe.schema.training import TrainingConfig
from fedmoe.schema.types import STRICT, Count, NonNegative


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrackingConfig:
    """What is written down.

    Attributes:
        progress: `auto` (a bar on a terminal, one line in a notebook, else lines), `bar`,
            `lines`, or `none`.
        log_format: of the log file: `text` or `json`.
        log_level: of console and file.
        plots: draw the PNGs at the end.
        checkpoint_every: rounds between checkpoints; 0 for none but the last.
        profile: write where each round's time went to `profile.jsonl`, and sum it up at the end.
    """

    progress: Literal["auto", "bar", "lines", "none"]
    log_format: Literal["text", "json"]
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"]
    plots: bool
    checkpoint_every: Annotated[int, Field(ge=0)]
    profile: bool


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StoppingConfig:
    """When a run may end before its last round; judged on validation data.

    Attributes:
        patience: evaluations without improvement before the run stops; `None` never stops.
        min_delta: what counts as an improvement.
        target: stop once the validation accuracy (regression: mse) is this good.
    """

    patience: Count | None
    min_delta: NonNegative
    target: Annotated[float, Field(allow_inf_nan=False)] | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExperimentConfig:
    """One experiment, whole.

    Attributes:
        name: goes into the run directory's name.
        seed: of everything random.
        rounds: federation rounds.
        evaluate_every: rounds between evaluations on all clients; the last is always evaluated.
        resume: a run directory to continue.
    """

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    rounds: Count
    evaluate_every: Count
    resume: str | None
    data: DataConfig
    partition: PartitionConfig
    model: ModelConfig
    training: TrainingConfig
    strategy: StrategyConfig
    insight: InsightConfig
    meta_learner: MetaLearnerConfig
    runtime: RuntimeConfig
    tracking: TrackingConfig
    stopping: StoppingConfig

    def __post_init__(self) -> None:
        stops = self.stopping.patience is not None or self.stopping.target is not None
        if stops and self.data.validation_fraction == 0:
            raise ValueError(
                "stopping.patience and stopping.target are judged on validation data, "
                "but data.validation_fraction is 0"
            )
        learner = self.meta_learner
        if learner.hyperparameters is not None and self.data.validation_fraction == 0:
            raise ValueError(
                "meta_learner.hyperparameters is judged on validation data, but "
                "data.validation_fraction is 0"
            )
        if learner.step_size is not None and self.training.optimizer != "sgd":
            raise ValueError(
                "meta_learner.step_size goes by steps along the gradient, but training.optimizer="
                f"{self.training.optimizer} takes others; allowed: sgd"
            )
