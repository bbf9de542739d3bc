"""A phase's messages in shards, so that memory grows with a shard and not with the round.

Where the strategy is content with the mean of the clients' arrays, a shard's replies are checked
and merged before the next shard begins.

Letters: C messages.
"""

from collections.abc import Sequence

import numpy as np
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from fedmoe.clients import Clients, Experiment
from fedmoe.data.federation import Ints
from fedmoe.guard import REFUSED, ReplyGuard
from fedmoe.messages import words
from fedmoe.messages.arrays import Stack
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.parts import Part, example_weights, weighted_sum
from fedmoe.messages.replies import Replies
from fedmoe.profiling import section


def answer_in_shards(
    members: Clients, messages: Sequence[Message], clients: Ints, *, always_merge: bool = False
) -> Replies:
    """Answer messages to the clients (C,), at most `runtime.shard_size` at a time.

    Where the sender is content with the mean of the clients' arrays, it gets one for each shard;
    of a single shard only if `always_merge`, since there is no memory to be saved.
    """
    most = members.experiment.config.runtime.shard_size
    if len(messages) <= most and not always_merge:
        with section("pack"):
            return members.answer(messages, clients)
    shards = []
    for start in range(0, len(messages), most):
        places = np.arange(start, min(start + most, len(messages)))
        own = answer_shard(members, taken(messages, places), clients[places])
        shards.append((places, own))
    return joined(messages, shards)


def answer_shard(members: Clients, messages: Sequence[Message], clients: Ints) -> Replies:
    """Answer one shard, and merge its arrays if the sender allows."""
    with section("pack"):
        replies = members.answer(messages, clients)
    if isinstance(messages, Broadcast) and messages.mergeable and words.ARRAYS in messages.records:
        return merged(messages, replies, members.experiment)
    return replies


def merged(messages: Broadcast, replies: Replies, experiment: Experiment) -> Replies:
    """The same replies with the mean of their arrays in place of the arrays.

    The guard looks at each of them first: nobody can take a bad one out of a mean.
    """
    with section("guard"):
        found = ReplyGuard(experiment.config.runtime).inspect(messages, replies)
    place_of = {node: place for place, node in enumerate(messages.nodes)}
    plain = {}
    for node, reason in found.failures.items():
        code = REFUSED if node in found.refused else ErrorCode.UNKNOWN
        plain[place_of[node]] = Message(Error(code, reason), reply_to=messages[place_of[node]])
    good = np.setdiff1d(np.arange(len(messages)), list(plain))
    parts = []
    with section("aggregate"):
        for part in replies.parts:
            kept = np.flatnonzero(np.isin(part.rows, good))
            if len(kept):
                whole = part if len(kept) == len(part.rows) else part.take(kept, part.rows[kept])
                # Without weights to merge it stays, and the sender sees that it differs.
                parts.append(_merged_part(whole) if words.ARRAYS in whole.records else whole)
    return Replies(messages, parts, plain)


def joined(messages: Sequence[Message], shards: Sequence[tuple[Ints, Replies]]) -> Replies:
    """One list of replies from those of several shards, each with its places (n,)."""
    parts: list[Part] = []
    plain: dict[int, Message] = {}
    for places, replies in shards:
        parts += [Part(places[p.rows], p.records, p.means) for p in replies.parts]
        plain |= {int(places[row]): message for row, message in replies.plain.items()}
    return Replies(messages, parts, plain)


def taken(messages: Sequence[Message], places: Ints) -> Sequence[Message]:
    """The messages at the given places."""
    if isinstance(messages, Broadcast):
        return messages.take(places)
    return [messages[place] for place in places.tolist()]


def _merged_part(part: Part) -> Part:
    records = dict(part.records)
    arrays = records.pop(words.ARRAYS)
    assert isinstance(arrays, Stack)
    weight_C = example_weights(part.numbers(words.METRICS)[words.NUM_EXAMPLES])
    mean = weighted_sum(arrays.tensors, weight_C, int(part.rows.argmin()))
    return Part(part.rows, records, {words.ARRAYS: mean})
