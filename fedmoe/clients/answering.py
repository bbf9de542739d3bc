"""Answers many messages at once: a simulated cohort and a deployed client take this one path.

Messages of one kind whose requests have the same shape are trained or evaluated as a cohort. If
that fails, each half is tried, and so on, so that only the client at fault gets an error reply.

Letters: C messages, n of them in a group.
"""

import logging
from collections.abc import Sequence

import numpy as np
from flwr.app import ArrayRecord, Context, Error, Message, MessageType

from fedmoe.clients.experiment import Experiment, load_experiment
from fedmoe.clients.local import evaluate_clients, train_clients
from fedmoe.clients.reading import Asked, read_asked
from fedmoe.clients.requests import EvaluateRequest, TrainRequest
from fedmoe.clients.states import ContextStates, States
from fedmoe.data.federation import Ints
from fedmoe.messages import words
from fedmoe.messages.arrays import Records, Stack, gather, shared
from fedmoe.messages.broadcast import Distinct, distinct_contents
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.messages.riding import evaluation_in, joined
from fedmoe.models import Parameters

_LOG = logging.getLogger("fedmoe.clients.answering")


def answer(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
    """Answer each message with its client's Flower context; the contexts' state may change.

    Returns:
        One reply per message, in order; an error reply where a client failed.
    """
    replies: dict[int, Message] = {}
    groups: dict[str, list[int]] = {}
    for place, context in enumerate(contexts):
        groups.setdefault(str(context.run_config["config"]), []).append(place)
    for config_json, places in groups.items():
        clients = [int(contexts[p].node_config[words.PARTITION_ID]) for p in places]
        states = {c: contexts[p].state for c, p in zip(clients, places, strict=True)}
        own = [messages[p] for p in places]
        try:
            experiment = load_experiment(config_json)
        except Exception as error:
            replies |= {p: Message(_failure(error), reply_to=messages[p]) for p in places}
            continue
        answered = answer_cohort(experiment, own, np.array(clients), ContextStates(states))
        replies |= dict(zip(places, answered, strict=True))
    return [replies[place] for place in range(len(messages))]


def answer_cohort(
    experiment: Experiment, messages: Sequence[Message], clients: Ints, states: States
) -> Replies:
    """Answer messages to clients of one experiment, in as few cohorts as can be.

    Args:
        experiment: what the clients have in common.
        messages: C of them, one for each client.
        clients: (C,) whom they are sent to.
        states: the clients' private arrays.

    Returns:
        One reply per message, in order; an error reply where a client failed. One to a train
        message that asks for an evaluation too answers both, see `messages.riding`.
    """
    sent = distinct_contents(messages)
    along = [
        (evaluation, MessageType.EVALUATE, places)
        for content, kind, places in sent
        if kind == MessageType.TRAIN and (evaluation := evaluation_in(content)) is not None
    ]
    # Evaluations come first: training changes the private state that they are about.
    evaluating, answering = (_Answering(experiment, clients, states) for _ in range(2))
    evaluating.answer_all(along)
    answering.answer_all(sent)
    replies = answering.replies_to(messages)
    if not along:
        return replies
    evaluated = evaluating.replies_to(messages)
    riding = {place for _, _, places in along for place in places.tolist()}
    plain = {
        place: joined(reply, evaluated[place]) if place in riding else reply
        for place, reply in enumerate(replies)
    }
    return Replies(messages, [], plain)


class _Answering:
    """Collects the answers of one call."""

    def __init__(self, experiment: Experiment, clients: Ints, states: States) -> None:
        self.experiment, self.clients, self.states = experiment, clients, states
        self.parts: list[Part] = []
        self.errors: dict[int, Error] = {}

    def answer_all(self, sent: Sequence[Distinct]) -> None:
        """All that is asked, in as few cohorts as can be."""
        reads = (*self.experiment.algorithm.reads, words.LOAD)
        groups: dict[tuple[object, ...], list[Asked]] = {}
        for content, kind, places in sent:
            try:
                asked = read_asked(content, kind, places, reads)
            except Exception as error:
                self.fail(places, error)
            else:
                groups.setdefault(asked.shape(), []).append(asked)
        for group in groups.values():
            self.answer(group)

    def replies_to(self, messages: Sequence[Message]) -> Replies:
        """The answers, where there are any."""
        plain = {p: Message(error, reply_to=messages[p]) for p, error in self.errors.items()}
        return Replies(messages, self.parts, plain)

    def answer(self, group: Sequence[Asked]) -> None:
        """All as one cohort, or else in parts without whoever is at fault."""
        places = np.concatenate([asked.places for asked in group])
        source = np.repeat(np.arange(len(group)), [len(asked.places) for asked in group])
        if group[0].kind == MessageType.TRAIN:
            order = self.experiment.training_order(self.clients[places])
            places, source = places[order], source[order]
        self._answer(group, places, source)

    def _answer(self, group: Sequence[Asked], places: Ints, source: Ints) -> None:
        """Those at the places (n,), who were asked `group[source]`, or else each half of them."""
        try:
            self.parts.append(Part(places, self._as_cohort(group, source, self.clients[places])))
        except Exception as error:
            if len(places) == 1:
                self.fail(places, error)
                return
            _LOG.debug("cohort of %d failed (%s); each half is tried", len(places), error)
            for half in np.array_split(np.arange(len(places)), 2):
                asked, own = np.unique(source[half], return_inverse=True)
                self._answer([group[n] for n in asked.tolist()], places[half], own)

    def _as_cohort(self, group: Sequence[Asked], source: Ints, clients: Ints) -> Records:
        """Answer the clients (n,); what each was asked is `group[source]`, the same in shape."""
        first = group[0]
        sent = [asked.arrays for asked in group if asked.arrays is not None]
        params = _gathered(sent, source) if sent else None
        extras = {
            key: _gathered([asked.extras[key] for asked in group], source) for key in first.extras
        }
        experts = extras.pop(words.EXPERTS, {}).get("index")
        if first.kind == MessageType.EVALUATE:
            scored = EvaluateRequest(
                clients=clients, settings=first.settings, params=params, experts=experts
            )
            return evaluate_clients(self.experiment, scored, self.states)
        return train_clients(
            self.experiment,
            TrainRequest(
                clients=clients,
                settings=first.settings,
                params=params,
                experts=experts,
                guidance=[asked.guidance for asked in group],
                guidance_of=source,
                extras=extras,
            ),
            self.states,
        )

    def fail(self, places: Ints, error: Exception) -> None:
        """Note what went wrong for the clients at some places."""
        self.errors |= dict.fromkeys(places.tolist(), _failure(error))


def _gathered(records: Sequence[ArrayRecord], source: Ints) -> Parameters:
    """What was sent: one row if it is the same for all, else `records[source]`."""
    if shared(records):
        return gather(records[:1])
    return Stack(gather(records)).take(source).tensors


def _failure(error: Exception) -> Error:
    _LOG.debug("client failed", exc_info=error)
    return Error(words.CLIENT_FAILED, f"{type(error).__name__}: {error}")
