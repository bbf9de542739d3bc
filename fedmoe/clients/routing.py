"""What clients tell of their router, and what of it they remember.

A client keeps which expert weighed most for each of its first test samples, and tells how many
have another one now: the samples' experts themselves do not leave it.

Letters: C clients, E experts, M experts that a client's model has, W samples of each client that
are remembered.
"""

from typing import TYPE_CHECKING

from fedmoe.messages import words
from fedmoe.messages.arrays import Records, Stack
from fedmoe.models import Parameters
from fedmoe.training.watch import RouterWatch

if TYPE_CHECKING:
    from fedmoe.clients.job import Job

_MAIN = "main"


def routing_watch(job: "Job", params: Parameters | None) -> RouterWatch | None:
    """What is to watch the router of some models; `None` where there is none.

    Args:
        job: the clients.
        params: their models, which may have some of the experts only.
    """
    plan = job.experiment.router
    if plan is None or params is None:
        return None
    unknown = {_MAIN: plan.unknown_1W}
    earlier = job.states.read(words.ROUTING, job.clients, unknown) or unknown
    earlier_CW = earlier[_MAIN].to(job.experiment.device).expand(len(job.clients), -1)
    index_CM = job.experiment.algorithm.held_experts(job, params)
    return RouterWatch(plan, job.clients, earlier_CW, index_CM)


def routing_records(job: "Job", watch: RouterWatch | None) -> Records:
    """The clients' sums as a record; what they remember goes to their states."""
    if watch is None:
        return {}
    job.states.write(words.ROUTING, job.clients, {_MAIN: watch.main_KW})
    return {words.ROUTING: Stack({words.SUMS: watch.sums_KJ})}
