"""Federations of separate processes: Flower's SuperLink on one machine, clients on others.

`launch` is the server's side, `node` a client's; `fleet` and `fast_grid` are the two files that
touch parts of Flower that are not public. Between the two stands `fleet_proxy`.
"""

# What a ServerApp that `fedmoe.server` has started finds in its environment.
RUN_DIR = "FEDMOE_RUN_DIR"  # where to write
RESUME = "FEDMOE_RESUME"  # not empty: a run was there before, to go on with
NODES = "FEDMOE_NODES"  # a JSON file: clients by Flower's node, where they have keys

# What a client is told, with status 401, whose key the server does not know.
UNKNOWN_KEY = "unknown key"
