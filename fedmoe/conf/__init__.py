"""Hydra configuration groups; see `python -m fedmoe.simulate --help`."""
