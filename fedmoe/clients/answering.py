"""Answers many messages at once: a simulated cohort and a deployed client take this one path.

Messages of one kind whose requests have the same shape are trained or evaluated as a cohort. If
that fails, each is tried alone, so that only the client at fault gets an error reply.
"""

import logging
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple, cast

from flwr.app import (
    ArrayRecord,
    Context,
    Error,
    Message,
    MessageType,
    RecordDict,
)

from fedmoe.clients.experiment import Experiment, load_experiment
from fedmoe.clients.local import evaluate_clients, train_clients
from fedmoe.clients.requests import EvaluateRequest, TrainRequest, Update
from fedmoe.messages import words
from fedmoe.messages.seams import unchecked_metrics, unchecked_records

_LOG = logging.getLogger("fedmoe.clients.answering")
_CLIENT_FAILED = 2  # Flower's code for a client app that raised

Request = TrainRequest | EvaluateRequest
Pending = tuple[int, Experiment, Request]


def answer(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
    """Answer each message with its client's context; the contexts' state may change.

    Returns:
        One reply per message, in order; an error reply where a client failed.
    """
    contents: list[RecordDict | Error] = [Error(_CLIENT_FAILED, "not answered")] * len(messages)
    groups: dict[tuple[object, ...], list[Pending]] = {}
    for index, (message, context) in enumerate(zip(messages, contexts, strict=True)):
        try:
            experiment = load_experiment(str(context.run_config["config"]))
            request = _read(message, context)
        except Exception as error:
            contents[index] = _failure(error)
            continue
        shape = request.shape() if isinstance(request, TrainRequest) else (request.arrays is None,)
        key = (type(request), id(experiment), *shape)
        groups.setdefault(key, []).append((index, experiment, request))
    for group in groups.values():
        for (index, _, _), content in zip(group, _answer_group(group), strict=True):
            contents[index] = content
    return [
        Message(content, reply_to=message)
        for content, message in zip(contents, messages, strict=True)
    ]


def _read(message: Message, context: Context) -> Request:
    """Turn a message into a request.

    Raises:
        ValueError: the message is of an unknown kind or malformed.
    """
    content, state = message.content, context.state
    client = int(context.node_config[words.PARTITION_ID])
    arrays = content.get(words.ARRAYS)
    if arrays is not None and not isinstance(arrays, ArrayRecord):
        raise ValueError(f"record {words.ARRAYS!r} must be an ArrayRecord")
    kind = message.metadata.message_type
    if kind == MessageType.EVALUATE:
        return EvaluateRequest(client=client, state=state, arrays=arrays)
    if kind != MessageType.TRAIN:
        raise ValueError(f"no handler for messages of type {kind!r}")
    config = words.get_config(content)
    values = [config.get(key) for key in _SETTINGS]
    if any(type(value) is list for value in values):
        raise ValueError(f"config has a list where one value is needed: {dict(config)}")
    settings = _settings(*cast(list[Hashable], values))
    guidance = words.get_guidance(content)
    return TrainRequest(client, settings.round, state, arrays, guidance, *settings[1:])


class _Settings(NamedTuple):
    """A train message's settings; most messages of a round have the same."""

    round: int
    proximal_mu: float
    payloads: tuple[str, ...] | None
    prototype_min_count: int


_SETTINGS = (
    words.SERVER_ROUND, words.PROXIMAL_MU, words.WANTED_PAYLOADS, words.PROTOTYPE_MIN_COUNT,
)  # fmt: skip


@lru_cache(maxsize=64)
def _settings(round: object, mu: object, wanted: object, min_count: object) -> _Settings:
    return _Settings(
        round=int(_number(words.SERVER_ROUND, round, 0)),
        proximal_mu=_number(words.PROXIMAL_MU, mu, 0.0),
        payloads=None if wanted is None else tuple(filter(None, str(wanted).split(","))),
        prototype_min_count=int(_number(words.PROTOTYPE_MIN_COUNT, min_count, 1)),
    )


def _number(key: str, value: object, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"config {key!r} must be a number, got {value!r}")
    return float(value)


def _answer_group(group: list[Pending]) -> list[RecordDict | Error]:
    """All as one cohort, or else one by one."""
    experiment = group[0][1]
    requests = [request for _, _, request in group]
    try:
        return list(_as_cohort(experiment, requests))
    except Exception as error:
        if len(requests) == 1:
            return [_failure(error)]
        _LOG.debug("cohort of %d failed (%s); each is tried alone", len(requests), error)
        return [content for pending in group for content in _answer_group([pending])]


def _as_cohort(experiment: Experiment, requests: Sequence[Request]) -> list[RecordDict]:
    training = [request for request in requests if isinstance(request, TrainRequest)]
    if training:
        updates = train_clients(experiment, training)
        return [_train_reply(u, r) for u, r in zip(updates, training, strict=True)]
    evaluating = [request for request in requests if isinstance(request, EvaluateRequest)]
    scores = evaluate_clients(experiment, evaluating)
    return [unchecked_records({words.METRICS: unchecked_metrics(score)}) for score in scores]


def _train_reply(update: Update, request: TrainRequest) -> RecordDict:
    metrics = unchecked_metrics(
        {words.NUM_EXAMPLES: update.num_examples, words.LOSS: update.final_loss}
    )
    content = unchecked_records(
        {words.METRICS: metrics}
        if request.arrays is None
        else {words.ARRAYS: update.arrays, words.METRICS: metrics}
    )
    if update.insight is not None:
        words.put_insight(content, update.insight)
    return content


def _failure(error: Exception) -> Error:
    _LOG.debug("client failed", exc_info=error)
    return Error(_CLIENT_FAILED, f"{type(error).__name__}: {error}")
