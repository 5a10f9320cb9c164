"""Golden kits: inputs that expose mistakes and what the float64 reference gives for them, for ports to be tested on."""

import itertools
import json
from collections.abc import Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

import e5ref
from e5ref.encoder import E5
from e5ref.files.whole import written_whole
from e5ref.parity.golden.readme import readme
from e5ref.parity.judge.compare import FACTOR, Comparison, compare, expected_errors
from e5ref.parity.runs import check
from e5ref.parity.runs.recording import point_shapes, record_reference
from e5ref.parity.runs.rounding import ErrorSum, text_rows
from e5ref.parity.runs.run import DTYPES, Run, RunError, read_run, write_run_content
from e5ref.terminal.progress import progress_bar

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
WORDS = ("plants", "need", "light", "and", "water", ",", "how", "much", "protein", "should", "a", "female", "eat", "?")

# Which points of a batch a kit of each size holds. A mistake in a layer shows in the first, one in how layers or
# weights are put together in a later output; whatever else goes wrong, in the vectors.
VECTORS = ("pooled", "normalized")
STATES = ("embeddings", "layers.0.*", "layers.*.output", "last_hidden_state", *VECTORS)
Size = Literal["small", "full"]
POINTS: dict[Size, dict[str, tuple[str, ...]]] = {
    "small": {"alone": STATES, "ragged": STATES, "reversed": VECTORS, "traps": VECTORS, "long": VECTORS},
    "full": {"alone": ("*",), "ragged": ("*",)}
    | dict.fromkeys(("reversed", "traps", "long"), ("last_hidden_state", *VECTORS)),
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
    while encoder.tokenizer([longer := f"{text} {next(words)}"]).n_tokens[0] <= tokens:
        text = longer
    # What is left of the room is less than a word of several tokens.
    return text + " a" * int(tokens - encoder.tokenizer([text]).n_tokens[0])


def write_kit(
    model_name_or_path: str | Path, folder: Path, *, size: Size = "small", revision: str | None = None
) -> None:
    """Write a golden kit; the same model gives the same bytes on the same machine.

    Args:
        model_name_or_path: a hub name or a folder.
        folder: where to; it is made if it does not exist, and files of a kit that are there are replaced.
        size: "small" or "full": see `POINTS`.
        revision: as in `e5ref.load`.

    Raises:
        CheckpointError: as `e5ref.load`.
        ValueError: an unknown size, or a folder that holds other files.
    """
    if size not in POINTS:
        raise ValueError(f"size is {size!r}, but must be one of {', '.join(POINTS)}")
    if folder.exists() and any(folder.iterdir()) and not (folder / KIT).exists():
        raise ValueError(f"{folder}: holds something else than a golden kit; give a new folder, or an empty one")
    encoder = e5ref.load(model_name_or_path, revision=revision, dtype="float64", truncation="allow")
    texts = kit_texts(encoder)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:  # which get their names only when all are there

        def new_file(name: str) -> BinaryIO:
            return files.enter_context(written_whole(folder.resolve() / name))

        batches: dict[str, dict[str, Any]] = {}
        points = POINTS[size].items()
        bar = files.enter_context(progress_bar(len(points), "golden", "batch"))
        for batch, patterns in points:
            run = _truth(encoder, texts[batch], patterns)
            write_run_content(run, new_file(f"{batch}.safetensors"))
            bar.update()
            batches[batch] = {
                "texts": texts[batch],
                "tokens": run.input_ids.shape[1],
                "points": list(run.points),
                "tolerances": _tolerances(run),
            }
        kit = {"format": FORMAT, "size": size, "factor": FACTOR, "reference": run.provenance, "batches": batches}
        new_file(KIT).write((json.dumps(kit, ensure_ascii=False, indent=1) + "\n").encode())
        start, *_, end = encoder.tokenizer.token_strings(encoder.tokenizer(["a"]).ids)
        text = readme(kit, encoder.checkpoint.config, start, end)
        new_file("README.md").write(text.encode())
        new_file("check.py").write(Path(check.__file__).read_bytes())


def check_kit(kit: Path, runs: Path, *, only: Sequence[str] | None = None) -> dict[str, Comparison | RunError]:
    """Judge a port's runs by a kit.

    Args:
        kit: the kit's folder.
        runs: a folder that holds a run for each batch of the kit, named as there.
        only: names, or patterns such as "layers.*.output", of the points to judge; batches without any are left out.

    Returns:
        Batch → the comparison of the kit's points, or why there is none.

    Raises:
        RunError: the kit is none, or damaged.
        ValueError: `only` fits no point of the kit.
    """
    try:
        content = json.loads((kit / KIT).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"it is of format {content['format']!r}, but this e5ref reads {FORMAT!r}")
        if content["factor"] != FACTOR:  # its own checker would come to another verdict
            raise ValueError(
                f"it allows {content['factor']} times what rounding costs, this e5ref {FACTOR}: use check.py"
            )
        points = {batch: entry["points"] for batch, entry in content["batches"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{kit}: is no golden kit that this e5ref can judge by ({error}); write one with e5ref golden"
        ) from None
    results: dict[str, Comparison | RunError] = {}
    for batch, names in points.items():
        chosen = [name for name in names if only is None or any(fnmatchcase(name, pattern) for pattern in only)]
        if not chosen:
            continue
        reference = read_run(kit / f"{batch}.safetensors")
        try:
            run = read_run(runs / f"{batch}.safetensors")
        except RunError as error:
            results[batch] = error
        else:
            results[batch] = compare(run, reference, only=chosen)  # what this raises is the kit's
    if not results:
        raise ValueError(f"no point of the kit is one of {', '.join(only or ())}")
    return results


def _truth(encoder: E5, texts: list[str], patterns: Sequence[str]) -> Run:
    """Run a batch in float64. It is kept in float32, whose rounding is small beside that of a whole forward pass."""
    points = point_shapes(encoder.checkpoint, *encoder.tokenize(texts)["input_ids"].shape)
    names = [name for name in points if any(fnmatchcase(name, pattern) for pattern in patterns)]
    run = record_reference(encoder, texts, names)
    provenance = run.provenance
    if not provenance["revision"]:  # a folder of this machine
        provenance["model"] = Path(provenance["model"]).resolve().name
    arrays: dict[str, NDArray[Any]] = {name: array.astype(np.float32) for name, array in run.points.items()}
    ids = {"input_ids": run.input_ids.astype(np.int32), "attention_mask": run.attention_mask.astype(np.int32)}
    return Run(ids | arrays, {**run.metadata, "provenance": json.dumps(provenance, ensure_ascii=False)})


def _tolerances(run: Run) -> dict[str, dict[str, dict[str, float]]]:
    """Return the errors that pass: dtype → point → "max" and "rms"."""
    tolerances: dict[str, dict[str, dict[str, float]]] = {dtype: {} for dtype in DTYPES}
    for name, array in run.points.items():
        scale = ErrorSum()
        for text in range(len(array)):
            scale.add(text_rows(array, run.attention_mask, text))
        for dtype, points in tolerances.items():
            largest, rms = expected_errors(run, name, dtype, scale)
            points[name] = {"max": FACTOR * largest, "rms": FACTOR * rms}
    return tolerances
