"""Each expert on its own samples, against all experts on all samples: when does it pay?

    python benchmarks/sparse.py [--repeats 15] [--threads 1]

One training step of a mixture's written pass and its derivative, added to the parameters: no loss,
no optimiser, no messages. Dense and sparse take turns in random order; the table shows dense by
sparse, lower quartiles of each, so above 1 sparse is quicker. A star marks where the rule of
`fedmoe/models/sparse.py` runs sparse. Experts have one hidden layer and 10 outputs; the gates are
drawn, so the load is uneven as in a first round.
"""

import argparse
import itertools
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a script, from anywhere

from fedmoe.models import MixtureOfExperts, parameters_of, sparse
from fedmoe.models.expert import Expert
from fedmoe.models.routers import ClientRouter, Router, SoftmaxRouter
from fedmoe.training.process import prepare_process

OUTPUTS, WARM_UP = 10, 2
CLIENTS_AND_BATCHES = ((1, 256), (1, 1000), (10, 32), (10, 256), (50, 32))
FEATURES_AND_HIDDEN = ((64, 64), (64, 256), (784, 128), (784, 512))
WAYS = ((4, 1), (4, 2), (16, 1), (16, 2), (16, 4), (4, 0), (16, 0))  # experts, top_k
MOST_NUMBERS = 80_000_000  # of parameters: 320 MB


class Case(NamedTuple):
    """One size of everything; K 0 is one expert for each client."""

    clients: int
    batch: int
    features: int
    hidden: int
    experts: int
    top_k: int


class Result(NamedTuple):
    """Seconds each way, and whether the rule takes the sparse one."""

    dense: float
    sparse: float
    by_rule: bool


def router_of(case: Case) -> Router:
    """Softmax top-k, or one expert for each client."""
    if case.top_k:
        return SoftmaxRouter(num_experts=case.experts, top_k=case.top_k)
    return ClientRouter(num_experts=case.experts)


def measure(case: Case, repeats: int) -> Result:
    """Time both ways in turns."""
    torch.manual_seed(0)
    model = MixtureOfExperts(
        case.features, OUTPUTS, experts=Expert(0, hidden=[case.hidden]).times(case.experts),
        router=router_of(case),
    )  # fmt: skip
    params = {
        name: value.expand(case.clients, *value.shape).contiguous()
        for name, value in parameters_of(model).items()
    }
    x_CBD = torch.randn(case.clients, case.batch, case.features)
    y_grad_COB = 1e-6 * torch.randn(case.clients, OUTPUTS, case.batch)

    def step() -> bool:
        run = model.written_pass(params, x_CBD)
        run.backward(y_grad_COB, None, params, 1.0)
        return isinstance(run.answers, sparse.SparsePass)

    by_rule = step()
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(WARM_UP + repeats):
        for way in random.sample([False, True], 2):
            with (
                mock.patch("fedmoe.models.experts.may_pay", lambda *_, way=way: way),
                mock.patch.object(sparse, "pays", lambda *_: True),
                mock.patch.object(sparse, "_LEAST_SAVED", 0),
            ):
                started = time.perf_counter()
                step()
                if turn >= WARM_UP:
                    times[way].append(time.perf_counter() - started)
    dense, own = (float(np.quantile(times[way], 0.25)) for way in (False, True))
    return Result(dense, own, by_rule)


def main(words: Sequence[str] | None = None) -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description="Time dense and sparse mixtures.")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="the smallest sizes only")
    options = parser.parse_args(words)
    prepare_process(options.threads)
    sizes = list(itertools.product(CLIENTS_AND_BATCHES, FEATURES_AND_HIDDEN))
    titles = ["clients", "batch", "features", "hidden", "dense top 1 of 4, ms"]
    titles += [f"top {k} of {e}" if k else f"client's 1 of {e}" for e, k in WAYS]
    print(f"| {' | '.join(titles)} |\n{'| ---: ' * len(titles)}|")
    for (clients, batch), (features, hidden) in sizes[:1] if options.quick else sizes:
        cells, dense = [], ""
        for experts, top_k in WAYS:
            if clients * experts * features * hidden > MOST_NUMBERS:
                cells.append("")
                continue
            result = measure(
                Case(clients, batch, features, hidden, experts, top_k), options.repeats
            )
            dense = dense or f"{1000 * result.dense:.2f}"
            cells.append(f"{result.dense / result.sparse:.2f}{'*' if result.by_rule else ''}")
        if not any(cells):
            continue
        row = [*map(str, (clients, batch, features, hidden)), dense, *cells]
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
