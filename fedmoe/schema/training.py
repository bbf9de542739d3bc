"""How a client trains."""

from typing import Literal

from pydantic.dataclasses import dataclass

from fedmoe.schema.types import STRICT, Count, Fraction, NonNegative, Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingConfig:
    """Local training.

    Attributes:
        optimizer: `sgd` or `adam`.
        learning_rate: step size.
        momentum: of SGD, in [0, 1).
        weight_decay: L2 penalty, added to the gradient as in `torch.optim`, but for what is no
            weight (`StackedModule.undecayed`).
        epochs: passes over a client's training part per round.
        batch_size: samples per step.
        reset_optimizer: start each round with fresh momentum (or Adam moments), as in the papers.
        cohort_size: most clients trained as one stacked batch. On a CPU fewer are, so that their
            parameters stay in the cache; lower it where a model's activations take much memory.
        num_threads: torch's intra-op threads; 1 is fastest for small models.
        device: where to train: `cpu`, `cuda`, or `auto` for CUDA where there is some.
    """

    optimizer: Literal["sgd", "adam"]
    learning_rate: Positive
    momentum: Fraction
    weight_decay: NonNegative
    epochs: Count
    batch_size: Count
    reset_optimizer: bool
    cohort_size: Count
    num_threads: Count
    device: Literal["auto", "cpu", "cuda"]
