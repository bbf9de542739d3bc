"""The Flower ClientApp, for `flwr run` and SuperNodes: one message, one client."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedmoe.app_config import resolve
from fedmoe.clients import answer
from fedmoe.messages.arrays import plain

app = ClientApp()


def _answer_one(message: Message, context: Context) -> Message:
    """Answer by the same path as a simulated cohort, in records that Flower can serialise."""
    num_clients = int(context.node_config["num-partitions"])
    context.run_config["config"] = resolve(context, num_clients)
    reply = answer([message], [context])[0]
    context.state = plain(context.state)
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
