"""Settings for the whole suite."""

import torch
from hypothesis import HealthCheck, settings

# Two cores, shared with engines: torch's idle threads spin and cost more than they bring on tensors of test size.
torch.set_num_threads(1)
# A deadline would be a timed assertion, and so would the check for slow data: the machine may be busy.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
