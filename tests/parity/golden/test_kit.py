"""Golden kits: what is in them."""

import numpy as np
import pytest
from safetensors.numpy import load_file

import e5ref
from e5ref.parity import read_run
from e5ref.parity.golden.kit import POINTS, long_text, write_kit
from tests.parity.golden.checker import own_verdicts
from tests.tools.checkpoints import WORDS, write_dense, write_random_bert
from tests.tools.processes import fails, run

pytestmark = pytest.mark.filterwarnings("ignore:1 of 3 texts are longer:e5ref.E5Warning")  # a kit has such a one


def test_the_same_kit_twice_has_the_same_bytes(kit, tiny_bert, tmp_path):
    write_kit(tiny_bert, tmp_path)
    write_kit(tiny_bert, tmp_path)  # over the first
    files = sorted(path.name for path in kit.iterdir())
    assert files == sorted(
        ["README.md", "check.py", "kit.json", *(f"{batch}.safetensors" for batch in POINTS["small"])]
    )
    assert [(tmp_path / file).read_bytes() for file in files] == [(kit / file).read_bytes() for file in files]


def test_only_a_kit_is_written_over(tiny_copy):
    before = sorted(tiny_copy.iterdir())
    assert "holds files that are not a golden kit" in fails("golden", tiny_copy, "-o", tiny_copy)
    assert sorted(tiny_copy.iterdir()) == before


def test_a_kit_names_no_folder_of_this_machine(kit, tiny_bert):
    for path in kit.iterdir():
        assert str(tiny_bert.parent).encode() not in path.read_bytes(), path


def test_ids_are_those_of_the_texts(kit, batches, tiny_bert):
    model = e5ref.load(tiny_bert, truncation="allow")
    for batch, entry in batches.items():
        tokens = model.tokenize(entry["texts"])
        held = load_file(kit / f"{batch}.safetensors")  # by safetensors' own library
        np.testing.assert_array_equal(held["input_ids"], tokens["input_ids"])
        np.testing.assert_array_equal(held["attention_mask"], tokens["attention_mask"])
    assert tokens["n_tokens"].tolist()[::2] == [64, 65]
    assert tokens["truncated"].tolist() == [False, False, True]


@pytest.mark.parametrize("tokens", [5, 17, 200, 256])
def test_a_long_text_has_the_tokens_that_it_is_to_have(tokens, minilm):
    encoder = e5ref.load(minilm)
    assert encoder.tokenizer([long_text(encoder, tokens)]).n_tokens.tolist() == [tokens]


def test_the_order_of_a_batch_does_not_matter_in_the_truth(kit):
    ragged, turned = (load_file(kit / f"{batch}.safetensors")["normalized"] for batch in ("ragged", "reversed"))
    np.testing.assert_array_equal(ragged, turned[::-1])


@pytest.mark.parametrize("size", POINTS)
def test_sizes(size, tiny_bert, kit, tmp_path):
    write_kit(tiny_bert, tmp_path, size=size)
    ragged = read_run(tmp_path / "ragged.safetensors").points
    assert len(ragged) == {"small": 13, "full": 20}[size]
    assert set(read_run(kit / "ragged.safetensors").points) <= set(ragged)


def test_the_commands(tiny_bert, right, tmp_path):
    said = run("golden", tiny_bert, "-o", tmp_path / "kit").stdout.decode()
    assert said.startswith(f"{tmp_path / 'kit'}: 0.2 MB; ")
    passed = run("check", tmp_path / "kit", right).stdout.decode()
    assert passed.splitlines()[-1] == "Passed: alone, ragged, reversed, traps, long"
    (tmp_path / "none").mkdir()
    failed = run("check", tmp_path / "kit", tmp_path / "none", code=1).stdout.decode()
    assert failed.count("[MISSING]") == 5
    assert failed.count("alone.safetensors: no such file\n") == 1
    for batch in ("alone", "ragged", "reversed", "traps", "long"):
        (tmp_path / "none" / f"{batch}.safetensors").write_bytes(b"cut")
    assert run("check", tmp_path / "kit", tmp_path / "none", code=1).stdout.count(b"[UNREADABLE]") == 5
    assert "is not a golden kit that this e5ref can use" in fails("check", right, right)
    (tmp_path / "kit" / "long.safetensors").unlink()
    assert "long.safetensors: no such file" in fails("check", tmp_path / "kit", right)


def test_a_model_with_a_dense_layer(tiny_copy, tmp_path):
    write_dense(tiny_copy, 40)
    write_kit(tiny_copy, tmp_path / "kit")
    assert list(read_run(tmp_path / "kit" / "traps.safetensors").points) == ["pooled", "dense", "normalized"]
    text = (tmp_path / "kit" / "README.md").read_text(encoding="utf-8")
    assert "| `dense` | [B, 40] | `pooled` through a linear layer of 40, then tanh |" in text
    assert "| `normalized` | [B, 40] | `dense` scaled to unit L2 norm |" in text


def test_a_model_that_does_not_normalise(cls_checkpoint, tmp_path):
    kit = tmp_path / "kit"  # the checkpoint lies beside it
    write_kit(cls_checkpoint, kit)
    assert list(read_run(kit / "long.safetensors").points) == ["pooled"]
    text = (kit / "README.md").read_text()
    assert "pooled by cls, not normalised" in text
    assert "- the vector: `last_hidden_state` at a text's first token, `[CLS]`\n" in text
    assert "`normalized`" not in text
    assert own_verdicts(kit, kit)[0] == 0


def test_the_readme_tells_what_is_there(kit, batches):
    text = (kit / "README.md").read_text()
    for batch, entry in batches.items():
        assert f"| `{batch}` | {len(entry['texts'])} | {entry['tokens']} | {len(entry['points'])} |" in text
    assert "at most 64 tokens a text, pooled by mean, scaled to unit L2 norm" in text


def test_the_readme_tells_what_a_port_must_compute(kit, tmp_path):
    text = (kit / "README.md").read_text()
    assert "2 layers, 32 wide; 4 heads of 8, whose scores are divided by √8; a feed-forward layer of 48" in text
    assert "with the variance over 32 (not 32 - 1) and an epsilon of 1e-12" in text
    assert "GELU in its erf form" in text
    assert f"{len(WORDS)} tokens in the vocabulary; a text's positions are counted from 0" in text
    assert "over a text's real tokens, `[CLS]` and `[SEP]` included, divided by its L2 norm" in text
    assert "a text of more than 64 tokens is cut so that `[SEP]` stays: its first 63 tokens, then `[SEP]`" in text
    tokens = read_run(kit / "long.safetensors").tokens
    assert tokens is not None
    assert [len(row) for row in tokens][::2] == [64, 64]
    assert tokens[2][-1] == "[SEP]"

    write_kit(write_random_bert(tmp_path / "xlm", model_type="xlm-roberta"), tmp_path / "kit")
    text = (tmp_path / "kit" / "README.md").read_text()
    assert "positions are counted from 2" in text
    assert "an epsilon of 1e-05" in text
