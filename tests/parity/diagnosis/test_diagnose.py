"""Every mistake is made with transformers, and must be ranked first; right vectors are right, others are unknown."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

import e5ref
from e5ref.bench.prepare import write_exports
from e5ref.parity import diagnose
from tests.parity.diagnosis.peers import renormalized
from tests.tools.checkpoints import edit_json, write_random_bert
from tests.tools.processes import fails
from tests.tools.processes import run as run_cli
from tests.tools.texts import EVERYDAY


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
        ["mean pooling over padding too (padded to {longest} tokens)"],
    ),
    "mean over padding, to the most": (
        lambda peer: peer(pool="mean over padding", padding="max_length"),
        ["mean pooling over padding too (padded to {most} tokens)"],
    ),
    "no attention mask": (
        lambda peer: peer(attend_to_padding=True),
        ["padding attended to (padded to {longest} tokens)"],
    ),
    "no mask at all": (
        lambda peer: peer(attend_to_padding=True, pool="mean over padding"),
        ["padding attended to (padded to {longest} tokens)", "mean pooling over padding too"],
    ),
    "not normalised": (lambda peer: peer(normalize=False), ["not normalised"]),
    "scaled": (lambda peer: 100 * peer(), ["scaled by 100"]),
    "truncated at a quarter": (lambda peer: peer(kept=0.25), ["truncated at {quarter}"]),
    "truncated at half": (lambda peer: peer(kept=0.5), ["truncated at {half}"]),
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
        lambda peer: peer(prompt="", kept=0.25),
        ["prefix missing", "truncated at {quarter}"],
    ),
    "[CLS] pooling, shuffled": (lambda peer: shuffled(peer(pool="cls")), ["[CLS] pooling", "order shuffled"]),
}


@pytest.mark.peer
@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_ranked_first(name, case, peer):
    make, deviations = MISTAKES[name]
    numbers = {"longest": case.longest, "most": case.most, "half": case.most // 2, "quarter": case.most // 4}
    numbers["width"] = e5ref.load(case.model).checkpoint.config.hidden_size
    diagnosis = diagnose(case.texts, make(peer), [case.model])
    assert diagnosis.verdict == "found", str(diagnosis)
    assert list(diagnosis.findings[0].deviations) == [name.format(**numbers) for name in deviations]
    assert diagnosis.findings[0].explains


@pytest.mark.peer
@pytest.mark.parametrize("per_channel", [False, True])
def test_int8_of_onnxruntime(per_channel, case, tmp_path):
    """A graph as `e5ref bench` writes it, quantised by onnxruntime: one scale for a weight, or for each output."""
    if case.folder.name == "random":
        pytest.skip("by channel, onnxruntime moves random weights' vectors six times as far as is simulated: unknown")
    pytest.importorskip("onnx", reason="onnxruntime's quantisation wants `pip install '.[bench]'`")
    onnxruntime = pytest.importorskip("onnxruntime", reason="comes with `pip install '.[parity]'`")
    from onnxruntime.quantization import quantize_dynamic

    encoder = e5ref.load(case.model)
    write_exports(encoder, ["onnxruntime"], tmp_path)
    quantize_dynamic(tmp_path / "model.onnx", tmp_path / "int8.onnx", per_channel=per_channel)
    session = onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"), providers=["CPUExecutionProvider"])
    tokens = encoder.tokenize([f"query: {text}" for text in case.texts])
    ids, mask = (tokens[name].astype(np.int64) for name in ("input_ids", "attention_mask"))
    (states,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
    mask = mask[..., None]
    vectors = renormalized((states * mask).sum(axis=1) / mask.sum(axis=1))
    diagnosis = diagnose(case.texts, vectors, [case.model])
    assert diagnosis.verdict == "found", str(diagnosis)
    assert diagnosis.findings[0].deviations == ("int8",)


@pytest.mark.peer
@pytest.mark.parametrize("prompt", ["query: ", "passage: "])
def test_right_vectors_are_called_correct(prompt, case, peer):
    diagnosis = diagnose(case.texts, peer(prompt=prompt), [case.model])
    assert diagnosis.verdict == "correct", str(diagnosis)
    assert diagnosis.findings[0].prefix == repr(prompt)
    assert diagnose([prompt + text for text in case.texts], peer(prompt=prompt), [case.model]).verdict == "correct"


@pytest.mark.peer
def test_the_prefix_that_was_meant(case, peer):
    """What is right by itself is a mistake where the other prefix is believed to be there."""
    vectors = peer(prompt="query: ")
    assert diagnose(case.texts, vectors, [case.model], prompt_name="query").verdict == "correct"
    for texts, options in ((case.texts, {"prompt_name": "passage"}), ([f"passage: {text}" for text in case.texts], {})):
        diagnosis = diagnose(texts, vectors, [case.model], **options)
        assert diagnosis.findings[0].deviations == ("always 'query: '",), str(diagnosis)


@pytest.mark.peer
@pytest.mark.parametrize("seed", range(3))
def test_something_else_is_unknown(seed, case, peer):
    random = np.random.default_rng(seed)
    vectors = peer()
    others = [
        random.standard_normal(vectors.shape),
        renormalized(np.abs(random.standard_normal(vectors.shape))),
        vectors[:, random.permutation(vectors.shape[1])],
    ]
    diagnosis = diagnose(case.texts, others[seed], [case.model])
    assert diagnosis.verdict == "unknown", str(diagnosis)
    assert not any(finding.explains for finding in diagnosis.findings)


@pytest.mark.peer
def test_something_near_is_unknown_too(case, peer):
    """Not rounding: every vector is pulled towards their mean."""
    vectors = peer()
    diagnosis = diagnose(case.texts, renormalized(vectors + 0.3 * vectors.mean(axis=0)), [case.model])
    assert diagnosis.verdict == "unknown", str(diagnosis)


@pytest.mark.peer
def test_another_checkpoint(case, peer, tmp_path):
    vectors = peer()
    other = write_random_bert(tmp_path / "other", seed=9, hidden_size=vectors.shape[1])
    diagnosis = diagnose(case.texts, vectors, [other, case.model])
    assert diagnosis.findings[0].deviations == (f"another checkpoint: {case.model}",), str(diagnosis)


@pytest.mark.peer
def test_not_the_same_for_all_texts(case, peer):
    both = np.concatenate([peer(case.texts[:8]), peer(case.texts[8:], "passage: ")])
    diagnosis = diagnose(case.texts, both, [case.model])
    assert diagnosis.verdict == "mixed"
    assert "12 of 20" in diagnosis.answer
    assert "8 of 20" in diagnosis.answer
    damaged = peer()
    damaged[[3, 5]] = np.random.default_rng(0).standard_normal((2, damaged.shape[1]))
    diagnosis = diagnose(case.texts, damaged, [case.model])
    assert diagnosis.verdict == "mixed"
    assert "texts 3, 5" in diagnosis.answer


@pytest.mark.peer
def test_what_these_texts_cannot_tell(case, peer):
    texts = [text.lower() for text in case.texts[:4]]
    diagnosis = diagnose(texts, peer(texts), [case.model])
    assert diagnosis.verdict == "correct"
    notes = " ".join(diagnosis.notes)
    for name in ("truncation at 64, 128", "cased", "accents kept", "no space after the colon"):
        assert name in notes


@pytest.mark.peer
def test_one_text_is_enough_to_be_right(case, peer):
    text = case.texts[:1]
    assert diagnose(text, peer(text), [case.model]).verdict == "correct"
    assert diagnose(text, peer(text, ""), [case.model]).findings[0].deviations == ("prefix missing",)


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


@pytest.mark.slow
def test_a_checkpoint_without_prompts(minilm):
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(minilm), device="cpu")
    assert diagnose(EVERYDAY, peer.encode(EVERYDAY), [minilm]).verdict == "correct"
    prompted = peer.encode([f"query: {text}" for text in EVERYDAY])
    assert diagnose(EVERYDAY, prompted, [minilm]).findings[0].deviations == ("'query: ' before every text",)


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
    assert "has 32 dimensions, and these vectors have 1024" in diagnosis.notes[0]


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
