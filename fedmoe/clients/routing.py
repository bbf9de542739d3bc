"""What clients tell of their router, and what of it they remember.

A client keeps which expert weighed most for each of its first test samples, and tells how many
have another one now: the samples' experts themselves do not leave it.

Letters: C clients, W samples of each that are remembered.
"""

from fedmoe.clients.experiment import Experiment
from fedmoe.clients.states import States
from fedmoe.data.federation import Ints
from fedmoe.messages import words
from fedmoe.messages.arrays import Records, Stack
from fedmoe.training.watch import RouterWatch

_MAIN = "main"


def routing_watch(experiment: Experiment, clients: Ints, states: States) -> RouterWatch | None:
    """What is to watch the router of some clients, (C,); `None` where there is none."""
    plan = experiment.router
    if plan is None:
        return None
    unknown = {_MAIN: plan.unknown_1W}
    earlier = states.read(words.ROUTING, clients, unknown) or unknown
    earlier_CW = earlier[_MAIN].to(experiment.device).expand(len(clients), -1)
    return RouterWatch(plan, clients, earlier_CW)


def routing_records(watch: RouterWatch | None, clients: Ints, states: States) -> Records:
    """The clients' sums as a record; what they remember goes to `states`."""
    if watch is None:
        return {}
    states.write(words.ROUTING, clients, {_MAIN: watch.main_KW})
    return {words.ROUTING: Stack({words.SUMS: watch.sums_KJ})}
