"""Evaluation that rides along with the next round's training, where that changes no number.

A round is then one exchange, and the model travels down once. The train messages of round r + 1 go
out before round r is over; with the replies come the scores that end it, and the training is held
back until then. Where round r turns out to be the last, it is thrown away.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedmoe.asking import Asking, Exchanged
from fedmoe.messages import words
from fedmoe.messages.riding import READ, parted
from fedmoe.messages.seams import set_message_id
from fedmoe.messages.sizes import content_bytes
from fedmoe.phase import Phase
from fedmoe.schema import LanConfig, RuntimeBase
from fedmoe.waiting import Came

# Flower's that evaluate as its FedAvg does, and to which nothing of that matters.
_FLOWERS = frozenset(
    {
        flower.Bulyan, flower.FedAdagrad, flower.FedAdam, flower.FedAvg, flower.FedAvgM,
        flower.FedMedian, flower.FedProx, flower.FedTrimmedAvg, flower.FedYogi, flower.Krum,
        flower.MultiKrum, flower.QFedAvg,
    }
)  # fmt: skip
_NOBODY: Set[int] = frozenset()


def permits(runtime: RuntimeBase, strategy: Strategy) -> bool:
    """Whether evaluation may ride along at all.

    Args:
        runtime: where clients are; it is to be a deployment that wants it.
        strategy: says so by an attribute `evaluation_rides`, see `StackedFedAvg`; or is one of
            Flower's own classes.
    """
    if not isinstance(runtime, LanConfig) or not runtime.evaluate_with_training:
        return False
    return type(strategy) in _FLOWERS or bool(getattr(strategy, "evaluation_rides", False))


@dataclass(frozen=True)
class _Ahead:
    """Training that has come before its round has begun.

    Attributes:
        exchanged: with the replies to the training alone.
        forgiven: nodes that have got a strike for the other half of their reply.
    """

    exchanged: Exchanged
    forgiven: Set[int] = _NOBODY


class Riding:
    """Runs phases as `Asking` does, two of them in one exchange where it can."""

    def __init__(self, asking: Asking) -> None:
        self.asking = asking
        self._permitted = permits(asking.config.runtime, asking.strategy)
        self._ahead: _Ahead | None = None
        self._resumed = asking.standing.round

    def run(self, number: int, *, evaluate: bool) -> Phase:
        """A phase of a round, see `Asking.run`."""
        return self._evaluate(number) if evaluate else self._train(number)

    def throw_away(self) -> tuple[int, int]:
        """Forget training that has come for a round which will not be; returns bytes up, down."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return 0, 0
        came = ahead.exchanged.came
        replies = [*came.replies, *(one.reply for one in came.late)]
        up = sum(content_bytes(reply.content) for reply in replies if reply.has_content())
        return up, sum(ahead.exchanged.bytes_down.values())

    def _evaluate(self, number: int) -> Phase:
        if not self._permitted or number >= self.asking.config.rounds:
            return self.asking.run(number, evaluate=True)
        sent = self.asking.configure(number, evaluate=True)
        both = self._both(sent, number)
        if both is None:
            exchanged = self.asking.exchange(sent, number, evaluate=True)
            return self.asking.judge(exchanged, number)
        evaluation, training = both
        phase = self.asking.judge(evaluation, number)
        # One message is worth one strike, whatever is wrong with it.
        self._ahead = _Ahead(training, phase.inspection.refused)
        return phase

    def _train(self, number: int) -> Phase:
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            ahead = _Ahead(self._asked_again() or self._alone(number))
        return self.asking.judge(ahead.exchanged, number, ahead.forgiven)

    def _alone(self, number: int) -> Exchanged:
        sent = self.asking.configure(number, evaluate=False)
        return _in_time(self.asking.exchange(sent, number, evaluate=False))

    def _asked_again(self) -> Exchanged | None:
        """The first training after a checkpoint; `None` where no evaluation rode along with it.

        The scores are known, but clients that have gone back to their state of then are to
        evaluate once more: those with a router remember what it did.
        """
        resumed, self._resumed = self._resumed, 0
        every = self.asking.config.evaluate_every
        if not self._permitted or not resumed or resumed % every:
            return None
        both = self._both(self.asking.configure(resumed, evaluate=True), resumed)
        return None if both is None else both[1]

    def _both(
        self, evaluation: Sequence[Message], number: int
    ) -> tuple[Exchanged, Exchanged] | None:
        """Evaluate a round and train the next; `None` where the strategy asks for unlike things."""
        if not evaluation:
            return None
        training = self.asking.configure(number + 1, evaluate=False)
        if not fits(evaluation, training):
            return None
        settings = {one.metadata.dst_node_id: one.content[words.CONFIG] for one in evaluation}
        for message in training:
            message.content[words.EVALUATION] = settings[message.metadata.dst_node_id]
        exchanged = _in_time(self.asking.exchange(training, number + 1, evaluate=False))
        came = exchanged.came
        numbers = {one.metadata.dst_node_id: one.metadata.message_id for one in training}
        for message in evaluation:  # for the guard, which sees whether a reply is one to it
            set_message_id(message, numbers[message.metadata.dst_node_id])
        pairs = [parted(reply) for reply in came.replies]
        trained, evaluated = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        return (
            Exchanged(evaluation, {}, Came(evaluated, cut_off=came.cut_off)),
            replace(exchanged, came=replace(came, replies=trained)),
        )


def _in_time(exchanged: Exchanged) -> Exchanged:
    """Without the evaluations that ride along with late replies: they are of an earlier round."""
    late = [
        replace(one, reply=parted(one.reply)[0]) if words.EVALUATION in one.request.content else one
        for one in exchanged.came.late
    ]
    return replace(exchanged, came=replace(exchanged.came, late=late))


def fits(evaluation: Sequence[Message], training: Sequence[Message]) -> bool:
    """Whether an evaluation can ride along: it goes to the same nodes with the same model.

    Args:
        evaluation: to each node at most one message.
        training: likewise.
    """
    trained = {message.metadata.dst_node_id: message.content for message in training}
    evaluated = {message.metadata.dst_node_id: message.content for message in evaluation}
    if trained.keys() != evaluated.keys() or len(evaluation) != len(evaluated):
        return False
    known: dict[tuple[int, int], bool] = {}
    return all(_fits(content, trained[node], known) for node, content in evaluated.items())


def _fits(evaluated: RecordDict, trained: RecordDict, known: dict[tuple[int, int], bool]) -> bool:
    """The same for one node; `known` are pairs of records that have been compared."""
    if not evaluated.keys() <= {*READ, words.CONFIG} or words.EVALUATION in trained:
        return False
    if not isinstance(evaluated.get(words.CONFIG), ConfigRecord):
        return False
    for key in READ:
        one, other = evaluated.get(key), trained.get(key)
        if one is other:
            continue
        if not isinstance(one, ArrayRecord) or not isinstance(other, ArrayRecord):
            return False
        pair = id(one), id(other)
        if pair not in known:
            known[pair] = _same_arrays(one, other)
        if not known[pair]:
            return False
    return True


def _same_arrays(one: ArrayRecord, other: ArrayRecord) -> bool:
    """Whether two records hold the same bits."""
    return list(one) == list(other) and all(
        (array.dtype, array.shape, array.data)
        == (other[name].dtype, other[name].shape, other[name].data)
        for name, array in one.items()
    )
