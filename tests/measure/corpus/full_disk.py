"""Fill a disk while a job writes to it, make room, and go on.

mount -t tmpfs -o size=24m none FOLDER; python -m tests.measure.corpus.full_disk FOLDER ROWS
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from e5ref.corpus.writing import find_parts
from tests.measure.corpus import kills

STEP = 2_000_000  # bytes of room that are given back at a time


def measure(disk: Path, rows: int) -> dict[str, int]:
    """Run a job on a disk with next to no room, again each time that there is more room.

    Raise if an error is no sentence, if a half-written part is left, or if the end differs from a job's with room.
    """
    with tempfile.TemporaryDirectory() as place:
        kills.write_rows(Path(place) / "rows.parquet", rows)
        assert kills.run(kills.command(Path(place) / "rows.parquet", Path(place) / "whole"))
        whole = kills.read(Path(place) / "whole")
        words = kills.command(Path(place) / "rows.parquet", disk / "out")
        ballast = disk / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                while file.write(bytes(1 << 16)):
                    pass
        except OSError:
            pass  # the disk is full, as it should be
        times_full = 0
        while (result := subprocess.run(words, capture_output=True, text=True, check=False)).returncode:
            times_full += 1
            assert "No space left on device" in result.stderr, result.stderr
            assert "Traceback" not in result.stderr, result.stderr
            left = ballast.stat().st_size
            assert left, "the whole disk is too small for these rows"
            with ballast.open("rb+") as file:
                file.truncate(max(0, left - STEP))
        assert kills.read(disk / "out").equals(whole), "a row is missing, there twice, or of different bits"
        assert not [file for file in (disk / "out").iterdir() if file.name.endswith(".part")]
        return {"rows": rows, "times full": times_full, "parts": len(find_parts(disk / "out"))}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
