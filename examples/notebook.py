"""Experts, router, clients, server and MetaLearner by their names, cell by cell.

Open it in Jupyter or VS Code, where each `# %%` begins a cell, or run it as it is:

python examples/notebook.py
"""

# %% Train: a mixture of experts by averaging, then models that never travel by insights
from fedmoe import Client, Expert, MetaLearner, Router, Server

experts = [Expert(expert_id=e, hidden=[32]) for e in range(3)]
router = Router(num_experts=3)
clients = [Client(client_id=k) for k in range(5)]
server = Server(clients=clients, experts=experts, router=router)
summary = server.run(rounds=10)
learner = MetaLearner()
exchange = Server(num_clients=5, meta_learner=learner)
insights = exchange.run(rounds=5)
print(summary["final"]["global"]["accuracy"], insights["final"]["personalised"]["accuracy"])

# %% How it went, round by round; the run directory has the same, and plots
for record in server.metrics:
    print(record["round"], record["train"]["loss"], record["test"]["global"]["accuracy"]["mean"])

# %% Predict with the global model, and with one expert alone
import torch

from fedmoe.models import MixtureOfExperts

x, y = (torch.from_numpy(array) for array in clients[0].data("test"))
model = server.model
assert isinstance(model, MixtureOfExperts)
output = model(x)
alone = model.expert(0)(x).y
print("mixture", float((output.y.argmax(dim=-1) == y).float().mean()))
print("expert 0", float((alone.argmax(dim=-1) == y).float().mean()))
print("asked for", output.routing.weight.mean(dim=-1).tolist())  # each expert's share

# %% What the server remembers of the clients, and what the MetaLearner makes of it
print(len(exchange.memory), "insights; the last:", exchange.memory.history[-1])
print("uncertain clients:", learner.history[-1]["high_uncertainty"])
print("guidance for client 3:", list(learner.guidance(3).parts))

# %% There is no global model now: each client has its own
own = exchange.clients[0].model()
print("client 0", float((own(x).y.argmax(dim=-1) == y).float().mean()))

# %% Five rounds more, from where it stands: the same bits as fifteen in one go
summary = server.run(rounds=5)

# %% Anything that the command line can say
prox = Server(num_clients=5, overrides=["model=linear", "strategy=fedprox", "partition=iid"])
summary = prox.run(rounds=5)
