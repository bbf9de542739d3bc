# A router watched in a cohort against one client at a time.
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedmoe.config import load_config
from fedmoe.data import Federation, Task, load_federation
from fedmoe.data.federation import Ints
from fedmoe.models import Linear, MixtureOfExperts, ModelOutput, Routing, build_model, parameters_of
from fedmoe.models.combining import COMBINE
from fedmoe.models.expert import Expert
from fedmoe.models.router_metrics import TOTALS, RouterKind
from fedmoe.models.router_sums import UNKNOWN, Routed, main_experts, random_order, router_sums
from fedmoe.models.routers import Router, SoftmaxRouter
from fedmoe.models.routing import softmax_top_k
from fedmoe.training.evaluation import evaluate_cohort
from fedmoe.training.pool import Pool
from fedmoe.training.watch import RouterPlan, RouterWatch, plan_watch

Kind = Literal["classification", "regression"]
SEED, D, OUT, E, REMEMBERED = 5, 4, 3, 3, 4


class Owned(nn.Module):
    """A user's mixture of linear experts; says what each of them answers, or does not."""

    def __init__(self, tells: bool = True) -> None:
        super().__init__()
        self.tells, self.gate = tells, nn.Linear(D, E)
        self.weight = nn.Parameter(torch.randn(E, OUT, D))

    def forward(self, x: Tensor) -> ModelOutput:
        routing = softmax_top_k(self.gate(x).mT, 1)
        answers = self.weight @ x.mT.unsqueeze(-3)
        y = COMBINE["outputs"].mix(answers, routing.weight).y.mT
        return ModelOutput(y, x, routing, answers if self.tells else None)


def make_model(name: str, combine: Literal["outputs", "probabilities"] = "outputs") -> nn.Module:
    torch.manual_seed(SEED)
    if name == "owned":
        return Owned()
    if name == "quiet":
        return Owned(tells=False)
    rule = SoftmaxRouter(num_experts=E, top_k=2) if name == "top" else Router(num_experts=E)
    return MixtureOfExperts(
        D, OUT, experts=Expert(0, hidden=[5]).times(E), router=rule, combine=combine
    )


class Case:
    """Clients with the given numbers of samples, and a model for each or one for all."""

    def __init__(
        self, kind: Kind, name: str, counts: list[int], shared: bool, combine: str = "outputs"
    ) -> None:
        rng = np.random.default_rng(SEED)
        size, self.kind = sum(counts) + 1, kind
        self.task = Task(kind=kind, num_features=D, num_outputs=OUT)
        y_N: Ints | np.ndarray[tuple[int, int], np.dtype[np.float32]] = rng.integers(OUT, size=size)
        if kind == "regression":
            y_N = rng.normal(size=(size, OUT)).astype(np.float32)
        x_ND = rng.normal(size=(size, D)).astype(np.float32)
        x_ND[0] = np.nan  # what others are padded with
        self.pool = Pool.of(x_ND, y_N)
        self.count_K, self.client_K = np.array(counts), 10 + np.arange(len(counts))
        self.rows_Kn = np.zeros((len(counts), max(counts)), dtype=np.int64)
        for k, (start, count) in enumerate(zip(np.cumsum([1, *counts]), counts, strict=False)):
            self.rows_Kn[k, :count] = np.arange(start, start + count)
        self.model = make_model(name, combine)  # type: ignore[arg-type]
        models = 1 if shared else len(counts)
        noise = torch.Generator().manual_seed(SEED)
        self.params = {
            n: p + torch.randn(models, *p.shape, generator=noise)
            for n, p in parameters_of(self.model).items()
        }
        has_classes = kind == "classification"
        router = RouterKind(
            num_experts=E,
            num_classes=OUT if has_classes else 1,
            has_classes=has_classes,
            has_answers=name != "quiet",
        )
        self.plan = RouterPlan(router, COMBINE[combine], remembered=REMEMBERED, seed=SEED)

    def watch(self, earlier_KW: Tensor, cohort_size: int = 100) -> RouterWatch:
        watch = RouterWatch(self.plan, self.client_K, earlier_KW)
        evaluate_cohort(
            self.model, self.task, self.pool, self.params, self.rows_Kn, self.count_K,
            cohort_size, watch,
        )  # fmt: skip
        return watch

    def unknown(self) -> Tensor:
        return torch.full((len(self.client_K), REMEMBERED), UNKNOWN, dtype=torch.int16)

    def alone(self, k: int, earlier_W: Tensor) -> tuple[Tensor, Tensor]:
        """One client's sums and main experts, from its model's own forward pass."""
        own = {name: p[k if len(p) > 1 else 0] for name, p in self.params.items()}
        x_BD, target = self.pool.batch(torch.from_numpy(self.rows_Kn[k, : self.count_K[k]]))
        with torch.no_grad():
            output = torch.func.functional_call(self.model.eval(), own, (x_BD,))
        assert output.routing is not None
        if self.kind == "classification":
            error_B = (output.y.argmax(dim=1) != target).float()
        else:
            error_B = (output.y - target).square().mean(dim=1)
        real_1B, batch = torch.ones(1, len(x_BD), dtype=torch.bool), len(x_BD)
        earlier_1B = torch.full((1, batch), UNKNOWN)
        earlier_1B[0, :REMEMBERED] = earlier_W[:batch]
        found = output.routing._asdict().items()
        routing = Routing(**{name: part[None] for name, part in found if part is not None})
        main_1B = main_experts(routing, real_1B)
        routed = Routed(
            routing, None if output.answers is None else output.answers[None], target[None],
            real_1B, error_B[None], main_1B, earlier_1B,
            random_order(SEED, self.client_K[k : k + 1], batch, E),
        )  # fmt: skip
        return router_sums(routed, self.plan.kind, self.plan.combine)[0], main_1B[0]


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(["classification", "regression"]),
    name=st.sampled_from(["top", "dense", "owned", "quiet"]),
    combine=st.sampled_from(["outputs", "probabilities"]),
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(any),
    shared=st.booleans(),
    cohort_size=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_each_client_is_watched_as_if_it_were_alone(
    kind: Kind,
    name: str,
    combine: str,
    counts: list[int],
    shared: bool,
    cohort_size: int,
    seed: int,
) -> None:
    if kind == "regression" or name in ("owned", "quiet"):
        combine = "outputs"
    case = Case(kind, name, counts, shared, combine)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(counts), REMEMBERED)
    earlier_KW = torch.randint(UNKNOWN, E, shape, generator=generator).to(torch.int16)
    watch = case.watch(earlier_KW, cohort_size)
    for k, count in enumerate(counts):
        if not count:
            assert not watch.sums_KJ[k].any()
            continue
        sums_J, main_B = case.alone(k, earlier_KW[k])
        torch.testing.assert_close(watch.sums_KJ[k], sums_J, atol=1e-4, rtol=1e-4)
        kept = min(count, REMEMBERED)
        assert watch.main_KW[k, :kept].tolist() == main_B[:kept].tolist()


def test_churn_is_counted_from_one_evaluation_to_the_next() -> None:
    counts = [6, 3, 0, 4]
    case = Case("classification", "top", counts, shared=False)
    compared, changed = (E + TOTALS.index(name) for name in ("compared", "changed"))
    first = case.watch(case.unknown())
    assert not first.sums_KJ[:, [compared, changed]].any()
    again = case.watch(first.main_KW)
    assert again.sums_KJ[:, compared].tolist() == [min(count, REMEMBERED) for count in counts]
    assert not again.sums_KJ[:, changed].any()
    for name in ("router.weight", "router.bias"):
        case.params[name] = -case.params[name]
    turned = case.watch(again.main_KW)
    kept = [set(range(min(count, REMEMBERED))) for count in counts]
    expected = [
        sum(int(turned.main_KW[k, b] != again.main_KW[k, b]) for b in own)
        for k, own in enumerate(kept)
    ]
    assert turned.sums_KJ[:, changed].tolist() == expected
    assert sum(expected) > 0


def test_a_plan_knows_the_model_and_the_data() -> None:
    data = load_federation_of("data=synthetic_mixture", "data.num_classes=3")
    plan = plan_watch(make_model("top", "probabilities"), data, SEED)
    assert plan is not None
    assert plan.kind == RouterKind(num_experts=E, num_classes=3, has_classes=True, has_answers=True)
    assert plan.combine is COMBINE["probabilities"]
    assert plan.remembered == max(data.parts["test"].counts_K)  # type: ignore[union-attr]
    assert plan.unknown_1W.shape == (1, plan.remembered)
    quiet = plan_watch(make_model("quiet"), data, SEED)
    assert quiet is not None
    assert not quiet.kind.has_answers
    assert plan_watch(Linear(D, 3), data, SEED) is None
    regression = plan_watch(make_model("dense"), load_federation_of("data=synthetic_linear"), SEED)
    assert regression is not None
    assert (regression.kind.num_classes, regression.kind.has_classes) == (1, False)


@pytest.mark.parametrize(("clients", "remembered"), [(10, 256), (100_000, 41), (2**23, 1)])
def test_a_large_federation_remembers_little_of_each_client(clients: int, remembered: int) -> None:
    data = load_federation_of("data=synthetic_classes", f"data.num_clients={clients}")
    plan = plan_watch(make_model("top"), data, SEED)
    assert plan is not None
    assert plan.remembered == remembered


def load_federation_of(*words: str) -> Federation:
    features = [f"data.num_features={D}", "partition=natural"]
    config = load_config([*words, *features])
    return load_federation(config.data, config.partition, SEED)


def test_experts_that_need_not_run_are_compared_all_the_same() -> None:
    """So many samples that experts may run on their own alone: then the others say nothing."""
    words = ["model=moe", "model.num_experts=8", "model.hidden=[64]", "model.router.top_k=1"]
    task = Task(kind="classification", num_features=D, num_outputs=OUT)
    model = build_model(load_config(words).model, task, SEED)
    rng, counts = np.random.default_rng(SEED), np.array([900, 800])
    x_ND = rng.normal(size=(1700, D)).astype(np.float32)
    pool = Pool.of(x_ND, rng.integers(OUT, size=1700))
    rows_Kn = np.minimum(np.arange(900) + np.array([[0], [900]]), 1699)
    kind = RouterKind(num_experts=8, num_classes=OUT, has_classes=True, has_answers=True)
    plan = RouterPlan(kind, COMBINE["outputs"], remembered=1, seed=SEED)
    unknown_KW = torch.full((2, 1), UNKNOWN, dtype=torch.int16)
    watch = RouterWatch(plan, np.arange(2), unknown_KW)
    params = {name: value[None] for name, value in parameters_of(model).items()}
    evaluate_cohort(model, task, pool, params, rows_Kn, counts, 100, watch)
    with torch.no_grad():
        output = model(pool.x_ND)
    assert output.answers is not None
    assert (output.answers != 0).all()
    centred = output.answers - output.answers.mean(dim=1, keepdim=True)
    units = centred / centred.norm(dim=1, keepdim=True)
    square = units.sum(dim=0).square().sum().item()
    wrong = (output.y.argmax(dim=1) != pool.y_N).sum().item()
    totals = dict(zip(TOTALS, watch.sums_KJ[:, 8 : 8 + len(TOTALS)].sum(dim=0), strict=True))
    assert totals["similarity"].item() == pytest.approx(square, rel=1e-4)
    assert totals["errors"].item() == wrong
    random_wrong = 0
    for client, (start, count) in enumerate(((0, 900), (900, 800))):
        order_EB = random_order(SEED, np.array([client]), 900, 8)[0, :, :count]
        own = slice(start, start + count)
        dealt_EB = output.routing.weight[:, own].gather(0, order_EB)
        y_OB = (output.answers[:, :, own] * dealt_EB.unsqueeze(1)).sum(dim=0)
        random_wrong += int((y_OB.argmax(dim=0) != pool.y_N[own]).sum())
    assert totals["random_errors"].item() == random_wrong
