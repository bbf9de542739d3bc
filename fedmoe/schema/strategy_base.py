"""What all strategies' sections have in common."""

from pydantic.dataclasses import dataclass

from fedmoe.schema.types import STRICT, Share


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StrategyBase:
    """What every strategy has.

    Attributes:
        fraction_train: share of the clients asked to train in a round, in (0, 1].
    """

    fraction_train: Share
