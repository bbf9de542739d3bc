"""What all tests share."""

import torch

# Two threads on a busy machine make the small products of these tests ten times slower.
torch.set_num_threads(1)
