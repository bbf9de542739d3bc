"""What a cohort tells of its training where an insight is asked for.

Letters: C clients of the cohort.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmoe.clients.job import Job
from fedmoe.clients.payloads import make_payloads
from fedmoe.clients.requests import TrainRequest
from fedmoe.messages import words
from fedmoe.messages.arrays import Numbers, Records, Stack
from fedmoe.models import Parameters
from fedmoe.training.batches import steps_per_epoch
from fedmoe.training.cohort import Trained
from fedmoe.training.evaluation import Evaluation


def make_insights(job: Job, start: Parameters, trained: Trained) -> Records:
    """The numbers and the payload of an insight, if one is wanted.

    Args:
        job: the clients.
        start: their models before training, (C, ...) by name, or (1, ...).
        trained: what came out.

    Raises:
        ValueError: a payload is wanted that there is not.
    """
    request = job.request
    wanted = request.settings.payloads
    if not isinstance(request, TrainRequest) or wanted is None:
        return {}
    start = job.experiment.algorithm.trained_from(job, start, trained.params)
    settings, samples, config = request.settings, job.samples, job.experiment.config.training
    mean_grad, std_grad = as_numbers(trained.mean_grad_C), as_numbers(trained.std_grad_C)
    final_loss = as_numbers(trained.final_loss_C)
    held_out = job.score(trained.params, "validation", calibration=True)
    sure = _certainty(job, held_out, trained)
    numbers: Numbers = {
        "client_id": request.clients,
        "round": np.full(len(request.clients), settings.round),
        "num_examples": samples.count_C,
        "epochs_trained": job.epochs_C,
        "steps": job.epochs_C * steps_per_epoch(samples.count_C, config.batch_size),
        "guidance_parts": job.guidance.count_C,
        "final_loss": final_loss,
        "loss_improvement": as_numbers(trained.first_loss_C) - final_loss,
        "mean_grad": mean_grad,
        "std_grad": std_grad,
        "distance": as_numbers(_distance(start, trained.params)),
        "validation_examples": held_out.count_C,
        "validation_loss": as_numbers(held_out.loss_C),
        "uncertainty": as_numbers(sure.uncertainty_C),
        "volatility": std_grad / (mean_grad + 1e-8),
        "calibration_error": as_numbers(sure.calibration_error_C),
    }
    payload = make_payloads(job, wanted, start, trained.params)
    records: Records = {words.INSIGHT: words.insight_numbers(numbers)}
    return {**records, words.PAYLOAD: Stack(payload)} if payload else records


def _certainty(job: Job, held_out: Evaluation, trained: Trained) -> Evaluation:
    """How certain clients are on the validation part.

    Of a client that has none it is that on the training part: too low, but not the 0 of
    somebody who knows everything.
    """
    if held_out.count_C.all():
        return held_out
    seen = job.score(trained.params, "train", calibration=True)
    has_some = torch.from_numpy(held_out.count_C > 0).to(seen.uncertainty_C.device)
    return held_out._replace(
        uncertainty_C=held_out.uncertainty_C.where(has_some, seen.uncertainty_C),
        calibration_error_C=held_out.calibration_error_C.where(has_some, seen.calibration_error_C),
    )


def _distance(start: Parameters, end: Parameters) -> Tensor:
    """(C,) L2 norm of the difference of two models."""
    moved = [(end[name] - start[name].to(end[name])).flatten(1) for name in end if name in start]
    norm_C: Tensor = torch.linalg.vector_norm(torch.cat(moved, dim=1), dim=1)
    return norm_C


def as_numbers(values_C: Tensor) -> NDArray[np.float64]:
    """One number of each client as it is reported."""
    numbers: NDArray[np.float64] = values_C.cpu().double().numpy()
    return numbers
