"""A corpus on a real Ray, on this machine."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("ray", reason="Ray comes with the extra ray")
pytest.importorskip("ray.data", reason="Ray comes with the extra ray")
from e5ref.corpus.writing import find_parts
from tests.measure.corpus import kills

pytestmark = pytest.mark.slow

RAY = """
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
"""


def on_ray(rows, folder):
    """The command on a Ray of two actors, which it finds started."""
    words = kills.command(rows, folder)
    words[2] = RAY + words[2]
    return [*words, "--ray", "local"]


def test_two_actors_write_what_one_process_does_and_a_killed_driver_goes_on(tmp_path):
    kills.write_rows(tmp_path / "rows.parquet", 4000)
    assert kills.run(kills.command(tmp_path / "rows.parquet", tmp_path / "whole"))
    words, folder = on_ray(tmp_path / "rows.parquet", tmp_path / "out"), tmp_path / "out"
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as driver:
        while not [*folder.glob("part-*.parquet")]:
            assert driver.poll() is None, "it ended before a part was there"
            time.sleep(0.1)
        os.kill(driver.pid, signal.SIGKILL)
    there = len(find_parts(folder))
    assert kills.run(words)
    assert there >= 1
    assert kills.read(folder).equals(kills.read(tmp_path / "whole"))


def test_ray_gives_the_rows_of_a_killed_actor_to_a_different_one(tmp_path):
    psutil = pytest.importorskip("psutil", reason="psutil finds the actor to kill")
    kills.write_rows(tmp_path / "rows.parquet", 4000)
    assert kills.run(kills.command(tmp_path / "rows.parquet", tmp_path / "whole"))
    folder, killed = tmp_path / "out", False
    words = on_ray(tmp_path / "rows.parquet", folder)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        while driver.poll() is None and not killed:
            for process in psutil.Process(driver.pid).children(recursive=True):
                if "WriteParts" in " ".join(process.cmdline()) and [*folder.glob(".part-*")]:
                    process.kill()
                    killed = True
                    break
            time.sleep(0.1)
        assert driver.wait(300) == 0
    assert killed
    assert kills.read(folder).equals(kills.read(tmp_path / "whole"))


def test_embed_is_what_map_batches_wants(tmp_path):
    code = """
import numpy as np, ray, e5ref
from e5ref.corpus.ray import Embed
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
dataset = ray.data.from_items([{"id": n, "text": f"the sun {n}"} for n in range(20)])
settings = {"model_name_or_path": "e5ref-nano", "threads": 1}
rows = dataset.map_batches(Embed, fn_constructor_kwargs=settings, concurrency=1, batch_size=8).take_all()
rows.sort(key=lambda row: row["id"])
expected = e5ref.load("e5ref-nano").encode_document([row["text"] for row in rows])
assert np.array_equal(np.stack([row["embedding"] for row in rows]), expected)
print("equal")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.endswith("equal\n"), result.stderr
