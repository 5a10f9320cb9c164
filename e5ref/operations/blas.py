"""NumPy's BLAS: its threads, the cores that they may have, and the order in which it rounds rows."""

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from threadpoolctl import ThreadpoolController


class BlasThreads:
    """The number of threads of NumPy's BLAS: one setting of the whole process, lowered for a while and then put back.

    Nothing is done about a BLAS that threadpoolctl does not know, such as Apple's Accelerate.

    A fork waits until no other thread of Python is inside `at_most`. The child would lack that thread, which puts the
    number back and lets go of locks, ours and OpenBLAS's. Besides, OpenBLAS hangs at a fork while its threads work.
    """

    def __init__(self) -> None:
        """Find the libraries that are loaded by now: NumPy's."""
        self._libraries = ThreadpoolController().select(user_api="blas").lib_controllers
        self._before = [library.num_threads for library in self._libraries]
        self._wanted: list[tuple[int, int]] = []  # the thread of Python that asks, and how many
        self._forks = 0  # how many threads of Python wait for their fork
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        if hasattr(os, "register_at_fork"):  # Windows does not fork
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._after_fork_in_child
            )

    @property
    def threads(self) -> int:
        """How many the caller has chosen: all cores, unless the environment or threadpoolctl says less."""
        with self._lock:
            counts = self._before if self._wanted else [library.num_threads for library in self._libraries]
        return max(counts, default=os.cpu_count() or 1)

    @contextmanager
    def at_most(self, threads: int) -> Iterator[None]:
        """Keep to `threads`; if several callers ask at a time, the least number counts."""
        me = threading.get_ident()
        with self._lock:
            # A thread that the fork waits for may go on, and ask again.
            self._changed.wait_for(lambda: not self._forks or any(thread == me for thread, _ in self._wanted))
            if not self._wanted:
                self._before = [library.num_threads for library in self._libraries]
            self._wanted.append((me, threads))
            self._set()
        try:
            yield
        finally:
            with self._lock:
                self._wanted.remove((me, threads))
                self._set()
                self._changed.notify_all()

    def _set(self) -> None:
        for library, before in zip(self._libraries, self._before, strict=True):
            # From version 3.7 on threadpoolctl heeds one thread of Python only, so that others do not set it back.
            # Here the lock does that.
            set_threads = getattr(library, "_real_set_num_threads", library.set_num_threads)
            set_threads(min([before, *(threads for _, threads in self._wanted)]))

    def _before_fork(self) -> None:
        me = threading.get_ident()
        self._lock.acquire()
        self._forks += 1
        self._changed.wait_for(lambda: all(thread == me for thread, _ in self._wanted))

    def _after_fork(self) -> None:
        self._forks -= 1
        self._changed.notify_all()
        self._lock.release()

    def _after_fork_in_child(self) -> None:
        self._forks = 0
        self._lock.release()


blas = BlasThreads()


@functools.cache
def rows_alternate() -> bool:
    """Tell whether the BLAS rounds the first six of every twelve rows alike, and the next six differently.

    OpenBLAS's kernels for AVX2 do. Nothing documents this, so it is tried out.
    """
    random = np.random.default_rng(0)
    row, weight = random.random(384, np.float32) - 0.5, random.random((96, 384), np.float32) - 0.5
    with blas.at_most(1):
        products = np.tile(row, (36, 1)) @ weight.T
    twelve = np.repeat(products[[0, 6]], 6, axis=0)
    return not np.array_equal(products[0], products[6]) and np.array_equal(products, np.tile(twelve, (3, 1)))


def usable_cores(root: Path = Path("/")) -> int:
    """Count the cores that this process may keep busy: those of its affinity, up to the CPU quota of its container.

    A quota may be a part of a core, and is rounded up. Containers are cgroups, of version 2 or 1; of nested ones the
    least quota counts. `root` holds `proc` and `sys`, if this is Linux.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    groups = root / "sys/fs/cgroup"
    with suppress(OSError, ValueError):  # a file that cannot be read sets no bound
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2
                folder, files = groups / path.strip("/"), ["cpu.max"]
            elif "cpu" in controllers.split(","):
                folder, files = groups / "cpu" / path.strip("/"), ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            else:
                continue
            # Seen from a container, the path may be one that exists outside only; its quota is then at the top.
            for group in (folder, *folder.parents):
                with suppress(FileNotFoundError):
                    quota, period = " ".join((group / file).read_text() for file in files).split()
                    if quota not in ("max", "-1"):
                        cores = min(cores, max(1, -(-int(quota) // int(period))))
    return cores
