"""Sums of representations, against a loop over each client's samples."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedmoe.data import Task
from fedmoe.models import Linear, MixtureOfExperts, Mlp, ModelOutput, build_mixture
from fedmoe.models.routers import SoftmaxRouter
from fedmoe.schema import MlpConfig
from fedmoe.training.chunks import sample_chunks
from fedmoe.training.pool import Pool
from fedmoe.training.representations import representation_sums

D, OUT = 3, 4
COUNTS = np.array([4, 9, 1, 5, 8])  # the order by number is not its own inverse


class Dropping(nn.Module):
    """A module of a user's own, with features of its own and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(D, 5), nn.Linear(5, OUT)

    def forward(self, x: Tensor) -> ModelOutput:
        features = nn.functional.dropout(self.inner(x).tanh(), 0.5, self.training)
        return ModelOutput(self.outer(features), features)


def model_of(name: str) -> nn.Module:
    if name == "moe":
        task = Task(kind="classification", num_features=D, num_outputs=OUT)
        made = build_mixture(
            MlpConfig(name="mlp", hidden=(5,)), task, 0,
            router=SoftmaxRouter(num_experts=3, top_k=2), combine="outputs",
        )  # fmt: skip
        assert isinstance(made, MixtureOfExperts)
        return made
    return {"linear": Linear(D, OUT), "mlp": Mlp(D, (6, 5), OUT), "custom": Dropping()}[name]


@pytest.mark.parametrize("cohort_size", [1, 2, 100])
@pytest.mark.parametrize("name", ["linear", "mlp", "moe", "custom"])
def test_sums_and_numbers_of_each_class(name: str, cohort_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    pool = Pool(
        torch.randn(30, D, generator=generator), torch.randint(OUT, (30,), generator=generator)
    )
    pool.x_ND[0] = torch.nan  # nobody's sample, which pads everybody's
    rows_Cn = np.random.default_rng(1).integers(1, 30, size=(len(COUNTS), 9))
    rows_Cn[np.arange(9) >= COUNTS[:, None]] = 0
    model = model_of(name)
    params = {
        n: torch.randn(len(COUNTS), *p.shape, generator=generator)
        for n, p in model.named_parameters()
    }
    sums, counts = representation_sums(
        model.train(), pool, params, rows_Cn, COUNTS, num_classes=OUT, cohort_size=cohort_size
    )
    for client, count in enumerate(COUNTS.tolist()):
        own = {n: p[client] for n, p in params.items()}
        for label in range(OUT):
            rows = [row for row in rows_Cn[client, :count].tolist() if pool.y_N[row] == label]
            assert counts[client, label] == len(rows)
            expected = torch.zeros(sums.shape[2])
            for row in rows:
                expected += functional_call(
                    model.eval(), own, (pool.x_ND[row : row + 1],)
                ).features[0]
            torch.testing.assert_close(sums[client, label], expected, atol=1e-5, rtol=1e-5)


def test_chunks_of_samples_go_by_their_number_and_end_where_nobody_has_any() -> None:
    pool = Pool(torch.zeros(30, D), torch.zeros(30, dtype=torch.int64))
    chunks = list(sample_chunks({}, pool, np.array([0, 3, 7, 0, 3]), 2))
    assert [(chosen.tolist(), longest) for chosen, longest in chunks] == [([2, 1], 7), ([4, 0], 3)]
    assert not list(sample_chunks({}, pool, np.array([0, 0]), 2))
