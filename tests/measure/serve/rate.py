"""The rate of `e5ref serve` by wrk, a client that hardly takes a core: python -m tests.measure.serve.rate MODEL TEXTS.

TEXTS has a text a line. Each row is the median of three rounds: `encode` called with as many texts as the clients have
under way, which is the most that the service can put together; then the service. Install wrk with the system's package
manager. What comes back is not looked at: `load` does that.
"""

import itertools
import json
import re
import statistics
import subprocess
import tempfile
from pathlib import Path

import click

import e5ref
from tests.measure.serve.load import run_encode, serve

# Sends the lines of a file, one after another.
SCRIPT = """
local bodies, n = {}, 0
for line in io.lines(FILE) do bodies[#bodies + 1] = line end
request = function()
  n = n % #bodies + 1
  return wrk.format("POST", "/v1/embeddings", {["Content-Type"] = "application/json"}, bodies[n])
end
"""


def write_script(folder: Path, texts: list[str], model: str, size: int) -> Path:
    """Write what wrk runs, for requests of `size` texts each."""
    bodies, script = folder / f"bodies-{size}", folder / f"post-{size}.lua"
    parts = [texts[start : start + size] for start in range(0, len(texts) - size + 1, size)]
    requests = ({"model": model, "input": part, "encoding_format": "base64", "truncate": True} for part in parts)
    bodies.write_text("".join(f"{json.dumps(request)}\n" for request in requests))
    script.write_text(f"FILE = {json.dumps(str(bodies))}\n{SCRIPT}")
    return script


def run_wrk(url: str, script: Path, clients: int, seconds: float) -> tuple[float, str, str]:
    """Return requests a second, and the median and 99th percentile of their times as wrk writes them."""
    options = [f"-c{clients}", "-t1", f"-d{round(seconds)}", "--timeout", "60", "--latency", "-s", str(script)]
    printed = subprocess.run(["wrk", *options, url], capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in printed, printed
    patterns = (r"Requests/sec:", r"^ +50%", r"^ +99%")
    rate, half, most = (re.search(rf"{pattern}\s*(\S+)", printed, re.MULTILINE)[1] for pattern in patterns)
    return float(rate), half, most


@click.command()
@click.argument("model")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--seconds", default=6.0, show_default=True)
def main(model: str, path: Path, seconds: float) -> None:
    """Measure."""
    texts = path.read_text(encoding="utf-8").splitlines()
    encoder = e5ref.load(model)
    process, url = serve(model)
    click.echo("| clients | texts each | at once, texts/s | served, texts/s | share | p50 | p99 |")
    click.echo("| ---: " * 7 + "|")
    try:
        with tempfile.TemporaryDirectory() as folder:
            for size, clients in itertools.product((1, 32), (1, 8, 64)):
                script = write_script(Path(folder), texts, Path(model).name, size)
                rounds = []
                for _ in range(3):
                    at_once, _ = run_encode(encoder, texts, min(size * clients, len(texts)), seconds / 2)
                    rate, half, most = run_wrk(url, script, clients, seconds)
                    rounds.append((size * rate / at_once, at_once, size * rate, half, most))
                at_once, served, share = (statistics.median(row[i] for row in rounds) for i in (1, 2, 0))
                _, _, _, half, most = sorted(rounds)[1]
                click.echo(f"| {clients} | {size} | {at_once:,.0f} | {served:,.0f} | {share:.2f} | {half} | {most} |")
    finally:
        process.kill()


if __name__ == "__main__":
    main()
