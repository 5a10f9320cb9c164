"""How `e5ref serve` fares under load, beside `encode` of the same texts in the same run.

    python -m tests.measure.serve.load MODEL TEXTS [--clients 1,8,64] [--per-request 1,32] [--seconds 10]

TEXTS has a text a line. "At once" is `encode` called with as many texts as the clients have under way: the service
cannot put more of them together. Every vector that comes back is compared with the one of `encode`, bit by bit. CPU is
the processor time of a text in `encode` over that of one in the service, HTTP and all: a busy machine changes it
little. sentence-transformers stands behind the same kind of server beside it (tests/measure/serve/peer.py).
Last comes overload: clients send three times what the queue holds, until SIGTERM ends the service under load.
"""

import asyncio
import base64
import itertools
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import click
import numpy as np

import e5ref


@dataclass
class Load:
    """What came back."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    texts: int = 0
    wrong: int = 0

    def quantile(self, share: float) -> float:
        """Milliseconds in which this share of the requests was answered."""
        return 1000 * float(np.quantile(self.seconds, share)) if self.seconds else float("nan")


class Texts:
    """Texts, their vectors, and requests of them in turn."""

    def __init__(self, texts: list[str], vectors: np.ndarray, model: str, size: int) -> None:
        self.texts, self.vectors, self.model = texts, vectors, model
        self.starts = itertools.cycle(range(0, len(texts) - size + 1, size))
        self.size = size

    async def ask(self, session: aiohttp.ClientSession, url: str, load: Load) -> None:
        """Send the next request, and look at each vector that comes back."""
        start = next(self.starts)
        rows = slice(start, start + self.size)
        body = {"model": self.model, "input": self.texts[rows], "encoding_format": "base64", "truncate": True}
        begin = time.perf_counter()
        async with session.post(f"{url}/v1/embeddings", json=body) as answer:
            load.statuses[str(answer.status)] += 1
            if answer.status != 200:
                await answer.read()
                await asyncio.sleep(0.05)  # a client that heeds Retry-After would leave the service alone
                return
            data = (await answer.json())["data"]
        load.seconds.append(time.perf_counter() - begin)
        found = np.array([np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in data])
        load.texts += len(found)
        load.wrong += int((found != self.vectors[rows]).any(axis=1).sum())


async def drive(url: str, texts: Texts, clients: int, seconds: float) -> Load:
    """Let clients ask, each again as soon as it is answered; a service that has gone ends it."""
    load = Load()
    end = time.perf_counter() + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        while time.perf_counter() < end:
            try:
                await texts.ask(session, url, load)
            except aiohttp.ClientConnectorError:
                load.statuses["not accepted"] += 1
                return
            except (aiohttp.ClientError, TimeoutError) as error:
                load.statuses[type(error).__name__] += 1

    connector = aiohttp.TCPConnector(limit=0, force_close=False)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(120)) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))
    return load


def serve(model: str, *options: str) -> tuple[subprocess.Popen, str]:
    """Start the service on a free port."""
    return start("-m", "e5ref", "serve", "--model", model, "--port", "0", *options)


def serve_peer(model: str, threads: int) -> tuple[subprocess.Popen, str]:
    """Start sentence-transformers behind a server, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = str(e5ref.read_checkpoint(model).folder)
    return start("-m", "tests.measure.serve.peer", folder, str(port), str(threads))


def start(*options: str) -> tuple[subprocess.Popen, str]:
    """Start a server; return it and its address once it says that it serves."""
    log = tempfile.NamedTemporaryFile("r", suffix=".log")  # noqa: SIM115
    command = [sys.executable, *options]
    process = subprocess.Popen(command, stderr=open(log.name, "w"))  # noqa: SIM115
    while not (found := re.search(r"^Serving .* at (\S+) ", Path(log.name).read_text(), re.MULTILINE)):
        if process.poll() is not None:
            raise SystemExit(Path(log.name).read_text())
        time.sleep(0.1)
    time.sleep(0.5)
    return process, found[1]


def cpu_seconds(process: subprocess.Popen) -> float:
    """Processor time of a process so far."""
    user, system = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def memory(process: subprocess.Popen) -> float:
    """Resident memory of a process, in MiB."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def run_encode(model: e5ref.E5, texts: list[str], size: int, seconds: float) -> tuple[float, float]:
    """Call `encode` with `size` texts at a time; return texts per second, and the processor time of one."""
    count, begin, cpu = 0, time.perf_counter(), time.process_time()
    starts = itertools.cycle(range(0, len(texts) - size + 1, size))
    while (passed := time.perf_counter() - begin) < seconds:
        start = next(starts)
        model.encode(texts[start : start + size], truncation="allow")
        count += size
    return count / passed, (time.process_time() - cpu) / count


def measured(url: str, texts: Texts, clients: int, seconds: float) -> tuple[Load, float]:
    """Drive a service; return what came back, and texts per second."""
    begin = time.perf_counter()
    load = asyncio.run(drive(url, texts, clients, seconds))
    return load, load.texts / (time.perf_counter() - begin)


@click.command()
@click.argument("model")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--clients", default="1,8,64", show_default=True)
@click.option("--per-request", default="1,32", show_default=True)
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--overload-seconds", default=20.0, show_default=True)
@click.option("--threads", default=len(os.sched_getaffinity(0)), show_default=True)
def main(
    model: str, path: Path, clients: str, per_request: str, seconds: float, overload_seconds: float, threads: int
) -> None:
    """Measure."""
    texts = path.read_text(encoding="utf-8").splitlines()
    encoder = e5ref.load(model, threads=threads)
    vectors = encoder.encode(texts, truncation="allow", show_progress_bar=False)
    name = Path(model).name
    click.echo(
        "| clients | texts each | encode, texts/s | at once, texts/s | served, texts/s | share | share of at once "
        "| CPU | p50, ms | p99, ms | sentence-transformers served, texts/s | p50, ms | p99, ms |"
    )
    click.echo("| ---: " * 13 + "|")
    process, url = serve(model, "--threads", str(threads))
    peer, peer_url = serve_peer(model, threads)
    try:
        asyncio.run(drive(peer_url, Texts(texts, vectors, name, 1), 1, seconds / 2))  # its first call takes longer
        for size, number in itertools.product(map(int, per_request.split(",")), map(int, clients.split(","))):
            # One client waits for each answer, as a loop over `encode` does; many are what `encode` gets as a list.
            together = size if number == 1 else min(1024, len(texts))
            base, base_cpu = run_encode(encoder, texts, together, seconds / 2)
            at_once, _ = run_encode(encoder, texts, min(size * number, len(texts)), seconds / 2)
            before = cpu_seconds(process)
            load, served = measured(url, Texts(texts, vectors, name, size), number, seconds)
            cpu = (cpu_seconds(process) - before) / load.texts
            assert not load.wrong, f"{load.wrong} vectors are not those of their texts"
            theirs, served_by_peer = measured(peer_url, Texts(texts, vectors, name, size), number, seconds / 2)
            click.echo(
                f"| {number} | {size} | {base:,.0f} | {at_once:,.0f} | {served:,.0f} | {served / base:.2f} "
                f"| {served / at_once:.2f} | {base_cpu / cpu:.2f} "
                f"| {load.quantile(0.5):.1f} | {load.quantile(0.99):.1f} "
                f"| {served_by_peer:,.0f} | {theirs.quantile(0.5):.1f} | {theirs.quantile(0.99):.1f} |"
            )
    finally:
        process.kill()
        peer.kill()

    process, url = serve(model, "--threads", str(threads), "--max-waiting", "256")
    try:
        overloading = Texts(texts, vectors, name, 32)
        asyncio.run(drive(url, overloading, 24, seconds))
        before = memory(process)
        load = asyncio.run(drive(url, overloading, 24, overload_seconds))
        click.echo(
            f"\noverload, {overload_seconds:g} s: {dict(load.statuses)}, {load.texts:,} vectors, {load.wrong} wrong; "
            f"memory {before:.0f} MiB before, {memory(process):.0f} MiB after"
        )

        async def stopped() -> Load:
            task = asyncio.create_task(drive(url, overloading, 16, 60))
            await asyncio.sleep(3)
            process.send_signal(signal.SIGTERM)
            return await task

        load = asyncio.run(stopped())
        click.echo(
            f"SIGTERM under load: {dict(load.statuses)}, {load.texts:,} vectors, {load.wrong} wrong; exit "
            f"{process.wait()}"
        )
    finally:
        process.kill()


if __name__ == "__main__":
    main()
