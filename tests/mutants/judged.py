"""A checkpoint, its reference run, and what judges a mutant of it."""

import shutil
from pathlib import Path

import e5ref
from e5ref import numpy_model
from e5ref.checkpoint.hub import BUNDLED_CHECKPOINT, weights_folder
from e5ref.engines.batching import pad_ids
from e5ref.parity.altered.models import run_reference
from e5ref.parity.judge.comparison import compare
from e5ref.parity.judge.explain import explain
from tests.mutants.numpy_mutants import PLANTED
from tests.mutants.planting import copy_of
from tests.tools.checkpoints import write_random_bert
from tests.tools.runs import reference_run, run_of

TEXTS = ["query: naïve Café", "passage: How much protein should a female eat, and why", "a"]


def make_model(name: str, folder: Path, minilm: Path) -> Path:
    """all-MiniLM-L6-v2, e5ref-nano, or random weights with MiniLM's tokenizer."""
    if name == "trained":
        return minilm
    if name == "nano":
        return weights_folder() / BUNDLED_CHECKPOINT
    write_random_bert(
        folder,
        vocab_size=30522,
        hidden_size=128,
        num_attention_heads=4,
        intermediate_size=512,
        initializer_range=0.1,
    )
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm / file, folder / file)
    return folder


class Judged:
    """A checkpoint, its reference run, and what judges a mutant of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.single = e5ref.read_checkpoint(folder)
        self.double = e5ref.read_checkpoint(folder, dtype="float64")
        self.tokenizer = e5ref.load(folder).tokenizer
        self.batch = pad_ids(self.tokenizer(TEXTS).texts(), self.tokenizer.pad_id)
        self.reference = reference_run(folder, *self.batch, texts=TEXTS)

    def run(self, model):
        return run_of(run_reference(self.single, *self.batch, model=model), self.reference)

    def run_mutant(self, name):
        return self.run(copy_of(numpy_model, PLANTED[name]))

    def judge(self, run):
        comparison = compare(run, self.reference)
        return comparison, explain(run, self.reference, self.double, comparison)
