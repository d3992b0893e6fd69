"""Settings for the whole suite."""

import torch
from hypothesis import settings

# Two cores, shared with engines: torch's idle threads spin and cost more than they bring on tensors of test size.
torch.set_num_threads(1)
# A deadline would be a timed assertion.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
