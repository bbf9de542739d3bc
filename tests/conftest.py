"""What all tests share."""

import os

import torch
from hypothesis import settings

# Two threads on a busy machine make the small products of these tests ten times slower.
torch.set_num_threads(1)

# Elsewhere hypothesis looks for new counterexamples; a change must not fail for somebody else's.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")
