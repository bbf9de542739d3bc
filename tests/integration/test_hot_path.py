"""What a round costs must not grow with its clients where it need not: counted, not timed.

Clients have equally many samples and are one chunk, so that 100 of them take as many steps as
20, with larger tensors. Strategies of ours then make as many objects and call as many tensor
operators for 100 clients as for 20; Flower's own, which look at every message, do not.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch.utils._python_dispatch import TorchDispatchMode

import fedmoe
from fedmoe.clients import Experiment, load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.data import pooled
from fedmoe.guard.routing import RoutingCheck
from fedmoe.insight import Insight
from fedmoe.messages.arrays import dtype_name, to_record
from fedmoe.rounds import RoundLoop, RoundRecord
from fedmoe.routing_scores import ROUTING_FILE
from fedmoe.simulations import InProcessGrid
from fedmoe.standing import Standing
from fedmoe.strategies import build_strategy
from fedmoe.tracking import RunDirectory

FEW, MANY = 20, 100
COUNTED = (Message, ArrayRecord, Array, RecordDict, MetricRecord, ConfigRecord, Insight)
SOURCES = str(Path(fedmoe.__file__).parent)
WORDS = [
    "data=synthetic_mixture", "data.samples_per_client=30", "data.num_features=4",
    "partition=natural", "training.batch_size=8", f"training.cohort_size={MANY}",
    "rounds=4", "evaluate_every=2", "runtime.max_strikes=null",
]  # fmt: skip
# Operators that put out what they were given, in another place or order.
MOVES = {
    "clone", "copy_", "_to_copy", "cat", "stack", "index", "index_select", "gather", "index_put_",
    "repeat", "constant_pad_nd",
}  # fmt: skip


@dataclass
class Costs:
    """Counts over one round.

    Attributes:
        made: objects of Flower's made, and insights, by class; a `CohortRecord` is an
            `ArrayRecord`, too.
        operators: tensor operators called, backward passes included, by name.
        moved: bytes that operators put out which only move numbers (`MOVES`); NumPy's copies,
            which are of row numbers, are not counted.
        saved: arrays serialised by `np.save`.
        lines: lines of the package's own code run, by function: a loop over clients shows.
    """

    made: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    saved: Counter[str] = field(default_factory=Counter)
    lines: Counter[str] = field(default_factory=Counter)

    def copy(self) -> "Costs":
        return Costs(*(Counter(getattr(self, one.name)) for one in fields(self)))

    def __sub__(self, earlier: "Costs") -> "Costs":
        pairs = ((getattr(self, f.name), getattr(earlier, f.name)) for f in fields(self))
        return Costs(*(mine - theirs for mine, theirs in pairs))


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what reaches torch's kernels from this thread."""

    def __init__(self, costs: Costs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.costs = costs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.costs.operators[name] += 1
        if name in MOVES:
            put = args[2] if name == "index_put_" else out
            self.costs.moved[name] += put.numel() * put.element_size()
        return out


@contextmanager
def counting(costs: Costs) -> Iterator[None]:
    """Count everything that happens in this thread."""

    def made(cls: type) -> Callable[..., None]:
        ordinary = cls.__init__  # type: ignore[misc]

        def init(self: object, *args: Any, **keywords: Any) -> None:
            costs.made[cls.__name__] += 1
            ordinary(self, *args, **keywords)

        return init

    ordinary_save = np.save

    def save(*args: Any, **keywords: Any) -> None:
        costs.saved["np.save"] += 1
        ordinary_save(*args, **keywords)

    def passed(frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        if event == "line":
            # A comprehension or generator is a part of the function that it stands in.
            costs.lines[frame.f_code.co_qualname.split(".<locals>")[0]] += 1
        return passed

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for cls in COUNTED:
            patch.setattr(cls, "__init__", made(cls))
        patch.setattr(np, "save", save)
        stack.enter_context(Operators(costs))
        stack.callback(sys.settrace, sys.gettrace())
        sys.settrace(passed)
        yield


dtype_name(torch.uint8)  # looked up once a process, and that is not a round's cost


@cache
def _costs_of(words: tuple[str, ...], clients: int) -> tuple[Costs, Costs]:
    bad = "BAD" in words
    given = [word.replace("HALF", str(clients // 2)) for word in words if word != "BAD"]
    config = load_config([*WORDS, f"data.num_clients={clients}", *given])
    experiment = load_experiment(to_json(config))
    assert len(set(pooled(experiment.data).parts["train"].counts_K.tolist())) == 1
    if bad:
        experiment = with_bad_client(experiment, 3)
    grid, costs, plan = InProcessGrid(experiment), Costs(), experiment.router
    seen: list[Costs] = []
    with TemporaryDirectory() as folder, RunDirectory.claim(Path(folder)) as directory:

        def on_round(record: RoundRecord) -> None:
            directory.append_columns("clients.jsonl", record.clients)
            directory.append_columns("insights.jsonl", record.insights)
            directory.append("metrics.jsonl", record.metrics)
            if record.routing is not None:
                directory.append(ROUTING_FILE, record.routing.as_json())
            assert (record.metrics["train"]["failures"], record.metrics["train"]["void"]) == (
                bad,
                False,
            )
            seen.append(costs.copy())

        loop = RoundLoop(
            config=config,
            strategy=build_strategy(config, experiment.data.task),
            grid=grid,
            standing=Standing(to_record(experiment.shared)),
            client_of=grid.client_id,
            on_round=on_round,
            routing=RoutingCheck(plan.kind) if plan else None,
        )
        with counting(costs):
            loop.run()
    return seen[2] - seen[1], seen[1] - seen[0]


def costs_of(words: Sequence[str], clients: int) -> tuple[Costs, Costs]:
    """A round that trains, and one that trains and evaluates; records are written.

    Args:
        words: of the configuration; `BAD` spoils a client's data, `HALF` is half the clients.
        clients: in the federation.
    """
    return _costs_of(tuple(words), clients)


def with_bad_client(experiment: Experiment, client: int) -> Experiment:
    """The same, with a NaN among one client's training data."""
    data = pooled(experiment.data)
    x_ND = data.x_ND.copy()
    x_ND[data.parts["train"].of(client)[0]] = np.nan
    return replace(experiment, data=replace(data, x_ND=x_ND))


MLP = ["model=mlp", "model.hidden=[5]"]
# All clients are told the same; clusters of clients are told each their own.
ALIKE = "meta_learner.prototypes.of=federation"
OURS: list[Any] = [
    pytest.param([*MLP, "strategy=fedavg"], id="fedavg"),
    pytest.param(["model=linear", "strategy=fedavg"], id="fedavg-linear"),
    pytest.param(["model=moe", "model.hidden=[3]", "strategy=fedavg"], id="fedavg-moe"),
    pytest.param(["model=moe", "model.hidden=[3]", "strategy=local"], id="local-moe"),
    pytest.param([*MLP, "strategy=fedavg", "strategy.fraction_train=0.5"], id="fedavg-sampled"),
    pytest.param([*MLP, "strategy=fedavg", "training=adam"], id="fedavg-adam"),
    pytest.param([*MLP, "strategy=fedavg", "runtime.shard_size=HALF"], id="fedavg-shards"),
    pytest.param([*MLP, "strategy=fedavg", "BAD"], id="fedavg-bad-client"),
    pytest.param([*MLP, "strategy=fedprox"], id="fedprox"),
    pytest.param([*MLP, "strategy=fedadam"], id="fedadam"),
    pytest.param([*MLP, "strategy=local"], id="local"),
    pytest.param([*MLP, "strategy=local", "training.reset_optimizer=false"], id="local-kept"),
    pytest.param([*MLP, "strategy=fedavg_finetune"], id="fedavg-finetune"),
    pytest.param([*MLP, "strategy=ditto"], id="ditto"),
    pytest.param([*MLP, "strategy=ditto", "training.reset_optimizer=false"], id="ditto-kept"),
    pytest.param([*MLP, "strategy=fedrep"], id="fedrep"),
    pytest.param([*MLP, "strategy=fedproto"], id="fedproto"),
    pytest.param([*MLP, "strategy=fedproto", "runtime.shard_size=HALF"], id="fedproto-shards"),
    pytest.param([*MLP, "strategy=fedem"], id="fedem"),
    pytest.param(["model=linear", "strategy=fedem", "runtime.shard_size=HALF"], id="fedem-shards"),
    pytest.param([*MLP, "strategy=ifca", "strategy.restart_rounds=2"], id="ifca"),
    pytest.param([*MLP, "strategy=ifca", "training.reset_optimizer=false"], id="ifca-kept"),
    pytest.param([*MLP, "strategy=local_global"], id="local-global"),
]
STOCK = [*MLP, "strategy=stock", "strategy.class_name=FedAvg"]
# What may go client by client: the lines of the run's record, and lists of nodes.
RECORDING = {
    "Phase.client_columns", "CohortGrid.client_id", "lines_of", "_encoded_column", "to_json",
    "_is_constant", "RunDirectory._append",
}  # fmt: skip
LISTING = {
    "StackedFedAvg.choose", "CohortGrid._deliver", "Broadcast.take", "merged",
    "ReplyGuard._inspect_columns",
}  # fmt: skip
LINES_PER_CLIENT = 60


@pytest.mark.parametrize("words", OURS)
@pytest.mark.parametrize("evaluated", [False, True])
def test_more_clients_make_no_more_objects_and_operators(words: list[str], evaluated: bool) -> None:
    few, many = costs_of(words, FEW)[evaluated], costs_of(words, MANY)[evaluated]
    assert few.made == many.made
    assert few.saved == many.saved
    assert few.operators == many.operators
    assert sum(many.moved.values()) / MANY <= 1.01 * sum(few.moved.values()) / FEW
    assert few.moved and many.made["Message"]  # something was counted
    assert many.operators["baddbmm"] + many.operators["bmm"] + many.operators["baddbmm_"]


@pytest.mark.parametrize("words", OURS)
@pytest.mark.parametrize("evaluated", [False, True])
def test_only_records_and_lists_of_nodes_are_made_client_by_client(
    words: list[str], evaluated: bool
) -> None:
    few, many = costs_of(words, FEW)[evaluated], costs_of(words, MANY)[evaluated]
    assert grown(few, many) <= RECORDING | LISTING
    more = many.lines.total() - few.lines.total()
    assert 0 < more <= LINES_PER_CLIENT * (MANY - FEW)
    assert many.lines["train_cohort"] == few.lines["train_cohort"] > 0


def grown(few: Costs, many: Costs) -> set[str]:
    """Functions that run more lines for more clients."""
    return {name for name in many.lines if many.lines[name] != few.lines[name]}


@pytest.mark.parametrize("words", [words for words in OURS if "fedadam" not in str(words.id)])
def test_no_array_is_serialised(words: list[str]) -> None:
    """But by FedAdam, whose server is Flower's and keeps the model's arrays, not the clients'."""
    for costs in costs_of(words, MANY):
        assert not costs.made["Array"] and not costs.saved


@pytest.mark.parametrize("evaluated", [False, True])
def test_flowers_own_strategy_looks_at_every_message(evaluated: bool) -> None:
    """The contrast: were ours to look, the counts above would tell."""
    few, many = costs_of(STOCK, FEW)[evaluated], costs_of(STOCK, MANY)[evaluated]
    phases = 2 if evaluated else 1
    assert few.made["Message"] == 2 * phases * FEW  # requests and replies
    assert many.made["Message"] == 2 * phases * MANY
    arrays = 4  # of the model
    assert many.saved["np.save"] - few.saved["np.save"] == arrays * (MANY - FEW)
    for name in ("Array", "ArrayRecord", "MetricRecord", "RecordDict"):
        assert many.made[name] - few.made[name] >= MANY - FEW
    assert many.operators.total() > few.operators.total() + MANY - FEW
    assert {"Part.content", "CohortRecord._fill"} <= grown(few, many)
    assert many.lines.total() - few.lines.total() > 2 * LINES_PER_CLIENT * (MANY - FEW)


# What each client is asked and told is looked up, and whose insight it is; what it tells is not.
ASKING = {
    "Broadcast.distinct", "Broadcast.sent_records", "Exchange._lacking", "Exchange._name",
    "Exchange._note", "Exchange.ask", "Exchange.begin", "Exchange.observe", "Incoming._accept",
    "Incoming.accepted",
    "Incoming.begin", "Incoming.doubtful", "Incoming.taken", "Insights.aggregate_train",
    "Latest.examples_of", "MetaLearner.guidance", "Prior.advise", "Prototypes.advise",
    "RoundInsights.lines", "message_sizes",
}  # fmt: skip


@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize(
    "words",
    [["strategy=insight", ALIKE], ["strategy=fedavg", "meta_learner=prototypes", ALIKE]],
    ids=["insight", "fedavg"],
)
def test_insights_are_columns(words: list[str], evaluated: bool) -> None:
    few, many = (costs_of([*MLP, *words], count)[evaluated] for count in (FEW, MANY))
    assert (few.made, few.saved, few.operators) == (many.made, many.saved, many.operators)
    assert not many.made["Insight"]
    names = grown(few, many)
    assert "Exchange.ask" in names
    assert names <= RECORDING | LISTING | ASKING
    assert many.lines.total() - few.lines.total() <= 2 * LINES_PER_CLIENT * (MANY - FEW)


@pytest.mark.parametrize(
    ("strategy", "trained", "evaluated"),
    [
        ("fedavg", 4, 0),
        ("fedprox", 4, 0),
        ("fedadam", 4, 0),
        ("local", 4, 2),
        ("fedavg_finetune", 4, 4),
        ("ditto", 4, 2),
        ("fedrep", 4, 2),
    ],
)
def test_weights_are_moved_a_few_times_a_round(
    strategy: str, trained: float, evaluated: float
) -> None:
    """In models moved per client, with models so wide that samples hardly count.

    Clients take one step: into the chunk's order and back (parameters and momentum), and what
    autograd or FedProx's anchor takes. Evaluation gathers the models of clients that have their
    own, once for each of two parts, and moves none that all share.
    """
    wide = ["model=mlp", "model.hidden=[400]", "training.batch_size=32", "training.epochs=1"]
    words = [*wide, f"strategy={strategy}"]
    size = 4 * (400 * (4 + 1) + 2 * (400 + 1))
    alone, both = (sum(c.moved.values()) / MANY / size for c in costs_of(words, MANY))
    assert 1 <= alone <= trained + 0.1
    assert both - alone <= evaluated + 0.1
