"""Golden kits, which test ports: inputs that expose mistakes, and what the float64 reference gives for them."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from e5ref.encoder import E5, load
from e5ref.files.whole import written_whole
from e5ref.parity.golden.readme import modules_readme, readme
from e5ref.parity.judge.comparison import Comparison, compare, expected_errors
from e5ref.parity.modules.recording import record_modules
from e5ref.parity.modules.tree import open_tree
from e5ref.parity.runs import check
from e5ref.parity.runs.check import DTYPES, matching
from e5ref.parity.runs.recording import point_shapes, record_reference
from e5ref.parity.runs.rounding import FACTOR, ErrorSum, costs_in, token_values
from e5ref.parity.runs.run import Run, RunError, read_run, write_run_content
from e5ref.terminal.progress import progress_bar

FORMAT = "e5ref-kit 1"
KIT = "kit.json"

# Short texts of different lengths.
RAGGED = ["query: how much protein should a female eat", "a", "passage: Café, 日本", "", "query: plants need light"]

# Traps for tokenizers, and for code that calls them.
TRAPS = [
    "query: how much protein",
    "query:how much protein",  # no space after the colon
    "Query: how much protein",
    " query:  how   much protein ",
    "how much protein",  # no prompt
    "passage: how much protein",  # the other prompt
    "query: query: how much protein",
    "QUERY: HOW MUCH PROTEIN?",
    "query: how much protein",  # the first text again: the same vector
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

# Words of the long texts; neighbours always differ.
WORDS = ("plants", "need", "light", "and", "water", ",", "how", "much", "protein", "should", "a", "female", "eat", "?")

# Batch → texts, for a tree of modules.
MODULES_TEXTS = {"alone": ["a"], "ragged": RAGGED, "reversed": RAGGED[::-1], "traps": TRAPS}

# Size of a kit → batch → its points. A mistake inside a layer shows in the first layer. A mistake in how layers are put
# together shows in a later output. All other mistakes show in the vectors.
VECTORS = ("pooled", "dense", "normalized")
STATES = ("embeddings", "layers.0.*", "layers.*.output", "last_hidden_state", *VECTORS)
Size = Literal["small", "full"]
POINTS: dict[Size, dict[str, tuple[str, ...]]] = {
    "small": {"alone": STATES, "ragged": STATES, "reversed": VECTORS, "traps": VECTORS, "long": VECTORS},
    "full": {"alone": ("*",), "ragged": ("*",)}
    | dict.fromkeys(("reversed", "traps", "long"), ("last_hidden_state", *VECTORS)),
}


def kit_texts(encoder: E5) -> dict[str, list[str]]:
    """Return a kit's batches: name → texts as the tokenizer gets them."""
    most = encoder.tokenizer.max_length
    return {
        "alone": ["a"],
        "ragged": RAGGED,
        "reversed": RAGGED[::-1],
        "traps": TRAPS,
        "long": [long_text(encoder, most), "query: a", long_text(encoder, most + 1)],
    }


def long_text(encoder: E5, tokens: int) -> str:
    """Make a passage of exactly `tokens` tokens, [CLS] and [SEP] counted."""
    text, words = "passage:", itertools.cycle(WORDS)
    while encoder.tokenizer([longer := f"{text} {next(words)}"]).n_tokens[0] <= tokens:
        text = longer
    # The next word has more tokens than there is room for; "a" has one.
    return text + " a" * int(tokens - encoder.tokenizer([text]).n_tokens[0])


def write_kit(
    model_name_or_path: str | Path, folder: Path, *, size: Size = "small", revision: str | None = None
) -> None:
    """Write a golden kit. The same model gives the same bytes on the same machine.

    Args:
        model_name_or_path: a hub name or a folder.
        folder: the folder to write. It is created if it does not exist; an existing kit is replaced.
        size: "small" or "full": see `POINTS`.
        revision: as in `e5ref.load`.

    Raises:
        CheckpointError: as `e5ref.load`.
        ValueError: the size is unknown, or the folder holds other files.
    """
    if size not in POINTS:
        raise ValueError(f"size is {size!r}, but must be one of {', '.join(POINTS)}")
    _check_folder(folder)
    encoder = load(model_name_or_path, revision=revision, dtype="float64", truncation="allow")
    texts = kit_texts(encoder)
    runs = {batch: partial(_truth, encoder, texts[batch], patterns) for batch, patterns in POINTS[size].items()}
    start, *_, end = encoder.tokenizer.token_strings(encoder.tokenizer(["a"]).ids)
    _write(folder, size, runs, lambda kit: readme(kit, encoder.checkpoint, start, end))


def write_modules_kit(model_folder: str | Path, folder: Path) -> None:
    """Write a golden kit of any model that sentence-transformers or transformers loads; every module is a point.

    Texts without a token are left out: not every tokenizer puts tokens of its own around a text.

    Args:
        model_folder: as `open_tree`.
        folder: as in `write_kit`.

    Raises:
        ModuleNotFoundError: as `open_tree`.
        ValueError: as `open_tree`, or the folder holds other files.
    """
    _check_folder(folder)
    tree = open_tree(model_folder)
    runs: dict[str, Run] = {}
    for batch, texts in MODULES_TEXTS.items():
        # The last point of all is the vectors, or the states that they are made from.
        only = None if batch in ("alone", "ragged") else list(runs["alone"].points)[-1:]
        some = [text for text in texts if tree.inputs(text)["input_ids"].shape[1]]
        runs[batch] = record_modules(tree, some, only=only)
    made = {batch: partial(_stored, run) for batch, run in runs.items()}
    _write(folder, "small", made, lambda kit: modules_readme(kit, runs["alone"]))


def _write(
    folder: Path, size: Size, runs: Mapping[str, Callable[[], Run]], describe: Callable[[Mapping[str, Any]], str]
) -> None:
    """Write a kit: batch → what computes its run; and what writes the README, given kit.json."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as files:  # the files get their names together, once all are written

        def new_file(name: str) -> BinaryIO:
            return files.enter_context(written_whole(folder.resolve() / name))

        batches: dict[str, dict[str, Any]] = {}
        bar = files.enter_context(progress_bar(len(runs), "golden", "batch"))
        for batch, compute in runs.items():
            run = compute()
            write_run_content(run, new_file(f"{batch}.safetensors"))
            bar.update()
            batches[batch] = {
                "texts": run.texts,
                "tokens": run.input_ids.shape[1],
                "points": list(run.points),
                "tolerances": _tolerances(run),
            }
        kit = {"format": FORMAT, "size": size, "factor": FACTOR, "reference": run.provenance, "batches": batches}
        new_file(KIT).write((json.dumps(kit, ensure_ascii=False, indent=1) + "\n").encode())
        new_file("README.md").write(describe(kit).encode())
        new_file("check.py").write(Path(check.__file__).read_bytes())


def _check_folder(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / KIT).exists():
        raise ValueError(f"{folder}: holds files that are not a golden kit; give a new folder, or an empty one")


def check_kit(kit: Path, runs: Path, *, only: Sequence[str] | None = None) -> dict[str, Comparison | RunError]:
    """Judge a port's runs by a kit.

    Args:
        kit: the kit's folder.
        runs: a folder with a run for each batch of the kit, under the same name.
        only: names, or patterns such as "layers.*.output", of the points to judge. Batches without them are left out.

    Returns:
        Batch → the comparison of the kit's points, or the error that prevents it.

    Raises:
        RunError: the folder is not a kit, or the kit is damaged.
        ValueError: `only` fits no point of the kit.
    """
    try:
        content = json.loads((kit / KIT).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"it has format {content['format']!r}, but this e5ref reads {FORMAT!r}")
        if content["factor"] != FACTOR:  # the kit's own checker would give a different verdict
            raise ValueError(
                f"it allows {content['factor']} times what rounding costs, this e5ref {FACTOR}: use its check.py"
            )
        points = {batch: entry["points"] for batch, entry in content["batches"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{kit}: is not a golden kit that this e5ref can use ({error}); write one with e5ref golden"
        ) from None
    results: dict[str, Comparison | RunError] = {}
    for batch, names in points.items():
        chosen = names if only is None else matching(names, only)
        if not chosen:
            continue
        reference = read_run(kit / f"{batch}.safetensors")
        try:
            run = read_run(runs / f"{batch}.safetensors")
        except RunError as error:
            results[batch] = error
        else:
            results[batch] = compare(run, reference, only=chosen)  # an error here is the kit's fault
    if not results:
        raise ValueError(f"no point of the kit is one of {', '.join(only or ())}")
    return results


def _truth(encoder: E5, texts: list[str], patterns: Sequence[str]) -> Run:
    """Run a batch in float64."""
    points = point_shapes(encoder.checkpoint, *encoder.tokenize(texts)["input_ids"].shape)
    return _stored(record_reference(encoder, texts, matching(points, patterns)))


def _stored(run: Run) -> Run:
    """Return a run in float32: that rounding is small beside a whole forward pass's."""
    provenance = run.provenance
    if not provenance.get("revision"):  # a folder on this machine
        provenance["model"] = Path(provenance["model"]).resolve().name
    arrays: dict[str, NDArray[Any]] = {name: array.astype(np.float32) for name, array in run.points.items()}
    ids = {"input_ids": run.input_ids.astype(np.int32), "attention_mask": run.attention_mask.astype(np.int32)}
    return Run(ids | arrays, {**run.metadata, "provenance": json.dumps(provenance, ensure_ascii=False)})


def _tolerances(run: Run) -> dict[str, dict[str, dict[str, float]]]:
    """Return the largest errors that pass: dtype → point → "max" and "rms"."""
    tolerances: dict[str, dict[str, dict[str, float]]] = {dtype: {} for dtype in DTYPES}
    for name, array in run.points.items():
        scale = ErrorSum()
        for text in range(len(array)):
            scale.add(token_values(array, run.attention_mask, text))
        for dtype, points in tolerances.items():
            if name in costs_in(run.rounding, dtype):
                largest, rms = expected_errors(run, name, dtype, scale)
                points[name] = {"max": FACTOR * largest, "rms": FACTOR * rms}
    return tolerances
