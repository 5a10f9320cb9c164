"""Ctrl-C, SIGTERM, a closed terminal and kill -9: how a command ends, and what it leaves."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from e5ref.files.whole import written_whole

EMBED = [sys.executable, "-m", "e5ref", "embed", "--model", "e5ref-nano"]


@contextmanager
def embedding_without_end(output: Path) -> Iterator[subprocess.Popen]:
    """Embed the same text again and again; begin once the first vectors are in a file beside `output`."""
    with (
        subprocess.Popen(["yes", "query: how do plants eat"], stdout=subprocess.PIPE) as texts,
        subprocess.Popen([*EMBED, "-i", "-", "-o", output], stdin=texts.stdout, stderr=subprocess.PIPE) as process,
    ):
        try:
            while not any(part.stat().st_size > 10_000 for part in output.parent.glob(f".{output.name}.*.part")):
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.02)
            yield process
        finally:
            texts.kill()
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_and_leaves_nothing(number, tmp_path):
    with embedding_without_end(tmp_path / "out.npy") as process:
        process.send_signal(number)
        assert process.stderr.read() == b"Stopped.\n"
        assert process.wait() == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_what_was_killed_is_cleared_away_by_the_next_run(tmp_path):
    output = tmp_path / "out.npy"
    with embedding_without_end(output) as process:
        process.kill()
        process.wait()
    assert len(list(tmp_path.iterdir())) == 2
    subprocess.run([*EMBED, "query: cat", "-o", output, "--force"], check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npy", "out.npy.provenance.json"]
    assert np.load(output).shape == (1, 256)


def test_what_another_process_writes_is_left_alone(tmp_path):
    with embedding_without_end(tmp_path / "out.npy") as process:
        with written_whole(tmp_path / "out.npy") as file:
            file.write(b"ours")
        assert process.poll() is None
        assert len(list(tmp_path.glob(".out.npy.*.part"))) == 2  # its vectors, and where they come from


# A step of Python's that takes a minute, such as a compiler's: in it, a handler of Python's own is not called.
LONG_STEP = """
import hashlib, pathlib, sys
from e5ref.files.whole import written_whole
from e5ref.terminal.stopping import stops_soon
with stops_soon(), written_whole(pathlib.Path(sys.argv[1])):
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 100_000_000)
"""


def test_a_long_step_does_not_keep_a_command_from_ending(tmp_path):
    with subprocess.Popen([sys.executable, "-c", LONG_STEP, tmp_path / "out"], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"begun\n"
        process.terminate()
        assert process.wait() == 143  # if it had to wait for the step, that would be an exception's
    assert list(tmp_path.iterdir()) == []


def test_nobody_need_read_that_it_stopped(tmp_path):
    """As when the terminal was closed: standard error is a pipe without a reader."""
    with subprocess.Popen(
        [sys.executable, "-c", LONG_STEP, tmp_path / "out"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"begun\n"
        process.stderr.close()
        process.send_signal(signal.SIGHUP)
        assert process.wait() == 129
    assert list(tmp_path.iterdir()) == []


WRITE_OFTEN = """
import pathlib, sys
from e5ref.files.whole import written_whole
for number in range(300):
    with written_whole(pathlib.Path(sys.argv[1])) as file:
        file.write(b"whole")
"""


def test_writers_of_one_file_do_not_hurt_each_other(tmp_path):
    """Whoever is the last has written it, and nobody loses what it writes."""
    command = [sys.executable, "-c", WRITE_OFTEN, tmp_path / "out"]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    assert [writer.communicate()[1] for writer in writers] == [b"", b"", b""]
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("out", b"whole")]


def test_a_signal_that_the_caller_ignores_stays_ignored():
    code = """
import os, signal
from e5ref.terminal.stopping import stops_soon
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
before = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
with stops_soon():
    os.kill(os.getpid(), signal.SIGHUP)
assert (signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)) == before
print("ended by itself")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "ended by itself\n"
