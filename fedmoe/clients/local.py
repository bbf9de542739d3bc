"""Local training and evaluation of a cohort: requests in, columns out.

Letters: C clients of the cohort.
"""

from fedmoe.clients.experiment import Experiment
from fedmoe.clients.insights import as_numbers, make_insights
from fedmoe.clients.job import Job
from fedmoe.clients.load import exchange_load, exchanges_load, with_told_bias
from fedmoe.clients.requests import MODEL, EvaluateRequest, TrainRequest
from fedmoe.clients.routing import routing_records, routing_watch
from fedmoe.clients.states import States
from fedmoe.data.federation import Part
from fedmoe.messages import words
from fedmoe.messages.arrays import Numbers, Records
from fedmoe.models import Parameters
from fedmoe.training.watch import RouterWatch

PARTS: tuple[Part, ...] = ("validation", "test")


def train_clients(experiment: Experiment, request: TrainRequest, states: States) -> Records:
    """Train a cohort; parameters that were not sent are the clients' own, which `states` keeps.

    Returns:
        The replies' records, C clients each: `metrics`, `arrays` with the parameters that were
        sent, `insight` and `payload` if an insight was asked for, and what the algorithm adds.

    Raises:
        ValueError: a model or guidance does not fit; a client has no training data.
    """
    job = Job(experiment, request, states)
    counts_C = job.samples.count_C
    if (counts_C == 0).any():
        raise ValueError(f"client {request.clients[counts_C == 0][0]} has no training data")
    start = with_told_bias(job, job.start())
    trained = experiment.algorithm.train(job, start)
    if exchanges_load(experiment):
        trained = exchange_load(job, trained)
    records: Records = {
        **experiment.algorithm.told(job, trained),
        words.METRICS: {
            words.NUM_EXAMPLES: counts_C,
            words.LOSS: as_numbers(trained.final_loss_C),
        },
        **make_insights(job, start, trained),
    }
    for key, arrays in job.guidance.new.items():
        job.own.keep(key, arrays)
    job.own.keep(MODEL, experiment.algorithm.kept(job, trained))
    job.own.finish(trained.params)
    return records


def evaluate_clients(experiment: Experiment, request: EvaluateRequest, states: States) -> Records:
    """Score the shared model, and each client's own: those of the two that there are.

    Returns:
        `metrics`: `num-examples` (of the test part), and for both parts `PART-num-examples` and
        `PART-WHICH-loss` (`mse` for regression) and `PART-WHICH-accuracy`, WHICH being `global`
        or `personalised`; `routing` of a model with a router, see `router_sums`.
    """
    job = Job(experiment, request, states)
    shared = experiment.algorithm.shared_model(job)
    personal = experiment.algorithm.personal_model(job, job.start())
    scores: Numbers = {}
    models = {"global": shared, "personalised": personal}
    watch = routing_watch(job, shared if personal is None else personal)
    for part in PARTS:
        for which, params in models.items():
            if params is None:
                continue
            is_watched = part == "test" and (which == "personalised" or personal is None)
            scores |= _scores(job, params, part, which, watch if is_watched else None)
    metrics = {words.NUM_EXAMPLES: scores["test-num-examples"], **scores}
    return {words.METRICS: metrics, **routing_records(job, watch)}


def _scores(
    job: Job, params: Parameters, part: Part, which: str, watch: RouterWatch | None
) -> Numbers:
    found = job.score(params, part, watch)
    loss_name = "mse" if found.accuracy_C is None else "loss"
    scores: Numbers = {
        f"{part}-num-examples": found.count_C,
        f"{part}-{which}-{loss_name}": as_numbers(found.loss_C),
    }
    if found.accuracy_C is not None:
        scores[f"{part}-{which}-accuracy"] = as_numbers(found.accuracy_C)
    return scores
