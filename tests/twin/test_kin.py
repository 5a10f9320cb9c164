"""E5's kin: folders that sentence-transformers saved, with random weights, against its own `encode`."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import e5ref
from tests.tools.checkpoints import write_random_bert, write_unigram
from tests.tools.tolerances import VECTORS

TEXTS = ["how much protein should a female eat?", "a", "", "the cat and the dog: play in the light, eat and play"]

SEARCH = "Represent this sentence for searching relevant passages: "
INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "

TANH, IDENTITY = torch.nn.Tanh(), torch.nn.Identity()

# Who → pooling, the modules behind it (a width for a Dense), prompts, and what the encoder is.
KIN: dict[str, dict[str, Any]] = {
    "all-MiniLM": {"pooling": "mean", "normalize": True},
    "BGE and Arctic": {"pooling": "cls", "normalize": True, "prompts": {"query": SEARCH}},
    "mxbai": {"pooling": "cls", "normalize": False, "prompts": {"query": SEARCH, "passage": ""}},
    "paraphrase-multilingual-MiniLM": {"pooling": "mean", "normalize": False, "unigram": True},
    "multilingual-e5 in its instruct form": {
        "pooling": "mean",
        "normalize": True,
        "prompts": {"query": INSTRUCT},
        "unigram": True,
        "model_type": "xlm-roberta",
    },
    "LaBSE": {"pooling": "cls", "normalize": True, "dense": (32, TANH, True)},
    "a wider Dense without activation": {"pooling": "mean", "normalize": True, "dense": (80, IDENTITY, True)},
    "a narrow Dense without bias": {"pooling": "mean", "normalize": False, "dense": (7, TANH, False)},
}


def saved(folder: Path, kin: dict[str, Any]) -> Path:
    """Write a checkpoint as sentence-transformers itself saves it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    sizes = {"model_type": kin.get("model_type", "bert"), "vocab_size": 60, "max_position_embeddings": 128}
    plain = write_random_bert(folder / "plain", **sizes)
    if "unigram" in kin:
        write_unigram(plain)
    pad, unknown = ("<pad>", "<unk>") if "unigram" in kin else ("[PAD]", "[UNK]")
    (plain / "tokenizer_config.json").write_text(
        f'{{"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "{pad}", "unk_token": "{unknown}"}}'
    )
    torch.manual_seed(1)
    parts = [modules.Transformer(str(plain)), modules.Pooling(32, kin["pooling"])]
    if "dense" in kin:
        width, activation, bias = kin["dense"]
        parts.append(modules.Dense(32, width, bias, activation))
        with torch.no_grad():  # vectors are far from small, and tanh far from linear
            for parameter in parts[-1].parameters():
                parameter.mul_(3)
    if kin["normalize"]:
        parts.append(modules.Normalize())
    SentenceTransformer(modules=parts, prompts=kin.get("prompts"), device="cpu").save(str(folder / "saved"))
    return folder / "saved"


@pytest.fixture(scope="module", params=KIN)
def kin(request, tmp_path_factory) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saved(tmp_path_factory.mktemp("kin"), KIN[request.param])


@pytest.mark.peer
@pytest.mark.parametrize("backend", ["numpy", "jax"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_encode_as_sentence_transformers_does(kin, dtype, backend):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(kin), device="cpu", local_files_only=True).to(getattr(torch, dtype))
    ours = e5ref.load(kin, dtype=dtype, backend=backend)
    for name in ("encode", "encode_query", "encode_document"):
        expected = getattr(theirs, name)(TEXTS)
        vectors = getattr(ours, name)(TEXTS)
        assert vectors.shape == expected.shape == (len(TEXTS), ours.dimensions)
        norms = np.linalg.norm(expected, axis=1, keepdims=True)  # VECTORS is for unit vectors
        assert np.abs((vectors - expected) / norms).max() <= VECTORS[dtype]
