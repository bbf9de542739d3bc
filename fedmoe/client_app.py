"""The Flower ClientApp, for `flwr run` and SuperNodes: one message, one client."""

from pathlib import Path

from fedmoe.heap import quick_start

with quick_start():
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp

    from fedmoe.app_config import resolve
    from fedmoe.clients import answer, load_experiment
    from fedmoe.errors import FedmoeError
    from fedmoe.lan.desk import Desk, partition_reply, refusal
    from fedmoe.lan.packing import is_packed, pack, unpack
    from fedmoe.lan.supernode import DATA, STATE
    from fedmoe.messages import words
    from fedmoe.messages.arrays import plain
    from fedmoe.messages.seams import with_content
    from fedmoe.training.process import prepare_process

app = ClientApp()


def _answer_one(message: Message, context: Context) -> Message:
    """Answer by the same path as a simulated cohort, in records that Flower can serialise."""
    if STATE in context.node_config:
        return _from_disk(message, context)
    partitions = context.node_config.get("num-partitions")
    config_json = resolve(context.run_config, None if partitions is None else int(partitions))
    prepare_process(load_experiment(config_json).config.training.num_threads)
    # In a context of our own: Flower fails a client whose run config has changed.
    own = Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=context.node_config,
        state=context.state,
        run_config={"config": config_json},
    )
    packed = is_packed(message.content)
    reply = answer([with_content(message, unpack(message.content))], [own])[0]
    context.state = plain(own.state)
    if reply.has_content():
        reply.content = pack(reply.content) if packed else plain(reply.content)
    return reply


def _from_disk(message: Message, context: Context) -> Message:
    """Answer as a client process would that keeps its state on disk."""
    client, root = context.node_config[words.PARTITION_ID], str(context.node_config[STATE])
    own = context.node_config.get(DATA)
    data = None if own is None else Path(str(own))
    try:
        desk = Desk(context.run_config, context.run_id, int(client), Path(root), data)
    except FedmoeError as error:
        return refusal(message, error)
    return desk.answer(message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this node's data."""
    return _answer_one(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate on this node's data."""
    return _answer_one(message, context)


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say which partition this node holds: Flower's node ids are new in every run."""
    return partition_reply(message, int(context.node_config[words.PARTITION_ID]))
