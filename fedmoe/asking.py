"""One exchange with the clients: whom to ask, sending, waiting, and judging what came."""

import logging
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedmoe.errors import ConfigError, RunError
from fedmoe.guard import SILENT, ReplyGuard
from fedmoe.passing_grid import WithoutNodes
from fedmoe.phase import Phase, message_sizes
from fedmoe.profiling import section
from fedmoe.schema import ExperimentConfig
from fedmoe.standing import Standing
from fedmoe.strategies.sampling import seeded_random
from fedmoe.waiting import Came, Waiting, discount

_LOG = logging.getLogger("fedmoe.asking.Asking")
_NODES_WANTED = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
_CUT_OFF = "no reply when enough others were there"


@dataclass(frozen=True)
class Exchanged:
    """Messages to the clients and what came back, before anybody has judged it.

    Attributes:
        sent: the messages.
        bytes_down: bytes sent to each node.
        came: the replies.
    """

    sent: Sequence[Message]
    bytes_down: dict[int, int]
    came: Came


@dataclass
class Asking:
    """Lets a strategy ask clients, and hands it what the guard lets pass.

    Attributes:
        config: the experiment.
        strategy: any Flower message strategy.
        grid: any Flower grid.
        standing: the model that is sent, and the clients' strikes; the latter are counted here.
        client_of: the client behind a node id.
        guard: judges replies.
        waiting: waits for replies that come later; `None` where the grid does so itself.
    """

    config: ExperimentConfig
    strategy: Strategy
    grid: Grid
    standing: Standing
    client_of: Callable[[int], int]
    guard: ReplyGuard
    waiting: Waiting | None = None

    def check(self) -> None:
        """Refuse a strategy that would wait for ever: `sample_nodes` of Flower's knows no end.

        Raises:
            RunError: too few clients are connected.
            ConfigError: late replies are to be merged, which this strategy would refuse.
        """
        if self.config.runtime.stragglers == "late" and hasattr(self.strategy, "check_reply"):
            raise ConfigError(
                f"runtime.stragglers=late: strategy={self.config.strategy.name} merges what "
                "clients say of this very round; use cut_off or wait"
            )
        connected = len(list(self.grid.get_node_ids()))
        for name in _NODES_WANTED:
            if (wanted := getattr(self.strategy, name, 0)) > connected:
                raise RunError(f"the strategy's {name} is {wanted}, but {connected} are connected")

    def run(self, number: int, *, evaluate: bool) -> Phase:
        """Configure, send, receive, inspect.

        Args:
            number: of the round.
            evaluate: whether clients are to evaluate; else they train.
        """
        sent = self.configure(number, evaluate=evaluate)
        return self.judge(self.exchange(sent, number, evaluate=evaluate), number)

    def configure(self, number: int, *, evaluate: bool) -> Sequence[Message]:
        """The strategy's messages, for `exchange`."""
        configure = self.strategy.configure_evaluate if evaluate else self.strategy.configure_train
        # Flower's own strategies sample with the global generator: see there.
        with section("configure"), seeded_random(self.config.seed, number, int(evaluate)):
            grid = self._grid_of_the_willing(number)
            made = configure(number, self.standing.arrays, ConfigRecord(), grid)
            return made if isinstance(made, Sequence) else list(made)

    def exchange(self, sent: Sequence[Message], number: int, *, evaluate: bool) -> Exchanged:
        """Send messages and wait; what comes is for `judge`."""
        with section("configure"):
            bytes_down = message_sizes(sent)  # before clients may change what they are sent
        if self.waiting is None:
            replies = self.grid.send_and_receive(sent, timeout=self.config.runtime.round_timeout)
            return Exchanged(sent, bytes_down, Came(replies))
        came = self.waiting.exchange(sent, number, training=not evaluate)
        return Exchanged(sent, bytes_down, came)

    def judge(self, exchanged: Exchanged, number: int, forgiven: Set[int] = frozenset()) -> Phase:
        """Let the guard inspect what came, late replies with the others; and count strikes.

        Args:
            exchanged: what was sent, and what came.
            number: of the round.
            forgiven: nodes that get no strike, whatever they sent.
        """
        came, sent, replies = exchanged.came, exchanged.sent, exchanged.came.replies
        if came.late:
            sent = [*sent, *(one.request for one in came.late)]
            replies = [*replies, *(one.reply for one in came.late)]
        with section("guard"):
            silent = _CUT_OFF if came.cut_off else SILENT
            phase = Phase(self.guard.inspect(sent, replies, silent), exchanged.bytes_down)
        if came.late:
            late = {one.request.metadata.dst_node_id: one for one in came.late}
            exponent = self.config.runtime.late_exponent
            key = getattr(self.strategy, "weighted_by_key", "num-examples")
            discount(late, phase.inspection.good, exponent, key)
            phase.late.update({node: one.rounds for node, one in late.items()})
        self._count_strikes(phase.inspection.refused - forgiven, number)
        return phase

    def _grid_of_the_willing(self, number: int) -> Grid:
        """The grid without clients that have struck out or are busy.

        A strategy that would then wait for ever, or have nobody to ask, sees all of them: one
        client's failure never ends a run.
        """
        busy = set() if self.waiting is None else self.waiting.busy(number)
        struck = self.standing.struck_out(self.config.runtime.max_strikes)
        if not busy and not struck:
            return self.grid
        connected = list(self.grid.get_node_ids())
        out = {node for node in connected if struck and self.client_of(node) in struck}
        fewest = max(1, *(int(getattr(self.strategy, name, 0)) for name in _NODES_WANTED))
        hidden: Set[int]
        for hidden in (busy | out, out):
            if len(connected) - len(hidden & set(connected)) >= fewest:
                return WithoutNodes(self.grid, hidden)
        return self.grid

    def _count_strikes(self, nodes: Set[int], number: int) -> None:
        most = self.config.runtime.max_strikes
        before = self.standing.struck_out(most)
        for client in sorted(map(self.client_of, nodes)):
            self.standing.strikes[client] = self.standing.strikes.get(client, 0) + 1
        for client in sorted(self.standing.struck_out(most) - before):
            _LOG.warning(
                "round %d: client %s is not asked any more: %d of its replies were refused",
                number, client, most,
            )  # fmt: skip
