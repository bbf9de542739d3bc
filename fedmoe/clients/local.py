"""Local training and evaluation for a list of clients of one experiment, as cohorts.

Letters: C clients of the cohort, n most samples of a client, D features, O outputs.
"""

from collections.abc import Sequence

import numpy as np
import torch
from flwr.app import ArrayRecord

from fedmoe.clients.experiment import Experiment
from fedmoe.clients.payloads import make_payloads
from fedmoe.clients.requests import MODEL, OPTIMIZER, EvaluateRequest, TrainRequest, Update
from fedmoe.data.federation import Ints, Part
from fedmoe.insight import Guidance, Insight
from fedmoe.messages.arrays import CohortRecord, Stack, gather, shared, to_record
from fedmoe.models import Parameters
from fedmoe.models.linear import Linear
from fedmoe.training.cohort import Cohort, Trained, train_cohort
from fedmoe.training.evaluation import Evaluation, evaluate_cohort
from fedmoe.training.terms import Prior, Proximal, Rehearsal, Term
from fedmoe.training.trust import prototype_trust


def train_clients(experiment: Experiment, requests: Sequence[TrainRequest]) -> list[Update]:
    """Train clients whose requests have the same shape.

    A request without arrays trains the client's own model, which stays in its state.

    Raises:
        ValueError: a model or guidance does not fit; a client has no training data.
    """
    first = requests[0]
    clients = np.array([request.client for request in requests], dtype=np.int64)
    rows_Cn, count_C = experiment.data.parts["train"].padded(clients)
    if (count_C == 0).any():
        raise ValueError(f"client {clients[count_C == 0][0]} has no training data")
    params = _starting_parameters(experiment, requests)
    config = experiment.config.training
    cohort = Cohort(
        client_C=clients,
        rows_Cn=rows_Cn,
        count_C=count_C,
        params=params,
        seed=experiment.config.seed,
        round=first.round,
        epochs_C=np.full(len(clients), config.epochs, dtype=np.int64),
        lr_C=torch.full((len(clients),), config.learning_rate),
        optimizer_state=_optimizer_state(requests),
        terms=_terms(experiment, requests, params, rows_Cn, count_C),
        prior=_prior(experiment, requests, count_C),
    )
    trained = train_cohort(
        experiment.model, experiment.data.task, experiment.pool, config, cohort,
        experiment.balance_weight,
    )  # fmt: skip
    insights = _insights(experiment, requests, cohort, trained)
    stack = Stack(trained.params)
    _keep(experiment, requests, stack, Stack(trained.optimizer_state))
    return [
        Update(
            arrays=CohortRecord(stack, row),
            num_examples=int(count_C[row]),
            final_loss=loss,
            insight=insights[row],
        )
        for row, loss in enumerate(trained.final_loss_C.tolist())
    ]


def evaluate_clients(
    experiment: Experiment, requests: Sequence[EvaluateRequest]
) -> list[dict[str, int | float]]:
    """Score the global model, where there is one, and the client's own, where there is none.

    Returns:
        For each client: `num-examples` (of the test part), and for both parts
        `PART-num-examples` and `PART-WHICH-loss` (`mse` for regression) and
        `PART-WHICH-accuracy`, WHICH being `global` or `personalised`.
    """
    clients = np.array([request.client for request in requests], dtype=np.int64)
    which = "personalised" if requests[0].arrays is None else "global"
    params = _starting_parameters(experiment, requests, one_row=True)
    results: list[dict[str, int | float]] = [{} for _ in requests]
    parts: tuple[Part, ...] = ("validation", "test")
    for part in parts:
        scores = _evaluate(experiment, params, clients, part)
        loss_name = "mse" if scores.accuracy_C is None else "loss"
        columns = {f"{part}-{which}-{loss_name}": scores.loss_C.tolist()}
        if scores.accuracy_C is not None:
            columns[f"{part}-{which}-accuracy"] = scores.accuracy_C.tolist()
        for row, result in enumerate(results):
            result[f"{part}-num-examples"] = int(scores.count_C[row])
            result.update({name: values[row] for name, values in columns.items()})
    return [{"num-examples": r["test-num-examples"], **r} for r in results]


def _evaluate(experiment: Experiment, params: Parameters, clients: Ints, part: Part) -> Evaluation:
    rows_Cn, count_C = experiment.data.parts[part].padded(clients)
    return evaluate_cohort(
        experiment.model, experiment.data.task, experiment.pool, params, rows_Cn, count_C,
        experiment.config.training.cohort_size,
    )  # fmt: skip


def _starting_parameters(
    experiment: Experiment,
    requests: Sequence[TrainRequest] | Sequence[EvaluateRequest],
    one_row: bool = False,
) -> Parameters:
    """The received models, or each client's own; `one_row` keeps one that all share as one row."""
    if requests[0].arrays is None:
        initial = to_record(experiment.initial)
        records = [_own_model(request, initial) for request in requests]
    else:
        records = [request.arrays for request in requests if request.arrays is not None]
    if one_row and shared(records):
        records = records[:1]
    params = gather(records)
    expected = {name: p.shape for name, p in experiment.initial.items()}
    received = {name: p.shape[1:] for name, p in params.items()}
    if received != expected:
        raise ValueError(f"the received model has shapes {received}, expected {expected}")
    # Flower's FedOpt family sends float64 for a float32 model.
    return {name: p.to(experiment.initial[name].dtype) for name, p in params.items()}


def _own_model(request: TrainRequest | EvaluateRequest, initial: ArrayRecord) -> ArrayRecord:
    return request.state.array_records.get(MODEL, initial)


def _optimizer_state(requests: Sequence[TrainRequest]) -> Parameters | None:
    if OPTIMIZER not in requests[0].state:
        return None
    return gather([request.state.array_records[OPTIMIZER] for request in requests])


def _keep(
    experiment: Experiment, requests: Sequence[TrainRequest], models: Stack, optimizers: Stack
) -> None:
    """Leave in each client's state what is its own."""
    for row, request in enumerate(requests):
        if request.arrays is None:
            request.state[MODEL] = CohortRecord(models, row)
        if not experiment.config.training.reset_optimizer and optimizers.tensors:
            request.state[OPTIMIZER] = CohortRecord(optimizers, row)


def _terms(
    experiment: Experiment,
    requests: Sequence[TrainRequest],
    params: Parameters,
    rows_Cn: Ints,
    count_C: Ints,
) -> list[Term]:
    terms: list[Term] = []
    if requests[0].proximal_mu:
        terms.append(Proximal(params, requests[0].proximal_mu))
    guidance = [request.guidance for request in requests]
    if guidance[0] is not None and guidance[0].prototypes is not None:
        shape = (experiment.data.task.num_outputs, experiment.data.task.num_features)
        prototypes_COD = torch.from_numpy(_stack(guidance, "prototypes", shape))
        weight_CO = torch.from_numpy(_stack(guidance, "prototype_weight", shape[:1]))
        samples = experiment.pool.padded(rows_Cn, count_C)
        trust_C = prototype_trust(*samples, prototypes_COD, weight_CO > 0)
        terms.append(Rehearsal(prototypes_COD, weight_CO * trust_C[:, None]))
    return terms


def _prior(experiment: Experiment, requests: Sequence[TrainRequest], count_C: Ints) -> Prior | None:
    """The prior of a linear regression; other models know no such coefficients."""
    guidance = [request.guidance for request in requests]
    task = experiment.data.task
    if guidance[0] is None or guidance[0].prior_mean is None:
        return None
    if not isinstance(experiment.model, Linear) or task.kind != "regression":
        return None
    shape = (task.num_features + 1, task.num_outputs)
    mean_CPO = torch.from_numpy(_stack(guidance, "prior_mean", shape))
    ratio_C = torch.tensor([g.prior_ratio for g in guidance if g is not None])
    # The loss is the mean over n samples and O outputs, so a sum's weight is divided by both.
    precision_C = 2 * ratio_C / (torch.from_numpy(count_C) * task.num_outputs)
    return Prior({"weight": mean_CPO[:, :-1].mT, "bias": mean_CPO[:, -1]}, precision_C.float())


def _stack(guidance: Sequence[Guidance | None], part: str, shape: tuple[int, ...]) -> np.ndarray:
    values = [np.asarray(getattr(one, part), dtype=np.float32) for one in guidance]
    for value in values:
        if value.shape != shape:
            raise ValueError(f"guidance {part} has shape {value.shape}, expected {shape}")
    return np.stack(values)


def _insights(
    experiment: Experiment, requests: Sequence[TrainRequest], cohort: Cohort, trained: Trained
) -> list[Insight | None]:
    first = requests[0]
    if first.payloads is None:
        return [None] * len(requests)
    uncertainty_C = _uncertainty(experiment, cohort, trained)
    payloads = make_payloads(experiment, first.payloads, cohort, first.prototype_min_count)
    mean_grad, std_grad = trained.mean_grad_C.tolist(), trained.std_grad_C.tolist()
    before, after = trained.first_loss_C.tolist(), trained.final_loss_C.tolist()
    return [
        Insight(
            client_id=request.client,
            round=request.round,
            num_examples=int(cohort.count_C[row]),
            epochs_trained=int(cohort.epochs_C[row]),
            final_loss=after[row],
            loss_improvement=before[row] - after[row],
            mean_grad=mean_grad[row],
            std_grad=std_grad[row],
            uncertainty=uncertainty_C[row],
            volatility=std_grad[row] / (mean_grad[row] + 1e-8),
            payload=payloads[row],
        )
        for row, request in enumerate(requests)
    ]


def _uncertainty(experiment: Experiment, cohort: Cohort, trained: Trained) -> list[float]:
    """Predictive uncertainty on the validation part.

    Of a client that has none it is that on the training part: too low, but not the 0 of
    somebody who knows everything.
    """
    held_out = _evaluate(experiment, trained.params, cohort.client_C, "validation")
    if held_out.count_C.all():
        return held_out.uncertainty_C.tolist()
    seen = _evaluate(experiment, trained.params, cohort.client_C, "train")
    has_some = torch.from_numpy(held_out.count_C > 0)
    return torch.where(has_some, held_out.uncertainty_C, seen.uncertainty_C).tolist()
