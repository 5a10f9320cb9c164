"""Progress bars: of everything that takes more than a few seconds, in a terminal or a notebook."""

import os
import sys
from threading import RLock
from typing import Any, TypeAlias

from tqdm import tqdm

ProgressBar: TypeAlias = "tqdm[Any]"

# Seconds of work after which a bar appears.
PROGRESS_DELAY = 2

# Every progress bar asks for tqdm's lock, even one that is not shown. A thread that holds it at a fork is not there in
# the child to let it go.
if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=lambda: tqdm.set_lock(RLock()))


def progress_bar(
    total: int | None, desc: str, unit: str, *, show: bool | None = None, delay: float = PROGRESS_DELAY, **options: Any
) -> ProgressBar:
    """Make a progress bar.

    Args:
        total: how many steps there are; None if that is not known.
        desc: what is being done.
        unit: what a step is.
        show: None shows the bar in a terminal and in a notebook.
        delay: seconds after which it appears.
        options: further ones of tqdm.
    """
    in_notebook = "ipykernel" in sys.modules
    hide = (False if in_notebook else None) if show is None else not show  # None is for tqdm to look at the terminal
    return tqdm(total=total, desc=desc, unit=unit, delay=delay, disable=hide, **options)
