"""Federations of separate processes: Flower's SuperLink on one machine, clients on others.

`launch` is the server's side, `node` a client's; `fleet` and `fast_grid` are the two files that
touch parts of Flower that are not public.
"""

# What a ServerApp that `fedmoe.server` has started finds in its environment.
RUN_DIR = "FEDMOE_RUN_DIR"  # where to write
RESUME = "FEDMOE_RESUME"  # not empty: go on from the checkpoint there
