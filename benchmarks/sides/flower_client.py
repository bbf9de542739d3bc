"""The client app of Flower's side; a module of its own, so that Ray's workers can import it.

Each worker keeps its clients' data, which is kinder than Flower's quickstart, where every
message loads it anew.
"""

from functools import cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn import functional

from benchmarks.plain import Work

client_app = ClientApp()


@cache
def read_work(path: str) -> Work:
    """The work, once per worker."""
    torch.set_num_threads(1)
    return Work(Path(path))


@cache
def client_data(path: str, client: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A client's samples, once per worker."""
    return read_work(path).client(client)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """One local epoch of SGD."""
    path = str(message.content.config_records["config"]["work"])
    work = read_work(path)
    x_ND, y_N = client_data(path, int(context.node_config["partition-id"]))
    model = work.module()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=work.learning_rate)
    for batch in torch.split(torch.randperm(len(y_N)), work.batch_size):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(x_ND[batch]), y_N[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    metrics = MetricRecord({"loss": float(loss.detach()), "num-examples": len(y_N)})
    return Message(
        RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}),
        reply_to=message,
    )
