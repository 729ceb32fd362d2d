"""Where a test left a file ``NAME.hold`` in the folder ``FF_HELD``, a process says who it is and waits until the file is gone."""

import os
import time
from pathlib import Path


def meet(name: str) -> None:
    """Write this process's id to ``NAME.here``, and wait while there is ``NAME.hold``."""
    folder = Path(os.environ["FF_HELD"])
    (folder / f"{name}.here").write_text(str(os.getpid()))
    while (folder / f"{name}.hold").exists():
        time.sleep(0.05)
