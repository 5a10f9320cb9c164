"""Every mistake is made with transformers, and must be ranked first; right vectors are right, others are unknown."""

import json
import shutil
import warnings
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoTokenizer

import e5ref
from e5ref.parity import diagnose
from tests.conftest import edit_json, write_random_bert
from tests.parity.texts import TEXTS
from tests.test_cli import fails
from tests.test_cli import run as run_cli

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module", params=["trained", "random"])
def folder(request, tmp_path_factory, minilm) -> Path:
    """A checkpoint in E5's way: its prompts, 512 tokens. Trained weights, or random ones of another size."""
    folder = tmp_path_factory.mktemp("diagnose") / request.param
    if request.param == "random":
        write_random_bert(folder, vocab_size=30522, hidden_size=96, max_position_embeddings=512, initializer_range=0.1)
    folder.mkdir(exist_ok=True)
    for file in FILES:
        if not (folder / file).exists() or file == "tokenizer.json":
            shutil.copy(minilm / file, folder / file)
    return folder


@pytest.fixture(scope="module")
def peer(folder):
    return partial(peer_vectors, folder)


@cache
def peer_model(folder: Path, dtype: str):
    return AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype), add_pooling_layer=False).eval()


def peer_tokenizer(folder: Path, **options: bool):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backend: Tokenizer = tokenizer.backend_tokenizer
    normalizer = backend.normalizer
    for name, value in options.items():
        setattr(normalizer, name, value)
    backend.normalizer = normalizer
    return tokenizer


def peer_vectors(
    folder,
    texts=TEXTS,
    prompt="query: ",
    *,
    dtype="float32",
    pool="mean",
    normalize=True,
    max_length=512,
    padding=True,
    attend_to_padding=False,
    special_tokens=True,
    quantize=False,
    **tokenizer_options,
):
    """The model card's code, with every step open to change."""
    batch = peer_tokenizer(folder, **tokenizer_options)(
        [prompt + text for text in texts],
        padding=padding,
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
        add_special_tokens=special_tokens,
    )
    mask = batch["attention_mask"][..., None]
    if attend_to_padding:
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    model = peer_model(folder, dtype)
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


def renormalized(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def shuffled(rows):
    return np.random.default_rng(5).permutation(rows)


# name: (how the vectors are made, the deviations that must be found)
MISTAKES = {
    "prefix missing": (lambda peer: peer(prompt=""), ["prefix missing"]),
    "prefix twice": (lambda peer: peer(prompt="query: query: "), ["prefix twice"]),
    "both prefixes": (lambda peer: peer(prompt="passage: query: "), ["prefix twice"]),
    "[CLS] pooling": (lambda peer: peer(pool="cls"), ["[CLS] pooling"]),
    "max pooling": (lambda peer: peer(pool="max"), ["max pooling"]),
    "last-token pooling": (lambda peer: peer(pool="last"), ["last-token pooling"]),
    "mean over padding, longest": (
        lambda peer: peer(pool="mean over padding"),
        ["mean pooling over padding too (padded to 446 tokens)"],
    ),
    "mean over padding, 512": (
        lambda peer: peer(pool="mean over padding", padding="max_length"),
        ["mean pooling over padding too (padded to 512 tokens)"],
    ),
    "no attention mask": (
        lambda peer: peer(attend_to_padding=True),
        ["padding attended to (padded to 446 tokens)"],
    ),
    "no mask at all": (
        lambda peer: peer(attend_to_padding=True, pool="mean over padding"),
        ["padding attended to (padded to 446 tokens)", "mean pooling over padding too"],
    ),
    "not normalised": (lambda peer: peer(normalize=False), ["not normalised"]),
    "scaled": (lambda peer: 100 * peer(), ["scaled by 100"]),
    "truncated at 128": (lambda peer: peer(max_length=128), ["truncated at 128"]),
    "truncated at 256": (lambda peer: peer(max_length=256), ["truncated at 256"]),
    "float16": (lambda peer: peer(dtype="float16"), ["float16"]),
    "bfloat16": (lambda peer: peer(dtype="bfloat16"), ["bfloat16"]),
    "int8": (lambda peer: peer(quantize=True), ["int8"]),
    "cased": (lambda peer: peer(lowercase=False), ["cased"]),
    "accents kept": (lambda peer: peer(strip_accents=False), ["accents kept"]),
    "shuffled": (lambda peer: shuffled(peer()), ["order shuffled"]),
    "reversed": (lambda peer: peer()[::-1], ["order reversed"]),
    "one row lost and one doubled": (lambda peer: np.roll(peer(), 1, axis=0), ["order shifted by 1"]),
    "cut": (lambda peer: peer()[:, :64], ["cut to 64 of {width} dimensions, not normalised again"]),
    "cut and normalised": (lambda peer: renormalized(peer()[:, :64]), ["cut to 64 of {width} dimensions"]),
    "no [CLS] and no [SEP]": (lambda peer: peer(special_tokens=False), ["no [CLS] and no [SEP]"]),
    "stored as float16": (lambda peer: peer().astype(np.float16), ["stored as float16"]),
    "6 decimals": (lambda peer: np.round(peer(), 6), ["rounded to 6 decimals"]),
    "prefix missing, not normalised": (
        lambda peer: peer(prompt="", normalize=False),
        ["prefix missing", "not normalised"],
    ),
    "prefix missing, [CLS] pooling": (lambda peer: peer(prompt="", pool="cls"), ["prefix missing", "[CLS] pooling"]),
    "prefix missing, truncated": (
        lambda peer: peer(prompt="", max_length=128),
        ["prefix missing", "truncated at 128"],
    ),
    "[CLS] pooling, shuffled": (lambda peer: shuffled(peer(pool="cls")), ["[CLS] pooling", "order shuffled"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_ranked_first(name, folder, peer):
    make, deviations = MISTAKES[name]
    width = e5ref.read_checkpoint(folder).config.hidden_size
    diagnosis = diagnose(TEXTS, make(peer), [folder])
    assert diagnosis.verdict == "found", str(diagnosis)
    assert list(diagnosis.findings[0].deviations) == [name.format(width=width) for name in deviations]
    assert diagnosis.findings[0].explains


@pytest.mark.parametrize("prompt", ["query: ", "passage: "])
def test_right_vectors_are_called_correct(prompt, folder, peer):
    diagnosis = diagnose(TEXTS, peer(prompt=prompt), [folder])
    assert diagnosis.verdict == "correct", str(diagnosis)
    assert diagnosis.findings[0].prefix == repr(prompt)
    assert diagnose([prompt + text for text in TEXTS], peer(prompt=prompt), [folder]).verdict == "correct"


def test_the_prefix_that_was_meant(folder, peer):
    """What is right by itself is a mistake where the other prefix is believed to be there."""
    vectors = peer(prompt="query: ")
    assert diagnose(TEXTS, vectors, [folder], prompt_name="query").verdict == "correct"
    for texts, options in ((TEXTS, {"prompt_name": "passage"}), ([f"passage: {text}" for text in TEXTS], {})):
        diagnosis = diagnose(texts, vectors, [folder], **options)
        assert diagnosis.findings[0].deviations == ("always 'query: '",), str(diagnosis)


@pytest.mark.parametrize("seed", range(3))
def test_something_else_is_unknown(seed, folder, peer):
    random = np.random.default_rng(seed)
    vectors = peer()
    others = [
        random.standard_normal(vectors.shape),
        renormalized(np.abs(random.standard_normal(vectors.shape))),
        vectors[:, random.permutation(vectors.shape[1])],
    ]
    diagnosis = diagnose(TEXTS, others[seed], [folder])
    assert diagnosis.verdict == "unknown", str(diagnosis)
    assert not any(finding.explains for finding in diagnosis.findings)


def test_something_near_is_unknown_too(folder, peer):
    """Not rounding: every vector is pulled towards their mean."""
    vectors = peer()
    diagnosis = diagnose(TEXTS, renormalized(vectors + 0.3 * vectors.mean(axis=0)), [folder])
    assert diagnosis.verdict == "unknown", str(diagnosis)


def test_another_checkpoint(folder, peer, tmp_path):
    vectors = peer()
    other = write_random_bert(tmp_path / "other", seed=9, hidden_size=vectors.shape[1])
    diagnosis = diagnose(TEXTS, vectors, [other, folder])
    assert diagnosis.findings[0].deviations == (f"another checkpoint: {folder}",), str(diagnosis)


def test_not_the_same_for_all_texts(folder, peer):
    both = np.concatenate([peer(TEXTS[:8]), peer(TEXTS[8:], "passage: ")])
    diagnosis = diagnose(TEXTS, both, [folder])
    assert diagnosis.verdict == "mixed"
    assert "12 of 20" in diagnosis.answer
    assert "8 of 20" in diagnosis.answer
    damaged = peer()
    damaged[[3, 5]] = np.random.default_rng(0).standard_normal((2, damaged.shape[1]))
    diagnosis = diagnose(TEXTS, damaged, [folder])
    assert diagnosis.verdict == "mixed"
    assert "texts 3, 5" in diagnosis.answer


def test_what_these_texts_cannot_tell(folder, peer):
    texts = [text.lower() for text in TEXTS[:4]]
    diagnosis = diagnose(texts, peer(texts, max_length=64), [folder])
    assert diagnosis.verdict == "correct"
    notes = " ".join(diagnosis.notes)
    for name in ("truncation at 64, 128, 256", "cased", "accents kept", "no space after the colon"):
        assert name in notes


def test_one_text_is_enough_to_be_right(folder, peer):
    assert diagnose(TEXTS[:1], peer(TEXTS[:1]), [folder]).verdict == "correct"
    assert diagnose(TEXTS[:1], peer(TEXTS[:1], ""), [folder]).findings[0].deviations == ("prefix missing",)


def test_no_space_after_the_colon_where_a_tokenizer_keeps_it(tmp_path):
    """BERT's tokenizer drops it; one of XLM-RoBERTa's kind does not."""
    from tokenizers import decoders, models, pre_tokenizers, processors

    folder = write_random_bert(tmp_path / "xlm", model_type="xlm-roberta", vocab_size=300)
    letters = [(chr(code), -5.0) for code in range(33, 127)]
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), *letters]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("▁how", -4.0), ("how", -4.5), ("query:", -3.0)], unk_id=3))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    edit_json(folder / "config.json", pad_token_id=1)
    texts = ["how are you", "what is it", "how so, then?"]
    model = e5ref.load(folder)
    diagnosis = diagnose(texts, model.encode([f"query:{text}" for text in texts]), [folder])
    assert diagnosis.findings[0].deviations == ("no space after the colon",), str(diagnosis)
    assert diagnose(texts, model.encode_query(texts), [folder]).verdict == "correct"


def test_a_checkpoint_without_prompts(minilm):
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(minilm), device="cpu")
    assert diagnose(TEXTS, peer.encode(TEXTS), [minilm]).verdict == "correct"
    prompted = peer.encode([f"query: {text}" for text in TEXTS])
    assert diagnose(TEXTS, prompted, [minilm]).findings[0].deviations == ("'query: ' before every text",)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((3, 8)), "2 texts and 3 vectors"),
        (np.ones(8), r"\[n, d\]"),
        (np.array([["a", "b"]] * 2), r"\[n, d\]"),
        (np.array([[1.0, np.nan], [1, 1]]), r"vectors\[0\] holds NaN"),
        (np.array([[1.0, 1], [0, 0]]), r"vectors\[1\] is all zeros"),
    ],
)
def test_vectors_that_are_none(vectors, message, tiny_bert):
    with pytest.raises(ValueError, match=message):
        diagnose(["a", "b"], vectors, [tiny_bert])


def test_vectors_that_are_too_wide(tiny_bert):
    diagnosis = diagnose(["a", "b"], np.ones((2, 1024)), [tiny_bert])
    assert diagnosis.verdict == "unknown"
    assert "gives 32 numbers, and these vectors have 1024" in diagnosis.notes[0]


def test_command(tiny_bert, tmp_path):
    texts, vectors = tmp_path / "texts.txt", tmp_path / "vectors.npy"
    texts.write_text("the dog\nhow much water should a cat eat\n")
    np.save(vectors, e5ref.load(tiny_bert).encode_query(["the dog", "how much water should a cat eat"]))
    command = ["diagnose", "--texts", texts, "--vectors", vectors, "--model", tiny_bert]
    assert run_cli(*command).stdout.startswith(b"Correct: ")
    np.save(vectors, e5ref.load(tiny_bert).encode(["the dog", "how much water should a cat eat"]))
    result = run_cli(*command, "--json", code=1)
    assert json.loads(result.stdout)["findings"][0]["deviations"] == ["prefix missing"]
    vectors.write_bytes(b"no array")
    assert "is not a .npy file of numbers" in fails(*command)
