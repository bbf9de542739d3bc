"""The state of any strategy survives a checkpoint's arrays and JSON."""

import json
from typing import Any

import numpy as np
import torch
from flwr.serverapp.strategy import FedAvg

from fedmoe.strategies.state import restore_strategy, strategy_state


class Stateful(FedAvg):
    def __init__(self) -> None:
        super().__init__()
        self.moments: dict[str, Any] | None = None
        self.velocity: dict[str, torch.Tensor] = {}
        self.mean = np.zeros(2)
        self.last = torch.zeros(2)
        self.steps, self.rate, self.name = 0, 0.5, "x"


def test_numbers_arrays_and_tensors_are_kept() -> None:
    strategy = Stateful()
    strategy.moments = {"layer/weight": np.arange(3.0), "b": np.ones((1, 2), np.float32)}
    strategy.velocity = {"w": torch.arange(4.0)}
    strategy.mean, strategy.last, strategy.steps = np.array([1.0, 2.0]), torch.ones(2), 7
    arrays, values = strategy_state(strategy)
    other = Stateful()
    restore_strategy(other, arrays, json.loads(json.dumps(values)))
    assert other.moments is not None and other.moments.keys() == strategy.moments.keys()
    assert all(np.array_equal(other.moments[k], v) for k, v in strategy.moments.items())
    assert torch.equal(other.velocity["w"], strategy.velocity["w"])
    assert np.array_equal(other.mean, strategy.mean)
    assert isinstance(other.last, torch.Tensor) and torch.equal(other.last, strategy.last)
    assert (other.steps, other.rate) == (7, 0.5)


def test_what_was_not_there_yet_is_not_there_afterwards() -> None:
    arrays, values = strategy_state(Stateful())
    other = Stateful()
    restore_strategy(other, arrays, values)
    assert other.moments is None and other.velocity == {}


def test_nested_state_is_kept_and_what_cannot_be_is_said(caplog: Any) -> None:
    strategy = Stateful()
    strategy.opt = {"v": {"w": torch.ones(2)}, 3: [1.5, (np.zeros(1), None)]}  # type: ignore[attr-defined]
    strategy.odd = {"x": object()}  # type: ignore[attr-defined]
    strategy.state = {"mine": np.arange(2)}  # type: ignore[attr-defined]
    arrays, values = strategy_state(strategy)
    other: Any = Stateful()
    restore_strategy(other, arrays, json.loads(json.dumps(values)))
    assert torch.equal(other.opt["v"]["w"], torch.ones(2))
    assert other.opt[3][0] == 1.5 and other.opt[3][1][1] is None
    assert isinstance(other.opt[3][1], tuple)
    assert other.state["mine"].tolist() == [0, 1]
    assert caplog.messages == ["a checkpoint cannot hold the strategy's odd: odd/x is a object"]
