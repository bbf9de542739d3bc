# Sample losses, and what is added to them: proximal term, rehearsal, prior.
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fedmoe.data import Task
from fedmoe.models import Linear, Mlp, Parameters, stacked_forward
from fedmoe.training.losses import cross_entropy, sample_loss, squared_error
from fedmoe.training.terms import Alignment, Prior, Proximal, Rehearsal, Step, take

C, B, D, OUT, F, M = 4, 5, 3, 2, 6, 3
MODEL = Linear(D, OUT)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stack(seed: int, clients: int = C) -> Parameters:
    return {"weight": draw(clients, OUT, D, seed=seed), "bias": draw(clients, OUT, seed=seed + 1)}


def step_of(params: Parameters) -> Step:
    clients = len(params["bias"])
    forward = stacked_forward(MODEL)
    x_CBD = draw(clients, B, D, seed=9)
    target = torch.zeros(clients, B, dtype=torch.int64)
    return Step(forward, params, forward(params, x_CBD), target, torch.full((clients, B), 1 / B))


@pytest.mark.parametrize("outputs", [1, 4, 15, 16, 40])
@pytest.mark.parametrize("shape", [(), (5,), (2, 5)])
def test_losses_are_torchs_per_sample(shape: tuple[int, ...], outputs: int) -> None:
    y, values = draw(*shape, outputs), draw(*shape, outputs, seed=1)
    classes = torch.randint(outputs, shape, generator=torch.Generator().manual_seed(0))
    if shape:
        flat = zip(y.reshape(-1, outputs), classes.reshape(-1), strict=True)
        expected = torch.stack([functional.cross_entropy(a, b) for a, b in flat]).reshape(shape)
        torch.testing.assert_close(cross_entropy(y, classes), expected)
    pairs = zip(y.reshape(-1, outputs), values.reshape(-1, outputs), strict=True)
    expected = torch.stack([functional.mse_loss(a, b) for a, b in pairs]).reshape(shape)
    torch.testing.assert_close(squared_error(y, values), expected)


def test_predictions_of_another_shape_than_the_targets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 5\).*\(3, 5, 1\)"):
        squared_error(torch.zeros(3, 5), torch.zeros(3, 5, 1))  # would broadcast to (3, 5, 5)


def test_the_task_picks_the_loss() -> None:
    kinds = {"classification": cross_entropy, "regression": squared_error}
    for kind, loss in kinds.items():
        task = Task(kind=kind, num_features=D, num_outputs=OUT)  # type: ignore[arg-type]
        assert sample_loss(task) is loss


@pytest.mark.parametrize("active", [1, 3, C])
def test_proximal_is_half_mu_times_the_squared_distance(active: int) -> None:
    anchor, params = stack(1), {k: v[:active].requires_grad_() for k, v in stack(5).items()}
    value_C = Proximal(anchor, mu=0.3)(step_of(params))
    assert value_C.shape == (active,)
    for c in range(active):
        away = sum((p.detach()[c] - anchor[k][c]).square().sum().item() for k, p in params.items())
        assert value_C[c].item() == pytest.approx(0.15 * away, rel=1e-5)
    grads = torch.autograd.grad(value_C.sum(), list(params.values()))
    for (name, value), grad in zip(params.items(), grads, strict=True):
        torch.testing.assert_close(grad, 0.3 * (value.detach() - anchor[name][:active]))


@pytest.mark.parametrize("active", [1, 3, C])
def test_rehearsal_is_a_loop_over_clients_inputs_and_classes(active: int) -> None:
    inputs, weight = draw(C, M, D, seed=2), draw(C, M, seed=3).abs()
    target = draw(C, M, OUT, seed=4).softmax(dim=-1)
    weight[0, 1] = 0.0
    params = take(stack(5), torch.arange(active))
    value_C = Rehearsal(inputs, target, weight)(step_of(params))
    assert value_C.shape == (active,)
    for c in range(active):
        expected = 0.0
        for m in range(M):
            logits = params["weight"][c] @ inputs[c, m] + params["bias"][c]
            for label in range(OUT):
                loss = functional.cross_entropy(logits, torch.tensor(label))
                expected += float(weight[c, m] * target[c, m, label] * loss)
        assert value_C[c].item() == pytest.approx(expected, rel=1e-5)


def test_rehearsal_without_weight_is_nothing() -> None:
    term = Rehearsal(draw(C, M, D), torch.full((C, M, OUT), 0.5), torch.zeros(C, M))
    assert torch.equal(term(step_of(stack(5))), torch.zeros(C))


def aligned_step(active: int) -> Step:
    """Any classes, batches of which some are padded, and an MLP, which has a representation."""
    model = Mlp(D, (F,), OUT)
    forward = stacked_forward(model)
    params = {
        name: draw(C, *p.shape, seed=seed)[:active]
        for seed, (name, p) in enumerate(model.named_parameters(), start=20)
    }
    output = forward(params, draw(C, B, D, seed=9)[:active])
    target = torch.randint(OUT, (C, B), generator=torch.Generator().manual_seed(4))[:active]
    weight = draw(C, B, seed=7)[:active].clamp_min(0)
    return Step(forward, params, output, target, weight)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("active", [1, 3, C])
def test_alignment_is_a_loop_over_clients_and_samples(active: int, shared: bool) -> None:
    prototypes = draw(1 if shared else C, OUT, F, seed=2).expand(C, OUT, F)
    known = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    step = aligned_step(active)
    value_C = Alignment(prototypes, known, strength=0.6)(step)
    assert value_C.shape == (active,)
    for c in range(active):
        expected = 0.0
        for b in range(B):
            label = int(step.target[c, b])
            gap = [float(step.output.features[c, b, f] - prototypes[c, label, f]) for f in range(F)]
            squared = sum(away**2 for away in gap) / F
            expected += 0.6 * float(step.weight[c, b] * known[c, label]) * squared
        assert value_C[c].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_alignment_follows_its_clients(shared: bool) -> None:
    index = torch.tensor([2, 0])
    prototypes = draw(1 if shared else C, OUT, F, seed=2).expand(C, OUT, F)
    term, step = Alignment(prototypes, draw(C, OUT, seed=3).abs(), 0.6), aligned_step(C)
    output = step.output._replace(features=step.output.features[index])
    chosen = step._replace(
        params=take(step.params, index), output=output, target=step.target[index],
        weight=step.weight[index],
    )  # fmt: skip
    torch.testing.assert_close(term.take(index)(chosen), term(step)[index])


def test_terms_and_priors_follow_their_clients() -> None:
    index = torch.tensor([2, 0])
    params = take(stack(5), index)
    assert torch.equal(params["weight"], stack(5)["weight"][[2, 0]])
    anchor, weight = stack(1), draw(C, M, seed=3).abs()
    rehearsal = Rehearsal(draw(C, M, D, seed=2), draw(C, M, OUT, seed=4), weight)
    for term in (Proximal(anchor, 0.3), rehearsal):
        everyone = term(step_of(stack(5)))
        assert torch.equal(term.take(index)(step_of(params)), everyone[index])
    prior = Prior(anchor, torch.arange(4.0)).take(index)
    assert prior.precision_C.tolist() == [2.0, 0.0]
    assert torch.equal(prior.mean["bias"], anchor["bias"][[2, 0]])


@pytest.mark.parametrize("active", [1, 3, C])
def test_a_prior_takes_the_proximal_step_of_its_penalty(active: int) -> None:
    mean, params, precision_C = stack(1), stack(5), torch.tensor([0.5, 3.0, 40.0, 7.0])
    lr_C = torch.tensor([0.1, 0.2, 0.05, 0.3])
    before = {name: value.clone() for name, value in params.items()}
    Prior(mean, precision_C).pull({k: v[:active] for k, v in params.items()}, lr_C[:active])
    for name, value in params.items():
        for c in range(active):
            # w minimises 1 / (2 lr) ||w - before||^2 + precision / 2 ||w - mean||^2.
            pull = (value[c] - before[name][c]) / lr_C[c]
            zero = pull + precision_C[c] * (value[c] - mean[name][c])
            torch.testing.assert_close(zero, torch.zeros_like(zero), atol=2e-5, rtol=0)
        assert torch.equal(value[active:], before[name][active:])


def test_a_prior_without_precision_changes_nothing_and_a_weak_one_little() -> None:
    mean, params = stack(1), stack(5)
    lr_C = torch.full((C,), 0.1)
    Prior(mean, torch.zeros(C)).pull(params, lr_C)
    for name, value in stack(5).items():
        assert torch.equal(params[name], value)
    Prior(mean, torch.full((C,), 1e-4)).pull(params, lr_C)
    for name, value in stack(5).items():
        moved, gap = params[name] - value, mean[name] - value
        torch.testing.assert_close(moved, 1e-5 * gap, atol=4e-7, rtol=0.02)


@pytest.mark.parametrize("precision", [1e9, 1e30, 3.4e38, float("inf")])
def test_however_strong_a_prior_lands_on_its_mean(precision: float) -> None:
    mean, params = stack(1), stack(5)
    mean["bias"] *= 1e4
    Prior(mean, torch.full((C,), precision)).pull(params, torch.full((C,), 0.5))
    for name, value in params.items():
        torch.testing.assert_close(value, mean[name], rtol=1e-6, atol=1e-6)
