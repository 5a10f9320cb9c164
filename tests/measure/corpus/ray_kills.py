"""Kill drivers and actors of a job on a Ray cluster of two nodes on this machine, which one node leaves and joins.

pip install psutil; python -m tests.measure.corpus.ray_kills ROWS KILLS
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from e5ref.corpus.writing import find_parts
from tests.measure.corpus import kills

os.environ["RAY_AUTH_MODE"] = "disabled"  # a cluster of this machine alone

HEAD, NODE = "127.0.0.1:6399", "e5ref_node"
RAY = [str(Path(sys.executable).with_name("ray")), "start", "--num-cpus=1", "--disable-usage-stats"]


def start_head() -> None:
    command = [*RAY, "--head", "--include-dashboard=false", "--node-ip-address=127.0.0.1", f"--port={HEAD[-4:]}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def join() -> None:
    """Start a second node."""
    command = [*RAY, f"--address={HEAD}", "--node-ip-address=127.0.0.1", f'--resources={{"{NODE}": 1}}']
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def leave() -> None:
    """Kill the second node with -9, and with it its actor."""
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if "raylet/raylet" in words and NODE in words:
            process.kill()


def kill_actor() -> bool:
    """Kill one actor with -9; return whether there was one."""
    for process in psutil.process_iter(["cmdline"]):
        if "WriteParts" in " ".join(process.info["cmdline"] or ()):
            process.kill()
            return True
    return False


def measure(place: Path, rows: int, wanted: int) -> dict[str, int]:
    """Kill this often, and go on each time; raise if a folder differs from one whose job nobody killed."""
    moments = random.Random(0)
    kills.write_rows(place / "rows.parquet", rows)
    assert kills.run(kills.command(place / "rows.parquet", place / "whole"))
    whole = kills.read(place / "whole")
    killed: Counter[str] = Counter()
    has_node = True
    while killed["driver"] + killed["actor"] < wanted:
        folder = place / "out"
        words = [*kills.command(place / "rows.parquet", folder), "--ray", HEAD]
        finished = False
        while not finished:
            with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as driver:
                before = len(find_parts(folder)) if folder.is_dir() else 0
                while driver.poll() is None and (not folder.is_dir() or len(find_parts(folder)) <= before):
                    time.sleep(0.1)
                time.sleep(moments.uniform(0, 2))
                if driver.poll() is None:
                    kind = moments.choice(["driver", "actor", "node"])
                    if kind == "driver":
                        driver.send_signal(signal.SIGKILL)
                        killed["driver"] += 1
                    elif kind == "actor":
                        killed["actor"] += kill_actor()
                    else:
                        leave() if has_node else join()
                        has_node = not has_node
                        killed["node left" if not has_node else "node joined"] += 1
                _, errors = driver.communicate()
                assert driver.returncode in (0, -signal.SIGKILL), errors
                finished = not driver.returncode
        assert kills.read(folder).equals(whole), "a row is missing, there twice, or of different bits"
        assert not [file for file in folder.iterdir() if file.name.endswith(".part")]
        shutil.rmtree(folder)
        killed["jobs"] += 1
    return dict(killed)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        start_head()
        join()
        try:
            print(json.dumps(measure(Path(folder), *map(int, sys.argv[1:]))))
        finally:
            subprocess.run([RAY[0], "stop", "--force"], check=True, stdout=subprocess.DEVNULL)
