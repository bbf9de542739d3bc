# Averaging expert by expert against a loop over clients and experts.

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmoe.strategies.experts import merge_experts


def merged_by_loop(
    previous: dict[str, Tensor], arrays: dict[str, Tensor], index_CM: Tensor, examples_CM: Tensor
) -> dict[str, Tensor]:
    """Move each expert by the weighted mean of the changes of those who used it."""
    result = {name: value.clone() for name, value in previous.items()}
    for name, value in previous.items():
        for expert in range(len(value)):
            change, total = torch.zeros_like(value[expert]), 0.0
            for client, held in enumerate(index_CM.tolist()):
                for place, which in enumerate(held):
                    count = examples_CM[client, place].item()
                    if which == expert and count > 0:
                        change += count * (arrays[name][client, place] - value[expert])
                        total += count
            if total:
                result[name][expert] += change / total
    return result


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    clients=st.integers(1, 4),
    experts=st.integers(1, 4),
    held=st.integers(1, 4),
)
def test_each_expert_is_the_mean_of_those_who_used_it(
    seed: int, clients: int, experts: int, held: int
) -> None:
    held = min(held, experts)
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    previous = {"experts.weight": normal(experts, 2, 3), "router.bias": normal(experts)}
    arrays = {name: normal(clients, held, *value.shape[1:]) for name, value in previous.items()}
    rows = [torch.randperm(experts, generator=draw)[:held].sort().values for _ in range(clients)]
    index_CM = torch.stack(rows)
    examples_CM = torch.randint(0, 3, (clients, held), generator=draw) * 1.5  # many are 0
    found = merge_experts(previous, arrays, index_CM, examples_CM.double())
    expected = merged_by_loop(previous, arrays, index_CM, examples_CM)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9)


def test_an_expert_that_nobody_used_stays_bit_for_bit() -> None:
    previous = {"experts.bias": torch.tensor([[0.1], [0.2]])}
    arrays = {"experts.bias": torch.tensor([[[1.0], [torch.inf]], [[3.0], [torch.nan]]])}
    index = torch.tensor([[0, 1], [0, 1]])
    found = merge_experts(previous, arrays, index, torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    assert found["experts.bias"].tolist() == [[2.5], [previous["experts.bias"][1].item()]]


def test_what_a_client_did_not_use_may_be_anything() -> None:
    previous = {"experts.bias": torch.tensor([[0.5]])}
    arrays = {"experts.bias": torch.tensor([[[torch.inf]], [[3.0]], [[torch.nan]]])}
    found = merge_experts(
        previous, arrays, torch.zeros(3, 1).long(), torch.tensor([[0.0], [2.0], [0.0]])
    )
    assert found["experts.bias"].tolist() == [[3.0]]


def test_an_expert_that_one_client_used_is_replaced() -> None:
    previous = {"experts.bias": torch.zeros(2, 1)}
    arrays = {"experts.bias": torch.tensor([[[5.0]], [[7.0]]])}
    index = torch.tensor([[1], [0]])
    found = merge_experts(previous, arrays, index, torch.tensor([[0.25], [9.0]]))
    assert found["experts.bias"].tolist() == [[7.0], [5.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_average_keeps_the_dtype(dtype: torch.dtype) -> None:
    previous = {"experts.bias": torch.zeros(1, 1, dtype=dtype)}
    arrays = {"experts.bias": torch.ones(2, 1, 1, dtype=dtype)}
    found = merge_experts(previous, arrays, torch.zeros(2, 1).long(), torch.ones(2, 1))
    assert found["experts.bias"].dtype == dtype
