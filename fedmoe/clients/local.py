"""Local training and evaluation of a cohort: requests in, columns out.

Letters: C clients of the cohort, n most samples of a client, D features, O outputs.
"""

import numpy as np
import torch

from fedmoe.clients.experiment import Experiment
from fedmoe.clients.payloads import make_payloads
from fedmoe.clients.requests import MODEL, OPTIMIZER, EvaluateRequest, TrainRequest
from fedmoe.clients.routing import routing_records, routing_watch
from fedmoe.clients.states import States
from fedmoe.data.federation import Ints, Part
from fedmoe.messages import words
from fedmoe.messages.arrays import Numbers, Records, Stack
from fedmoe.models import Parameters
from fedmoe.models.linear import Linear
from fedmoe.profiling import section
from fedmoe.training.cohort import Cohort, Trained, train_cohort
from fedmoe.training.evaluation import Evaluation, evaluate_cohort
from fedmoe.training.optimizers import make_optimizer
from fedmoe.training.pool import Samples
from fedmoe.training.terms import Prior, Proximal, Rehearsal, Term
from fedmoe.training.trust import prototype_trust
from fedmoe.training.watch import RouterWatch


def train_clients(experiment: Experiment, request: TrainRequest, states: States) -> Records:
    """Train a cohort; a request without models trains the clients' own, which `states` keeps.

    Returns:
        The replies' records, C clients each: `metrics`, `arrays` if models were sent, `insight`
        and `payload` if an insight was asked for.

    Raises:
        ValueError: a model or guidance does not fit; a client has no training data.
    """
    samples = experiment.samples("train", request.clients)
    if (samples.count_C == 0).any():
        raise ValueError(f"client {request.clients[samples.count_C == 0][0]} has no training data")
    cohort = _cohort(experiment, request, samples, states)
    with section("train"):
        trained = train_cohort(
            experiment.model, experiment.data.task, samples.pool, experiment.config.training,
            cohort, experiment.router_losses,
        )  # fmt: skip
    records: Records = {}
    if request.params is not None:
        records[words.ARRAYS] = Stack(trained.params)
    records[words.METRICS] = {
        words.NUM_EXAMPLES: samples.count_C,
        words.LOSS: _numbers(trained.final_loss_C),
    }
    records |= _insights(experiment, request, samples, cohort, trained)
    _keep(request, trained, states)
    return records


def _keep(request: TrainRequest, trained: Trained, states: States) -> None:
    """Leave with the clients what is their own.

    One whose training has diverged stays as it was: its reply is refused, but it may do better
    in the next round, with its samples in another order or with other guidance.
    """
    if request.params is not None and not trained.optimizer_state:
        return
    models, optimizers = Stack(trained.params), Stack(trained.optimizer_state)
    clients, places = request.clients, np.flatnonzero(models.finite_C)
    if len(places) < len(clients):
        clients, models, optimizers = (
            clients[places], models.take(places), optimizers.take(places)
        )  # fmt: skip
    if request.params is None and len(clients):
        states.write(MODEL, clients, models.tensors)
    if optimizers.tensors and len(clients):
        states.write(OPTIMIZER, clients, optimizers.tensors)


def evaluate_clients(experiment: Experiment, request: EvaluateRequest, states: States) -> Records:
    """Score the global model, where there is one, or the clients' own, where there is none.

    Returns:
        `metrics`: `num-examples` (of the test part), and for both parts `PART-num-examples` and
        `PART-WHICH-loss` (`mse` for regression) and `PART-WHICH-accuracy`, WHICH being `global`
        or `personalised`; `routing` of a model with a router, see `router_sums`.
    """
    which = "personalised" if request.params is None else "global"
    params = _starting_parameters(experiment, request, states)
    scores: Numbers = {}
    parts: tuple[Part, ...] = ("validation", "test")
    watch = routing_watch(experiment, request.clients, states)
    for part in parts:
        watching = watch if part == "test" else None
        found = _evaluate(experiment, params, request.clients, part, watching)
        scores[f"{part}-num-examples"] = found.count_C
        loss_name = "mse" if found.accuracy_C is None else "loss"
        scores[f"{part}-{which}-{loss_name}"] = _numbers(found.loss_C)
        if found.accuracy_C is not None:
            scores[f"{part}-{which}-accuracy"] = _numbers(found.accuracy_C)
    metrics = {words.NUM_EXAMPLES: scores["test-num-examples"], **scores}
    return {words.METRICS: metrics, **routing_records(watch, request.clients, states)}


def _numbers(values_C: torch.Tensor) -> np.ndarray:
    return values_C.cpu().double().numpy()


def _evaluate(
    experiment: Experiment,
    params: Parameters,
    clients: Ints,
    part: Part,
    watch: RouterWatch | None = None,
) -> Evaluation:
    samples = experiment.samples(part, clients)
    with section("evaluate"):
        return evaluate_cohort(
            experiment.model, experiment.data.task, samples.pool, params, samples.rows_Cn,
            samples.count_C, experiment.config.training.cohort_size, watch,
        )  # fmt: skip


def _cohort(
    experiment: Experiment, request: TrainRequest, samples: Samples, states: States
) -> Cohort:
    config, clients = experiment.config.training, request.clients
    params = {
        name: value.expand(len(clients), *value.shape[1:])
        for name, value in _starting_parameters(experiment, request, states).items()
    }
    fresh = make_optimizer(config).initial_state({n: p[:1] for n, p in params.items()})
    return Cohort(
        client_C=clients,
        rows_Cn=samples.rows_Cn,
        count_C=samples.count_C,
        params=params,
        seed=experiment.config.seed,
        round=request.settings.round,
        epochs_C=np.full(len(clients), config.epochs, dtype=np.int64),
        lr_C=torch.full((len(clients),), config.learning_rate, device=experiment.device),
        optimizer_state=_on(experiment, states.read(OPTIMIZER, clients, fresh)),
        terms=_terms(experiment, request, samples, params),
        prior=_prior(experiment, request, samples.count_C),
        wants_gradient_norms=request.settings.payloads is not None,
        wants_optimizer_state=not config.reset_optimizer,
    )


def _on(experiment: Experiment, arrays: Parameters | None) -> Parameters | None:
    """The arrays where clients train."""
    return arrays and {name: value.to(experiment.device) for name, value in arrays.items()}


def _starting_parameters(
    experiment: Experiment, request: TrainRequest | EvaluateRequest, states: States
) -> Parameters:
    """The received models, or the clients' own; one that all share stays a single row."""
    initial = experiment.initial
    params = request.params
    if params is None:
        default = {name: p[None] for name, p in initial.items()}
        params = states.read(MODEL, request.clients, default) or default
    expected = {name: p.shape for name, p in initial.items()}
    received = {name: p.shape[1:] for name, p in params.items()}
    if received != expected:
        raise ValueError(f"the received model has shapes {received}, expected {expected}")
    # Flower's FedOpt family sends float64 for a float32 model.
    return {name: params[name].to(experiment.device, like.dtype) for name, like in initial.items()}


def _terms(
    experiment: Experiment, request: TrainRequest, samples: Samples, params: Parameters
) -> list[Term]:
    terms: list[Term] = []
    if request.settings.proximal_mu:
        terms.append(Proximal(params, request.settings.proximal_mu))
    guidance = request.guidance
    if guidance and guidance[0].prototypes is not None:
        shape = (experiment.data.task.num_outputs, experiment.data.task.num_features)
        prototypes_COD = _stack(experiment, request, "prototypes", shape)
        weight_CO = _stack(experiment, request, "prototype_weight", shape[:1])
        trust_C = prototype_trust(*samples.padded(), prototypes_COD, weight_CO > 0)
        terms.append(Rehearsal(prototypes_COD, weight_CO * trust_C[:, None]))
    return terms


def _prior(experiment: Experiment, request: TrainRequest, count_C: Ints) -> Prior | None:
    """The prior of a linear regression; other models know no such coefficients."""
    guidance, task = request.guidance, experiment.data.task
    if not guidance or guidance[0].prior_mean is None:
        return None
    if not isinstance(experiment.model, Linear) or task.kind != "regression":
        return None
    shape = (task.num_features + 1, task.num_outputs)
    mean_CPO = _stack(experiment, request, "prior_mean", shape)
    ratio_C = np.array([one.prior_ratio for one in guidance])[request.guidance_of]
    # The loss is the mean over n samples and O outputs, so a sum's weight is divided by both.
    precision_C = torch.from_numpy(2 * ratio_C / (count_C * task.num_outputs)).to(mean_CPO)
    return Prior({"weight": mean_CPO[:, :-1].mT, "bias": mean_CPO[:, -1]}, precision_C)


def _stack(
    experiment: Experiment, request: TrainRequest, part: str, shape: tuple[int, ...]
) -> torch.Tensor:
    """One part of each client's guidance, C in front."""
    values = [np.asarray(getattr(one, part), dtype=np.float32) for one in request.guidance]
    for value in values:
        if value.shape != shape:
            raise ValueError(f"guidance {part} has shape {value.shape}, expected {shape}")
    return torch.from_numpy(np.stack(values)[request.guidance_of]).to(experiment.device)


def _insights(
    experiment: Experiment,
    request: TrainRequest,
    samples: Samples,
    cohort: Cohort,
    trained: Trained,
) -> Records:
    """The numbers and the payload of an insight, if one is wanted."""
    settings = request.settings
    if settings.payloads is None:
        return {}
    mean_grad, std_grad = _numbers(trained.mean_grad_C), _numbers(trained.std_grad_C)
    final_loss = _numbers(trained.final_loss_C)
    numbers: Numbers = {
        "client_id": request.clients,
        "round": np.full(len(request.clients), settings.round),
        "num_examples": cohort.count_C,
        "epochs_trained": cohort.epochs_C,
        "final_loss": final_loss,
        "loss_improvement": _numbers(trained.first_loss_C) - final_loss,
        "mean_grad": mean_grad,
        "std_grad": std_grad,
        "uncertainty": _numbers(_uncertainty(experiment, cohort, trained)),
        "volatility": std_grad / (mean_grad + 1e-8),
    }
    payload = make_payloads(experiment, settings.payloads, samples, settings.prototype_min_count)
    records: Records = {words.INSIGHT: words.insight_numbers(numbers)}
    return {**records, words.PAYLOAD: Stack(payload)} if payload else records


def _uncertainty(experiment: Experiment, cohort: Cohort, trained: Trained) -> torch.Tensor:
    """Predictive uncertainty on the validation part.

    Of a client that has none it is that on the training part: too low, but not the 0 of
    somebody who knows everything.
    """
    held_out = _evaluate(experiment, trained.params, cohort.client_C, "validation")
    if held_out.count_C.all():
        return held_out.uncertainty_C
    seen = _evaluate(experiment, trained.params, cohort.client_C, "train")
    has_some = torch.from_numpy(held_out.count_C > 0).to(experiment.device)
    return torch.where(has_some, held_out.uncertainty_C, seen.uncertainty_C)
