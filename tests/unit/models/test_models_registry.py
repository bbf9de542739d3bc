from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from fedmoe import models
from fedmoe.data import Task
from fedmoe.errors import ConfigError
from fedmoe.models import (
    MixtureOfExperts,
    ModelOutput,
    RouterLosses,
    build_model,
    parameters_of,
    register,
    router_losses_of,
    stacked_forward,
)
from fedmoe.models.routers import (
    ClientRouter,
    EnsembleRouter,
    ExpertChoiceRouter,
    LossFreeRouter,
    NoisyRouter,
    PriorRouter,
    Router,
    RuleRouter,
    SoftmaxRouter,
    SwitchRouter,
)
from fedmoe.models.routing import softmax_top_k
from fedmoe.schema import (
    ClientRouterConfig,
    CustomModelConfig,
    EnsembleRouterConfig,
    ExpertChoiceRouterConfig,
    LinearConfig,
    LossFreeRouterConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
    NoisyRouterConfig,
    PriorRouterConfig,
    RouterConfig,
    RouterLossesConfig,
    RuleRouterConfig,
    SoftmaxRouterConfig,
    SwitchRouterConfig,
)

TASK = Task(kind="classification", num_features=4, num_outputs=3)


def moe_config(num_experts: int, top_k: int, *hidden: int, **changed: Any) -> MoeConfig:
    router = SoftmaxRouterConfig(name="softmax", top_k=top_k)
    config = MoeConfig(
        name="moe", num_experts=num_experts, hidden=hidden, expert=None, expert_options={},
        combine="outputs", router=router,
        losses=RouterLossesConfig(importance=0.0, load=0.0, balance=0.0, z=0.0, scope="local"),
    )  # fmt: skip
    return replace(config, **changed)


BUILT_IN: dict[str, ModelConfig] = {
    "linear": LinearConfig(name="linear"),
    "mlp": MlpConfig(name="mlp", hidden=(5, 6)),
    "moe": moe_config(3, 2, 5),
    "moe-linear": moe_config(3, 1),
}


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.REGISTRY, "factories", {})


def custom(factory: str, **options: Any) -> CustomModelConfig:
    return CustomModelConfig(name="custom", factory=factory, options=options)


class Branching(nn.Module):
    """Looks at its data with `if`, which vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = nn.functional.linear(x, self.scale)
        return y if float(x.sum()) > 0 else -y


def stack_of(model: nn.Module, clients: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(clients, *p.shape, generator=generator)
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("config", BUILT_IN.values(), ids=BUILT_IN)
def test_initial_parameters_come_from_the_seed_alone(config: ModelConfig) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = parameters_of(build_model(config, TASK, seed=7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = parameters_of(build_model(config, TASK, seed=7))
    other = parameters_of(build_model(config, TASK, seed=8))
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, other[name])


def test_initial_parameters_are_drawn_as_nn_linear_draws_them() -> None:
    wide = Task(kind="classification", num_features=400, num_outputs=50)
    fan_in = {
        "weight": 400, "bias": 400, "weights.0": 400, "biases.0": 400, "weights.1": 100,
        "biases.1": 100, "router.weight": 400, "router.bias": 400, "experts.weights.0": 400,
        "experts.biases.0": 400, "experts.weights.1": 25, "experts.biases.1": 25,
    }  # fmt: skip
    configs: list[ModelConfig] = [
        LinearConfig(name="linear"),
        MlpConfig(name="mlp", hidden=(100,)),
        moe_config(40, 1, 25),
    ]
    for config in configs:
        for name, value in parameters_of(build_model(config, wide, seed=0)).items():
            bound = fan_in[name] ** -0.5
            assert value.abs().max() <= bound
            assert value.abs().max() > 0.8 * bound
            assert value.mean().abs() < 0.25 * bound
            assert not value.requires_grad


def test_linear_experts_are_drawn_by_the_width_of_the_input() -> None:
    config = moe_config(9, 1)
    wide = Task(kind="regression", num_features=100, num_outputs=2)
    weight = parameters_of(build_model(config, wide, seed=0))["experts.weight"]
    assert weight.shape == (9, 2, 100)
    assert 0.09 < weight.abs().max() <= 0.1


def test_parameters_of_are_copies() -> None:
    model = build_model(BUILT_IN["linear"], TASK, seed=0)
    copies = parameters_of(model)
    copies["weight"].zero_()
    assert dict(model.named_parameters())["weight"].any()


@pytest.mark.parametrize("config", BUILT_IN.values(), ids=BUILT_IN)
def test_shapes_follow_the_task(config: ModelConfig) -> None:
    output = build_model(config, TASK, seed=0)(torch.randn(6, 4))
    assert output.y.shape == (6, 3)


def test_a_factory_gets_the_task_and_its_options() -> None:
    seen: list[Any] = []

    @register("mine")
    def mine(task: Task, **options: Any) -> nn.Module:
        seen.extend([task, options])
        return nn.Linear(task.num_features, task.num_outputs)

    model = build_model(custom("mine", depth=3), TASK, seed=5)
    assert isinstance(model, nn.Linear)
    assert seen == [TASK, {"depth": 3}]
    again = build_model(custom("mine", depth=3), TASK, seed=5)
    assert torch.equal(parameters_of(model)["weight"], parameters_of(again)["weight"])


def test_an_unknown_factory_is_a_configuration_error_that_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"model\.factory=nowhere: .*none"):
        build_model(custom("nowhere"), TASK, seed=0)
    register("zebra")(lambda task: nn.Linear(1, 1))
    register("ape")(lambda task: nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="registered: ape, zebra"):
        build_model(custom("nowhere"), TASK, seed=0)


@pytest.mark.parametrize("clients", [1, 3])
def test_a_bare_tensor_becomes_an_output_and_its_own_features(clients: int) -> None:
    register("tanh")(lambda task: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    model = build_model(custom("tanh"), TASK, seed=0)
    stack, x_CBD = stack_of(model, clients), torch.randn(clients, 6, 4)
    output = stacked_forward(model)(stack, x_CBD)
    for c in range(clients):
        inner = torch.tanh(x_CBD[c] @ stack["0.weight"][c].T + stack["0.bias"][c])
        expected = inner @ stack["2.weight"][c].T + stack["2.bias"][c]
        torch.testing.assert_close(output.y[c], expected)
    assert torch.equal(output.features, output.y)
    assert output.routing is None
    assert output.answers is None


@pytest.mark.parametrize("clients", [1, 3])
def test_a_model_output_keeps_its_parts(clients: int) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 4))

        def forward(self, x: Tensor) -> ModelOutput:
            y = x @ self.weight.T
            return ModelOutput(y, x, softmax_top_k(y.mT, 2), torch.stack([y.mT, -y.mT]))

    stack, x_CBD = stack_of(Gated(), clients), torch.randn(clients, 6, 4)
    output = stacked_forward(Gated())(stack, x_CBD)
    y_CBO = torch.einsum("cbd,cod->cbo", x_CBD, stack["weight"])
    torch.testing.assert_close(output.y, y_CBO)
    torch.testing.assert_close(output.features, x_CBD)
    assert output.routing is not None
    assert output.answers is not None
    for part, expected in zip(output.routing, softmax_top_k(y_CBO.mT, 2), strict=True):
        torch.testing.assert_close(part, expected)
    torch.testing.assert_close(output.answers, torch.stack([y_CBO.mT, -y_CBO.mT], dim=1))


def test_a_model_that_vmap_refuses_runs_one_client_at_a_time() -> None:
    model = Branching()
    forward, stack = stacked_forward(model), stack_of(model, 2)
    for sign in (1.0, -1.0):
        x_CBD = sign * torch.ones(2, 5, 4)
        one = forward({"scale": stack["scale"][:1]}, x_CBD[:1])
        torch.testing.assert_close(one.y, sign * x_CBD[:1] @ stack["scale"][:1].mT)
        with pytest.raises(RuntimeError, match="vmap"):
            forward(stack, x_CBD)


def test_dropout_differs_between_clients() -> None:
    model = nn.Dropout(0.5)
    x_CBD = torch.ones(2, 100, 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        y = stacked_forward(nn.Sequential(nn.Linear(4, 4), model))(
            {"0.weight": torch.eye(4).expand(2, 4, 4), "0.bias": torch.zeros(2, 4)}, x_CBD
        ).y
    assert not torch.equal(y[0], y[1])


def test_a_model_with_buffers_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with pytest.raises(ConfigError, match=r"Sequential has buffers \(1\.running_mean,.*GroupNorm"):
        parameters_of(model)
    assert set(parameters_of(nn.Sequential(nn.Linear(4, 3), nn.GroupNorm(1, 3)))) == {
        "0.weight", "0.bias", "1.weight", "1.bias",
    }  # fmt: skip


def test_a_model_with_frozen_parameters_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    model[0].bias.requires_grad_(False)
    with pytest.raises(ConfigError, match=r"frozen parameters \(0\.bias\)"):
        parameters_of(model)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda task, width: nn.Linear(4, 3), "model.options={}: .*width"),
        (lambda task: nn.Linear(4, 2), r"gives \(2, 2\) for two samples, expected \(2, 3\)"),
        (lambda task: nn.Linear(5, 3), r"cannot take inputs of shape \(2, 4\)"),
        (lambda task: nn.Flatten(), "no parameters to train"),
    ],
)
def test_a_wrong_custom_model_is_refused_when_it_is_built(factory: Any, message: str) -> None:
    register("wrong")(factory)
    config = CustomModelConfig(name="custom", factory="wrong", options={})
    task = Task(kind="classification", num_features=4, num_outputs=3)
    with pytest.raises(ConfigError, match=message):
        build_model(config, task, seed=0)


# -------------------------------------------------------------------------- mixtures

ROUTERS: dict[str, tuple[RouterConfig, Router]] = {
    "client": (ClientRouterConfig(name="client"), ClientRouter(num_experts=3)),
    "ensemble": (
        EnsembleRouterConfig(name="ensemble", votes=(1.0, 2.0, 3.0)),
        EnsembleRouter(num_experts=3, votes=(1.0, 2.0, 3.0)),
    ),
    "expert_choice": (
        ExpertChoiceRouterConfig(name="expert_choice", capacity_factor=1.5, top_k=2),
        ExpertChoiceRouter(num_experts=3, capacity_factor=1.5, top_k=2),
    ),
    "loss_free": (
        LossFreeRouterConfig(name="loss_free", top_k=2, rate=0.01),
        LossFreeRouter(num_experts=3, top_k=2, rate=0.01),
    ),
    "noisy": (NoisyRouterConfig(name="noisy", top_k=2), NoisyRouter(num_experts=3, top_k=2)),
    "prior": (PriorRouterConfig(name="prior", gate=False), PriorRouter(num_experts=3, gate=False)),
    "rule": (
        RuleRouterConfig(name="rule", rule="norm", thresholds=(1.0, 2.0)),
        RuleRouter(num_experts=3, rule="norm", thresholds=(1.0, 2.0)),
    ),
    "softmax": (
        SoftmaxRouterConfig(name="softmax", top_k=2),
        SoftmaxRouter(num_experts=3, top_k=2),
    ),
    "switch": (
        SwitchRouterConfig(name="switch", capacity_factor=1.5),
        SwitchRouter(num_experts=3, capacity_factor=1.5),
    ),
}


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_is_what_its_configuration_says(name: str) -> None:
    config, expected = ROUTERS[name]
    model = build_model(moe_config(3, 1, 5, router=config), TASK, seed=0)
    assert isinstance(model, MixtureOfExperts)
    assert model.rule == expected
    assert model(torch.randn(6, 4)).y.shape == (6, 3)


def test_every_router_of_the_schema_can_be_built() -> None:
    union = get_args(get_args(RouterConfig)[0])
    assert {type(config) for config, _ in ROUTERS.values()} == set(union)


def test_losses_of_a_router_are_those_of_the_configuration() -> None:
    losses = RouterLossesConfig(importance=0.1, load=0.2, balance=0.3, z=0.4, scope="federation")
    found = router_losses_of(moe_config(3, 1, losses=losses))
    assert found == RouterLosses(importance=0.1, load=0.2, balance=0.3, z=0.4, scope="federation")
    assert not router_losses_of(LinearConfig(name="linear"))


def test_an_expert_can_be_a_module_of_ones_own() -> None:
    seen: list[Any] = []

    @register("mine")
    def mine(task: Task, **options: Any) -> nn.Module:
        seen.append((task, options))
        return nn.Linear(task.num_features, task.num_outputs)

    config = moe_config(3, 1, expert="mine", expert_options={"depth": 3})
    model = build_model(config, TASK, seed=5)
    assert seen == [(TASK, {"depth": 3})] * 3
    params = parameters_of(model)
    assert params["experts.weight"].shape == (3, 3, 4)
    assert not torch.equal(params["experts.weight"][0], params["experts.weight"][1])
    again = parameters_of(build_model(config, TASK, seed=5))
    assert all(torch.equal(value, again[name]) for name, value in params.items())


def test_a_wrong_expert_is_named_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"^model\.expert=nowhere: no such registered model"):
        build_model(moe_config(3, 1, expert="nowhere"), TASK, seed=0)
    register("narrow")(lambda task: nn.Linear(4, 2))
    with pytest.raises(ConfigError, match=r"^model\.expert=narrow: gives \(2, 2\)"):
        build_model(moe_config(3, 1, expert="narrow"), TASK, seed=0)
    register("strict")(lambda task: nn.Linear(4, 3))
    config = moe_config(3, 1, expert="strict", expert_options={"depth": 3})
    with pytest.raises(ConfigError, match=r"^model\.expert_options={'depth': 3}: "):
        build_model(config, TASK, seed=0)


def test_probabilities_are_for_classes() -> None:
    config = moe_config(3, 1, combine="probabilities")
    assert isinstance(build_model(config, TASK, seed=0), MixtureOfExperts)
    regression = Task(kind="regression", num_features=4, num_outputs=3)
    with pytest.raises(ConfigError, match=r"^model\.combine=probabilities: .*regression.*outputs$"):
        build_model(config, regression, seed=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"router": SoftmaxRouterConfig(name="softmax", top_k=4)}, "top_k must be at most .* 3"),
        (
            {"router": RuleRouterConfig(name="rule", rule="mean", thresholds=(1.0,))},
            "mean over 3 experts takes 2 thresholds, got 1",
        ),
        (
            {"router": RuleRouterConfig(name="rule", rule="random", thresholds=(1.0, 2.0))},
            "random over 3 experts takes 0 thresholds, got 2",
        ),
        (
            {"router": EnsembleRouterConfig(name="ensemble", votes=(1.0,))},
            "votes must be none or 3, got 1",
        ),
    ],
)
def test_a_router_that_does_not_fit_the_experts_is_refused(changed: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moe_config(3, 1, **changed)


def test_thresholds_rise() -> None:
    with pytest.raises(ValueError, match="thresholds must rise"):
        RuleRouterConfig(name="rule", rule="mean", thresholds=(1.0, 1.0))
