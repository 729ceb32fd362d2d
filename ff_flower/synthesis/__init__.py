"""From modules to one class-balanced data set, the same at every node.

`allocate` shares each class's quota among its owners, `synthesize` draws the samples, `SampleCache` keeps them. Sample *k* of
a module depends on (module_id, root seed, k) alone; so every node builds the same set, a larger quota extends a smaller one,
and without one owner's modules all other samples stay as they were.
"""

from .allocation import Share, allocate
from .sample_cache import CHUNK, SampleCache
from .synthetic_set import SyntheticDataset, load_module, sample_stream, synthesize

__all__ = ["CHUNK", "SampleCache", "Share", "SyntheticDataset", "allocate", "load_module", "sample_stream", "synthesize"]
