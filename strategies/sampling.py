"""How the server draws samples: where nodes draw the same ones too, as they do, so that they are theirs to the last bit."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ff_flower.accelerator import torch_threads
from ff_flower.config import RunSpec
from ff_flower.run_directory import cache_root
from ff_flower.synthesis import SampleCache


@contextmanager
def sampling(spec: RunSpec, device: torch.device) -> Iterator[SampleCache]:
    """Compute on the threads that draw samples at the server, and return the cache of what these draw.

    Parameters
    ----------
    spec : RunSpec
        With ``synthesis.site = "client"`` they are a node's, else all that the server has.
    device : torch.device
        Where networks are evaluated.
    """
    threads = spec.threads if spec.synthesis.site == "client" else torch.get_num_threads()
    with torch_threads(threads):
        yield SampleCache(cache_root(spec) / "samples", device, threads)
