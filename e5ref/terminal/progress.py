"""Progress bars: of everything that takes more than a few seconds, in a terminal or a notebook."""

import os
import sys
import time
from threading import RLock
from typing import Any, TypeAlias

from tqdm import tqdm

ProgressBar: TypeAlias = "tqdm[Any]"

# Seconds of work after which a bar appears.
PROGRESS_DELAY = 2

# Seconds between two lines of a long job that nobody watches.
LINE_SECONDS = 60

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


class RowProgress:
    """How far a long job is, with tokens a second and the time left: a bar in a terminal, else a line a minute."""

    def __init__(self, total: int, before: int = 0) -> None:
        """Begin with so many rows of the total that were there before, and say so."""
        if before:
            print(f"{before:,} of {total:,} rows are there already", file=sys.stderr, flush=True)
        self._total, self._before, self._rows = total, before, before
        self._begun = self._said = time.monotonic()
        self._bar = progress_bar(total, "embedding", "row", initial=before, unit_scale=True)

    def update(self, rows: int, tokens: int) -> None:
        """Count some more rows; say how many tokens there were in all."""
        self._rows += rows
        now = time.monotonic()
        rate = f"{tqdm.format_sizeof(tokens / max(now - self._begun, 1e-9))} tokens/s"
        self._bar.set_postfix_str(rate, refresh=False)
        self._bar.update(rows)
        if self._bar.disable and now - self._said >= LINE_SECONDS:
            self._said = now
            line = tqdm.format_meter(
                self._rows,
                self._total,
                now - self._begun,
                prefix="embedding",
                unit="row",
                initial=self._before,
                ncols=0,
                postfix=rate,
            )
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.close()
