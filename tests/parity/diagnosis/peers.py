"""What the tests of the diagnosis ask: checkpoints with 20 texts, and the vectors that transformers gives for them."""

import json
import shutil
import unicodedata
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

import e5ref

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Case:
    """A checkpoint in E5's way, 20 texts, the most tokens that it takes, and how many the longest text has."""

    model: str | Path
    folder: Path
    texts: list[str]
    most: int
    longest: int


def case_of(model: str | Path, folder: Path, texts: list[str]) -> Case:
    encoder = e5ref.load(model)
    longest = int(encoder.tokenizer([f"query: {text}" for text in texts]).n_tokens.max())
    case = Case(model, folder, texts, encoder.tokenizer.max_length, longest)
    assert len(texts) == 20
    assert case.most / 2 < longest < case.most  # so that truncation and both ways of padding make a difference
    return case


def real_texts(folder: Path) -> list[str]:
    """Queries and passages in the manner of MS MARCO, in the files' order: the first 8 queries, the first 6 passages,
    the next 4 with letters that have an accent, and then two made of passages that follow, 3 and 5 of them.
    """
    queries, passages = (
        [json.loads(line)["text"] for line in (folder / file).read_bytes().splitlines()]
        for file in ("queries.jsonl", "corpus.jsonl")
    )
    accented = [text for text in passages[6:] if unicodedata.normalize("NFD", text) != text]
    joined = [" ".join(passages[500:503]), " ".join(passages[503:508])]
    return [*queries[:8], *passages[:6], *accented[:4], *joined]


@cache
def peer_model(folder: Path, dtype: str, activation: str):
    options = {"dtype": getattr(torch, dtype), "hidden_act": activation, "add_pooling_layer": False}
    return AutoModel.from_pretrained(folder, **options).eval()


def peer_tokenizer(folder: Path, **options: bool):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backend: Tokenizer = tokenizer.backend_tokenizer
    normalizer = backend.normalizer
    for name, value in options.items():
        setattr(normalizer, name, value)
    backend.normalizer = normalizer
    return tokenizer


def peer_vectors(
    case,
    texts=None,
    prompt="query: ",
    *,
    dtype="float32",
    activation="gelu",
    pool="mean",
    normalize=True,
    kept=1.0,
    padding=True,
    attend_to_padding=False,
    special_tokens=True,
    quantize=False,
    **tokenizer_options,
):
    """The model card's code, with every step open to change; of the tokens that a text may have, a share is kept."""
    batch = peer_tokenizer(case.folder, **tokenizer_options)(
        [prompt + text for text in texts or case.texts],
        padding=padding,
        truncation=True,
        max_length=int(kept * case.most),
        return_tensors="pt",
        add_special_tokens=special_tokens,
    )
    mask = batch["attention_mask"][..., None]
    if attend_to_padding:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    model = peer_model(case.folder, dtype, activation)
    if quantize:
        with warnings.catch_warnings():  # torch calls its own quantisation deprecated
            warnings.simplefilter("ignore")
            model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    with torch.inference_mode():
        states = model(**batch).last_hidden_state
    pools = {
        "mean": lambda: (states * mask).sum(1) / mask.sum(1),
        "cls": lambda: states[:, 0],
        "max": lambda: states.masked_fill(mask == 0, -1e4).amax(1),
        "last": lambda: states[torch.arange(len(mask)), mask.sum(1)[:, 0] - 1],
        "mean over padding": lambda: states.mean(1),
    }
    vectors = pools[pool]()
    if normalize:
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    return vectors.float().numpy()


def mean_vectors(case, ids: list[list[int]], *, normalize=True):
    """The vector of each sequence of ids, computed alone."""
    model = peer_model(case.folder, "float32", "gelu")
    with torch.inference_mode():
        means = [model(input_ids=torch.tensor([one])).last_hidden_state[0].mean(0).numpy() for one in ids]
    return renormalized(np.stack(means)) if normalize else np.stack(means)


def renormalized(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def marked_ids(case, ends: bool) -> list[list[int]]:
    """The ids of texts with "▁" before each word, alone or between the ids 0 and 2."""
    tokenizer = AutoTokenizer.from_pretrained(case.folder)
    marked = [" ".join(f"▁{word}" for word in f"query: {text}".split()) for text in case.texts]
    room = case.most - 2 * ends
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:room] for text in marked]
    return [[0, *one, 2] if ends else one for one in ids]


def chunk_ids(tokenizer, text: str, size: int, prefixed: bool) -> list[list[int]]:
    """As transformers cuts a text that is too long, or with the prefix before each chunk."""
    if not prefixed:
        options = {"truncation": True, "max_length": size, "return_overflowing_tokens": True}
        return tokenizer(f"query: {text}", **options)["input_ids"]
    prefix, ids = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in ("query: ", text))
    room = size - len(prefix) - 2
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    return [[cls, *prefix, *ids[at : at + room], sep] for at in range(0, len(ids), room)]


def write_revision(folder: Path, where: Path) -> Path:
    """Write the checkpoint as if after a little more training: all weights have moved."""
    shutil.copytree(folder, where)
    tensors, random = load_file(where / "model.safetensors"), np.random.default_rng(0)
    for name, tensor in tensors.items():
        if tensor.dtype.kind == "f":
            noise = 0.1 * float(tensor.astype(np.float32).std()) * random.standard_normal(tensor.shape)
            tensors[name] = (tensor + noise).astype(np.float32)
    save_file(tensors, where / "model.safetensors")
    return where
