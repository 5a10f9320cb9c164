"""Embed very many texts, for docs/laboratory/memory.md: `python -m tests.measure.endurance FOLDER TEXTS SVG [COUNT]`.

They come from a generator, a file's lines again and again until COUNT is reached. Memory is what Linux calls resident.
"""

import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import e5ref

PARTS = 20  # of the texts, after each of which memory and speed are taken

LEFT, TOP, WIDTH, HEIGHT = 56, 24, 648, 236  # of the plot's inside, in pixels
MEMORY, SPEED = "#2a78d6", "#d9822b"


def resident_mib() -> float:
    """Return the memory of this process that is resident, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def plot(texts: Sequence[int], memory: Sequence[float], speed: Sequence[float]) -> str:
    """Draw memory and speed after so many texts, each on its own scale from 0, as an SVG."""

    def line(values: Sequence[float], top: float, colour: str) -> str:
        xs = (LEFT + WIDTH * count / texts[-1] for count in texts)
        points = " ".join(
            f"{x:.1f},{TOP + HEIGHT * (1 - value / top):.1f}" for x, value in zip(xs, values, strict=True)
        )
        return f'<polyline fill="none" stroke="{colour}" stroke-width="2.5" points="{points}"/>'

    # Round numbers at the quarters, and room above the lines.
    most = [4 * float(f"{max(values) / 2.5:.1g}") for values in (memory, speed)]
    body = []
    for quarter in range(5):
        x, y = LEFT + WIDTH * quarter / 4, TOP + HEIGHT * (1 - quarter / 4)
        left, right = (f"{top * quarter / 4:,.0f}" for top in most)
        body += [
            f'<path class="grid" d="M{LEFT} {y}H{LEFT + WIDTH}"/>',
            f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{left}</text>',
            f'<text x="{LEFT + WIDTH + 6}" y="{y + 4}">{right}</text>',
            f'<text x="{x}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{texts[-1] * quarter // 4:,}</text>',
        ]
    body += [
        line(memory, most[0], MEMORY),
        line(speed, most[1], SPEED),
        f'<text x="{LEFT}" y="{TOP - 10}" style="fill:{MEMORY}">resident memory, MiB</text>',
        f'<text x="{LEFT + WIDTH}" y="{TOP - 10}" text-anchor="end" style="fill:{SPEED}">tokens per second</text>',
        f'<text x="{LEFT + WIDTH / 2}" y="{TOP + HEIGHT + 36}" text-anchor="middle">texts embedded</text>',
    ]
    style = "text{fill:#444}.grid{stroke:#8888;stroke-dasharray:2 4}@media(prefers-color-scheme:dark){text{fill:#ccc}}"
    size = f'viewBox="0 0 {LEFT + WIDTH + 56} {TOP + HEIGHT + 40}" font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="Memory and speed">'
    return "\n".join([head, f"<style>{style}</style>", *body, "</svg>"]) + "\n"


def main(folder: str, source: str, svg: str, count: str = "200000") -> None:
    """Print memory and speed for each twentieth of the texts, and draw them."""
    model = e5ref.load(folder, truncation="allow")
    lines = Path(source).read_text(encoding="utf-8").splitlines()
    tokens_before = model.tokenizer(lines).offsets.tolist()

    def tokens(texts: int) -> int:  # of the first so many texts
        repeated, rest = divmod(texts, len(lines))
        return repeated * tokens_before[-1] + tokens_before[rest]

    texts, memory, speed = [0], [resident_mib()], [0.0]
    done, start = 0, time.perf_counter()
    for vectors in model.encode_stream(itertools.islice(itertools.cycle(lines), int(count))):
        done += len(vectors)
        if done == int(count) or done * PARTS >= len(texts) * int(count):
            now = time.perf_counter()
            speed.append((tokens(done) - tokens(texts[-1])) / (now - start))
            texts.append(done)
            memory.append(resident_mib())
            start = now
            print(
                f"{done:9,} texts {tokens(done):11,} tokens {memory[-1]:6.0f} MiB {speed[-1]:8,.0f} tokens/s",
                flush=True,
            )
    Path(svg).write_text(plot(texts[1:], memory[1:], speed[1:]), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
