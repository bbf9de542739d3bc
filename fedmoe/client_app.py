"""The Flower ClientApp, for `flwr run` and SuperNodes: one message, one client."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedmoe.app_config import resolve
from fedmoe.clients import answer, load_experiment
from fedmoe.messages import words
from fedmoe.messages.arrays import plain
from fedmoe.training.process import prepare_process

app = ClientApp()


def _answer_one(message: Message, context: Context) -> Message:
    """Answer by the same path as a simulated cohort, in records that Flower can serialise."""
    config_json = resolve(context, int(context.node_config["num-partitions"]))
    prepare_process(load_experiment(config_json).config.training.num_threads)
    # In a context of our own: Flower fails a client whose run config has changed.
    own = Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=context.node_config,
        state=context.state,
        run_config={"config": config_json},
    )
    reply = answer([message], [own])[0]
    context.state = plain(own.state)
    if reply.has_content():
        reply.content = plain(reply.content)
    return reply


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
    partition = int(context.node_config[words.PARTITION_ID])
    record = MetricRecord({words.PARTITION_ID: partition})
    return Message(RecordDict({words.METRICS: record}), reply_to=message)
