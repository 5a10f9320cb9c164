"""Golden kits: inputs that expose mistakes and what the float64 reference gives for them, for ports to be tested on."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

import e5ref
from e5ref.encoder import E5, PROGRESS_DELAY
from e5ref.files import written_whole
from e5ref.parity.kit_readme import readme
from e5ref.parity.record import choose_points, point_shapes, run_texts
from e5ref.parity.run import Run, read_run, write_run
from e5ref.parity.runners import numpy_runner

FORMAT = "e5ref-kit 1"
KIT = "kit.json"

# Short texts of different lengths.
RAGGED = ["query: how much protein should a female eat", "a", "passage: Café, 日本", "", "query: plants need light"]

# What tokenizers, and those who call them, trip over.
TRAPS = [
    "query: how much protein",
    "query:how much protein",  # no space after the colon
    "Query: how much protein",
    " query:  how   much protein ",
    "how much protein",  # no prompt
    "passage: how much protein",  # the other one
    "query: query: how much protein",
    "QUERY: HOW MUCH PROTEIN?",
    "query: how much protein",  # the first again: the same vector
    " ",
    "passage: naïve café, señor Ångström, Trần Hưng Đạo",
    "passage: nai\u0308ve cafe\u0301, sen\u0303or",  # accents apart from their letters
    "passage: 日本語の文章と中文句子、한국어 𠀀𪚥",
    "passage: مرحبا بالعالم שלום עולם",
    "passage: I ❤️ transformers 🙂👩‍👩‍👧‍👦🏳️‍🌈",
    "passage: a\x00b\x01c\x7fd\x85e\ufffdf",  # control characters
    "passage: one\ntwo\r\nthree\tfour\u2028five",
    "passage: a\u200bb\u200dc\ufeffd\u00ade\u00a0f\u3000g",  # zero width, soft hyphen, other spaces
    "passage: [CLS] hello [SEP] [PAD] <s> </s> [MASK] [UNK]",  # special tokens in the text
    "passage: 3.14159 -- $1,000.00 (50%) <html> a_b#c",
    "passage: ﬁne ① Ⅳ ｆｕｌｌ ㎏ İstanbul ıssız STRASSE straße",
    "passage: " + "a" * 101,  # WordPiece gives up on words of more than 100 letters
    "passage: " + "protein " * 16,
]

# Words of the long texts, no two neighbours alike.
WORDS = "plants need light and water , what a female should eat is of the green cat and much protein".split()

# Which points of a batch a kit of each size holds. A mistake in a layer shows in the first, one in how layers or weights
# are put together in a later output; whatever else goes wrong, in the vectors.
VECTORS = ("pooled", "normalized")
STATES = ("embeddings", "layers.0.*", "layers.*.output", "last_hidden_state", *VECTORS)
Size = Literal["small", "full"]
POINTS: dict[Size, dict[str, tuple[str, ...]]] = {
    "small": {"alone": STATES, "ragged": STATES, "reversed": VECTORS, "traps": VECTORS, "long": VECTORS},
    "full": {"alone": ("*",), "ragged": ("*",), "reversed": ("*",), "traps": VECTORS, "long": VECTORS},
}


def kit_texts(encoder: E5) -> dict[str, list[str]]:
    """Return the texts of a kit's batches: name of the batch → texts as the tokenizer gets them."""
    most = encoder.tokenizer.max_length
    return {
        "alone": ["a"],
        "ragged": RAGGED,
        "reversed": RAGGED[::-1],
        "traps": TRAPS,
        "long": [long_text(encoder, most), "query: a", long_text(encoder, most + 1)],
    }


def long_text(encoder: E5, tokens: int) -> str:
    """Make a passage of exactly so many tokens, [CLS] and [SEP] counted."""
    text, words = "passage:", itertools.cycle(WORDS)
    while encoder.tokenizer([longer := f"{text} {next(words)}"])[0].n_tokens <= tokens:
        text = longer
    # What is left of the room is less than a word of several tokens.
    return text + " a" * (tokens - encoder.tokenizer([text])[0].n_tokens)


def write_kit(
    model_name_or_path: str | Path, folder: Path, *, size: Size = "small", revision: str | None = None
) -> None:
    """Write a golden kit.

    Args:
        model_name_or_path: a hub name or a folder.
        folder: where to; it is made if it does not exist, and files of a kit that are there are replaced.
        size: "small" or "full": see `POINTS`.
        revision: as in `e5ref.load`.

    Raises:
        CheckpointError: as `e5ref.load`.
        ValueError: an unknown size.
    """
    if size not in POINTS:
        raise ValueError(f"size is {size!r}, but must be one of {', '.join(POINTS)}")
    encoder = e5ref.load(model_name_or_path, revision=revision, dtype="float64", truncation="allow")
    folder.mkdir(parents=True, exist_ok=True)
    texts = kit_texts(encoder)
    batches: dict[str, Any] = {}
    with tqdm(total=len(texts), desc="golden", unit="batch", delay=PROGRESS_DELAY, disable=None) as progress:
        for name, patterns in POINTS[size].items():
            run = _truth(encoder, texts[name], patterns)
            write_run(run, folder / f"{name}.safetensors")
            batches[name] = {"texts": texts[name], "points": list(run.arrays)[2:], "tolerances": tolerances(run)}
            progress.update()
    provenance = json.loads(run.metadata["provenance"])
    kit = {"format": FORMAT, "size": size, "reference": provenance, "batches": batches}
    content = json.dumps(kit, ensure_ascii=False, indent=1) + "\n"
    readme = README.format(model=provenance["model"], batches=_table(folder, batches))
    for name, text in ((KIT, content), ("README.md", readme), ("check.py", CHECKER.read_text(encoding="utf-8"))):
        with written_whole(folder.resolve() / name) as file:
            file.write(text.encode())


def _truth(encoder: E5, texts: list[str], patterns: Sequence[str]) -> Run:
    """Run a batch in float64, and keep the points in float32, which is exact enough for any port but one in float64."""
    tokens = encoder.tokenize(texts)["input_ids"].shape
    names, _ = choose_points(point_shapes(encoder.checkpoint, *tokens), patterns)
    run = run_texts(encoder, numpy_runner(encoder, names), texts, names)
    arrays = {name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in run.arrays.items()}
    provenance = json.loads(run.metadata["provenance"])
    provenance["model"] = Path(provenance["model"]).name if not provenance["revision"] else provenance["model"]
    ...
