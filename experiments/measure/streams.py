"""Random streams of a measure's own, apart from torch's global one."""

from contextlib import contextmanager

import torch

from experiments.svi.loop import isolated


def seeds(seed, count):
    """`count` seeds, far apart, that `seed` determines."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**62, (count,), generator=generator).tolist()


@contextmanager
def stream(seed, device):
    """Runs Pyro programs by a stream of their own; torch's and Pyro's state stay as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), isolated():
        torch.manual_seed(seed)
        yield
