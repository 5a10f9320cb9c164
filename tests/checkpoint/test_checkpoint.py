"""Folders and names: what is found, and what is said of what is not."""

import gzip
import re

import pytest

import e5ref

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 133466304\n"
INSTEAD_OF = {"model.safetensors.index.json": "model.safetensors", "vocab.txt": "tokenizer.json"}
PAGE = b"<!DOCTYPE html>\n<html><title>Log in</title></html>\n"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (LFS_POINTER, "is a pointer of git-LFS in place of the file; .* `git lfs pull`, or with `hf download`"),
        (PAGE, "is a page of HTML in place of the file; fetch the file anew"),
        (gzip.compress(b"{}"), "is compressed by gzip; decompress it"),
    ],
    ids=["git-lfs", "html", "gzip"],
)
@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "modules.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ],
)
def test_a_file_of_another_kind_is_told_and_not_called_damaged(tiny_copy, file, content, kind):
    if file in INSTEAD_OF:
        (tiny_copy / INSTEAD_OF[file]).unlink()
    (tiny_copy / file).write_bytes(content)
    with pytest.raises(e5ref.CheckpointError, match=rf"{re.escape(file)}: {kind}"):
        e5ref.load(tiny_copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float16"}, "dtype is 'float16', but must be"),
        ({"revision": "main"}, "is a folder, which has no revisions"),
    ],
)
def test_bad_arguments(tiny_bert, arguments, message):
    with pytest.raises(ValueError, match=message):
        e5ref.read_checkpoint(tiny_bert, **arguments)


def test_a_file_for_a_folder(tiny_bert):
    with pytest.raises(e5ref.CheckpointError, match=r"is a file; give the folder"):
        e5ref.read_checkpoint(tiny_bert / "config.json")


def test_what_is_no_name_and_no_folder(tmp_path):
    with pytest.raises(TypeError, match="not NoneType"):
        e5ref.read_checkpoint(None)
    with pytest.raises(e5ref.CheckpointError, match="no such folder"):
        e5ref.read_checkpoint(tmp_path / "e5")  # a path is never a hub name
    with pytest.raises(e5ref.CheckpointError, match="no such folder"):
        e5ref.read_checkpoint("")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("intfloat/e5-smal-v2", "intfloat/e5-small-v2"),
        ("intfloat/E5_small_v2", "intfloat/e5-small-v2"),
        ("infloat/multilingual-e5-base", "intfloat/multilingual-e5-base"),
        ("https://huggingface.co/intfloat/e5-large", "intfloat/e5-large"),
        ("e5-smal", "intfloat/e5-small"),
        ("e5ref-nanno", "e5ref-nano"),
    ],
)
def test_a_name_that_is_nearly_a_known_one(name, meant):
    with pytest.raises(e5ref.CheckpointError, match=rf"no such folder \(did you mean '{meant}'\?\), "):
        e5ref.read_checkpoint(name)


@pytest.mark.parametrize("name", ["someone/tiny", "bert-base-uncased", "intfloat/e5-mistral-7b-instruct"])
def test_a_name_of_something_else_is_not_taken_for_a_known_one(name):
    with pytest.raises(e5ref.CheckpointError, match="no such folder, nor"):
        e5ref.read_checkpoint(name)


def test_a_checkpoint_shows_itself_in_a_few_lines(tiny_bert):
    assert len(repr(e5ref.read_checkpoint(tiny_bert))) < 1500


def test_an_empty_folder(tmp_path):
    with pytest.raises(e5ref.CheckpointError, match=r"a checkpoint folder needs config\.json"):
        e5ref.read_checkpoint(tmp_path)


def test_a_known_checkpoint_pools_as_the_table_says(tiny_bert, monkeypatch):
    monkeypatch.setattr(e5ref.checkpoint, "known_checkpoints", lambda: {str(tiny_bert): {"pooling": "cls"}})
    with pytest.raises(e5ref.CheckpointError, match=r"pools by mean, but .* by cls; its modules\.json or"):
        e5ref.read_checkpoint(str(tiny_bert))


def test_known_checkpoints():
    known = e5ref.known_checkpoints()
    assert known["intfloat/e5-small-v2"]["revision"] == "dca8b1a9dae0d4575df2bf423a5edb485a431236"
    assert len(known) == 25
    for name, row in known.items():
        if name.startswith("intfloat/e5-"):
            assert (row["prompts"], row["pooling"]) == ({"query": "query: ", "passage": "passage: "}, "mean")
        assert set(row["prompts"]) in ({"query", "passage"}, {"query", "document"})
        assert row["pooling"] in ("mean", "cls")
        assert row["licence"] in ("MIT", "Apache-2.0")
        assert row["hidden_size"] % row["num_attention_heads"] == 0
        assert len(row.get("revision", 40 * "0")) == 40
