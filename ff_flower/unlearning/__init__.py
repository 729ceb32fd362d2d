"""Exact unlearning: forgetting an owner leaves what a run without that owner would have made, byte for byte.

Sample *k* of a module depends on (module_id, root seed, k) alone, a fit on its owner's images alone, and everything else is a
function of the modules and the seed. So forgetting is deletion, and making again what depended on what was deleted; no
generative module is fitted again.

`forget` goes four steps, each of which can be interrupted: the tombstone (``forgotten.json``) is written, what it names is
purged, what depended on it is rebuilt, and a certificate says so. Whoever opens the run directory afterwards goes on where it
stopped (`honour`): a forgotten contribution never comes back.
"""

from .certificate import CONFIRMATIONS
from .comparison import Compared, compare_runs
from .forgetting import Forgetting, Work, forget, given_up, waits_for_nodes
from .owners import participants
from .purge import drop_copies, honour
from .request import open_run
from .tombstone import Entry, Tombstone

__all__ = [
    "CONFIRMATIONS",
    "Compared",
    "Entry",
    "Forgetting",
    "Tombstone",
    "Work",
    "compare_runs",
    "drop_copies",
    "forget",
    "given_up",
    "honour",
    "open_run",
    "participants",
    "waits_for_nodes",
]
