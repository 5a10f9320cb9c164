"""Kill a job again and again, go on each time, and compare the end with a job that nobody killed.

python -m tests.measure.corpus.kills ROWS KILLS [SEED]
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from e5ref.corpus.writing import find_parts

# The command line, with parts of few rows: as many may be lost at a kill.
CODE = "import e5ref.corpus.job as job; job.PART_BYTES = {bytes}; from e5ref.cli import main; main()"


def command(rows: Path, folder: Path, part_bytes: int = 1 << 20) -> list[str]:
    options = ["--model", "e5ref-nano", "--prompt", "passage", "--keep", "n", "--threads", "1"]
    return [sys.executable, "-c", CODE.format(bytes=part_bytes), "embed", "-i", str(rows), "-o", str(folder), *options]


def write_rows(path: Path, rows: int) -> None:
    texts = [f"the sun is number {number} of {number % 97}" for number in range(rows)]
    table = {"id": [f"row {number}" for number in range(rows)], "text": texts, "n": list(range(rows))}
    pq.write_table(pa.table(table), path, row_group_size=1000)


def run(words: list[str], seconds: float | None = None) -> bool:
    """Run a command, killed with -9 after so many seconds; return whether it had finished."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    assert process.returncode == 0, errors
    return True


def read(folder: Path) -> pa.Table:
    """Read all vectors of a folder, in the order of the input's rows."""
    return pq.read_table([part.path for part in find_parts(folder)]).sort_by("n").replace_schema_metadata()


def measure(place: Path, rows: int, kills: int, seed: int = 0) -> dict[str, int]:
    """Start jobs, kill each at random moments, and start it again until it finishes, until there were enough kills.

    Raise if a folder differs in a row or in a bit from one whose job nobody killed, or if a part is half-written.
    """
    moments = random.Random(seed)
    write_rows(place / "rows.parquet", rows)
    begun = time.monotonic()
    run(command(place / "rows.parquet", place / "whole"))
    seconds = time.monotonic() - begun
    whole = read(place / "whole")
    assert len(whole) == rows
    done = jobs = went_on = 0
    while done < kills:
        folder = place / f"killed{jobs}"
        words = command(place / "rows.parquet", folder)
        while not run(words, moments.uniform(0, seconds)):
            done += 1
            went_on += bool(find_parts(folder)) if folder.is_dir() else False
        jobs += 1
        assert read(folder).equals(whole), "a row is missing, there twice, or of different bits"
        assert not [file for file in folder.iterdir() if file.name.endswith(".part")]
        shutil.rmtree(folder)
    return {"rows": rows, "kills": done, "with finished parts": went_on, "jobs": jobs}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), *map(int, sys.argv[1:]))))
