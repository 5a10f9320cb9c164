"""Ctrl-C, SIGTERM and a terminal that is closed: a command ends within two seconds, and leaves no half-written file."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from e5ref.files.whole import remove_parts

# Seconds in which a command may end by itself: finish what its threads compute, and remove what it has begun.
GRACE = 1.0

# Windows has two of them.
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(BaseException):
    """A signal asks for the end. It is no `Exception`, for nobody to handle it on the way.

    Attributes:
        code: what the process is to exit with, by the custom of shells.
    """

    def __init__(self, number: int) -> None:
        """Take the signal's number."""
        self.code = 128 + number


@contextmanager
def stops_soon() -> Iterator[None]:
    """Raise `Stopped` in the main thread at a signal; end the process if it has not ended after `GRACE` seconds.

    Python sees a signal between two of its own steps only, and a compiler or a large product is one step. The system
    however writes the signal's number to a pipe at once, and a thread reads it there.
    """
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return
    reader, writer = os.pipe()
    if os.name == "posix":
        os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # What is ignored stays so: nohup and a shell's & ask for that.
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    handlers = {number: signal.signal(number, _raise) for number in heeded}
    thread = threading.Thread(target=_end_after_grace, args=(reader,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        os.write(writer, b"\0")  # which ends the thread
        thread.join()
        os.close(writer)
        os.close(reader)


@contextmanager
def stops_in_its_own_time() -> Iterator[None]:
    """Let what runs inside, a server, handle signals; nothing ends the process meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wakeup = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise Stopped(number)


def _end_after_grace(reader: int) -> None:
    while number := os.read(reader, 1)[0]:
        if number in SIGNALS:
            time.sleep(GRACE)
            end(128 + number)


def end(code: int) -> NoReturn:
    """End the process on the spot, without waiting for threads."""
    try:
        remove_parts()
        sys.stderr.write("Stopped.\n")
        sys.stderr.flush()
    finally:  # also if nobody is there to read it, as when the terminal was closed
        os._exit(code)
