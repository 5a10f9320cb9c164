"""`e5ref embed` and `e5ref rank`: vectors, prompts, order, shares, JAX."""

import json

import numpy as np
import pytest
from safetensors import safe_open

import e5ref
from tests.tools.processes import fails, run, shell
from tests.tools.tolerances import VECTORS


def test_embed_prints_json_lines(tiny_bert, model):
    result = run("embed", "query: cat", "passage: the dog", "--model", tiny_bert)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["text"] for row in rows] == ["query: cat", "passage: the dog"]
    vectors = np.array([row["embedding"] for row in rows], np.float32)
    np.testing.assert_array_equal(vectors, model.encode(["query: cat", "passage: the dog"]))
    assert result.stderr == b""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_printed_numbers_read_back_exactly(tiny_bert, dtype):
    result = run("embed", "cat", "--prompt", "query", "--model", tiny_bert, "--dtype", dtype)
    vector = np.array(json.loads(result.stdout)["embedding"], dtype)
    np.testing.assert_array_equal(vector, e5ref.load(tiny_bert, dtype=dtype).encode_query("cat"))


@pytest.mark.parametrize(("prompt", "start"), [("query", "query: "), ("passage", "passage: "), ("none", "")])
def test_prompt(tiny_bert, model, prompt, start):
    result = run("embed", "cat", "--prompt", prompt, "--model", tiny_bert)
    vector = np.array(json.loads(result.stdout)["embedding"], np.float32)
    np.testing.assert_array_equal(vector, model.encode(start + "cat"))


def test_a_forgotten_prompt_is_pointed_out(tiny_bert):
    result = run("embed", "cat", "query: dog", "--model", tiny_bert)
    assert result.stderr.decode().startswith("Warning: 1 of 2 texts start with none of the prompts")
    assert len(result.stdout.splitlines()) == 2


def test_a_doubled_prompt_is_pointed_out(tiny_bert):
    result = run("embed", "query: cat", "dog", "--prompt", "query", "--model", tiny_bert)
    assert result.stderr.decode() == "Warning: 1 of 2 texts start with 'query: ' already, and get it twice\n"
    result = run("rank", "query: cat", "passage: dog", "--model", tiny_bert)
    assert result.stderr.decode().count("get it twice") == 2


def test_a_prompt_that_the_checkpoint_does_not_have(minilm):
    result = run("embed", "cat", "--prompt", "passage", "--model", minilm)
    assert result.stderr.decode() == f"Warning: {minilm} has no passage prompt: the texts are taken as they are\n"


def test_truncation(tiny_bert):
    long = "query: " + "a " * 99
    assert "1 of 1 texts are longer than 64 tokens" in run("embed", long, "--model", tiny_bert).stderr.decode()
    assert run("embed", long, "--truncation", "allow", "--model", tiny_bert).stderr == b""
    assert "more than max_length 64" in fails("embed", long, "--truncation", "error", "--model", tiny_bert)


def test_rank(tiny_bert, model):
    passages = ["the dog", "a cat", "green plants"]
    result = run("rank", "cat", *passages, "--model", tiny_bert)
    scores = 100 * model.similarity(model.encode_query("cat"), model.encode_document(passages))[0]
    expected = [f"{scores[index]:6.2f}  {passages[index]}" for index in np.argsort(-scores)]
    assert result.stdout.decode().splitlines() == expected

    rows = [
        json.loads(line) for line in run("rank", "cat", *passages, "--json", "--model", tiny_bert).stdout.splitlines()
    ]
    assert [row["index"] for row in rows] == np.argsort(-scores).tolist()
    assert [row["score"] for row in rows] == sorted((float(score) for score in scores), reverse=True)


def test_rank_a_file_and_keep_equal_passages_in_order(tiny_bert):
    result = run("rank", "cat", "-i", "-", "--json", "--model", tiny_bert, stdin=b"dog\ncat\ndog\n")
    rows = {row["index"]: row["score"] for row in map(json.loads, result.stdout.splitlines())}
    assert rows[0] == rows[2]
    assert [*rows].index(0) < [*rows].index(2)


@pytest.mark.slow
def test_jax_backend(tiny_bert, model, tmp_path, kept_programs):
    output = tmp_path / "vectors.safetensors"
    run("embed", "query: cat", "query: dog", "--model", tiny_bert, "--backend", "jax", "-o", output, own_process=True)
    with safe_open(output, "numpy") as file:
        vectors, facts = file.get_tensor("embeddings"), file.metadata()
    np.testing.assert_allclose(vectors, model.encode(["query: cat", "query: dog"]), rtol=0, atol=VECTORS["float32"])
    assert (facts["backend"], facts["precision"]) == ("jax", "highest")
    assert any(kept_programs.iterdir())

    ranked = [
        run("rank", "cat", "the dog", "a cat", "--model", tiny_bert, "--backend", backend, own_process=True).stdout
        for backend in ("numpy", "jax")
    ]
    assert ranked[0] == ranked[1]


@pytest.mark.slow
def test_jax_in_half_precision(tiny_bert, model):
    options = ["--model", tiny_bert, "--backend", "jax", "--precision", "bfloat16"]
    result = run("embed", "query: cat", *options, own_process=True)
    vector = np.array(json.loads(result.stdout)["embedding"], np.float32)
    assert 0 < np.abs(vector - model.encode("query: cat")).max() < 0.05


def test_precision_without_jax(tiny_bert):
    assert "precision is for backend='jax'" in fails("embed", "a", "--model", tiny_bert, "--precision", "highest")


def test_a_share_of_the_texts(tiny_bert, model, tmp_path):
    texts = [f"query: cat {'a ' * number}" for number in range(5)]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n")
    for index in range(2):
        run(
            *("embed", "-i", tmp_path / "in.txt", "-o", tmp_path / "out.npy"),
            *("--model", tiny_bert, "--share", f"{index}/2"),
        )
    parts = [np.load(tmp_path / f"out-{index:05}-of-00002.npy") for index in range(2)]
    assert [len(part) for part in parts] == [2, 3]
    np.testing.assert_array_equal(np.concatenate(parts), model.encode(texts))
    assert not (tmp_path / "out.npy").exists()


def test_a_share_of_what_can_be_read_once_only(tiny_bert, tmp_path):
    line = f"e5ref embed -i /dev/stdin --model {tiny_bert} --share 1/2 -o {tmp_path}/out.npy"
    assert shell(line, b"query: cat\nquery: dog\nquery: a\n").returncode == 0
    assert np.load(tmp_path / "out-00001-of-00002.npy").shape == (2, 32)


@pytest.mark.parametrize("share", ["2/2", "1", "a/b", "-1/2", "0/0"])
def test_a_share_that_is_none(tiny_bert, share):
    assert "must be I/N" in fails("embed", "cat", "--model", tiny_bert, "--share", share)


def test_an_automatic_share_needs_jax_and_other_processes(tiny_bert):
    assert "needs --backend jax" in fails("embed", "cat", "--model", tiny_bert, "--share", "auto")
    options = ["--model", tiny_bert, "--share", "auto", "--backend", "jax"]
    alone = fails("embed", "cat", *options, own_process=True)
    assert "write --share I/N" in alone


def test_options_of_the_model_reach_it(tiny_bert, model, tmp_path):
    texts = ["query: cat " + "a " * 20, "query: dog"]
    options = ["--model", tiny_bert, "--dim", 8, "--max-length", 9, "--batch-size", 1, "--threads", 1]
    result = run("embed", *texts, *options, "--truncation", "allow", "-o", tmp_path / "out.npy")
    assert b"keeps 8 of 32 dimensions" in result.stderr
    expected = e5ref.load(tiny_bert, max_length=9, truncation="allow")
    with pytest.warns(UserWarning, match="keeps 8"):
        vectors = expected.encode(texts, truncate_dim=8)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), vectors)
    provenance = json.loads((tmp_path / "out.npy.provenance.json").read_text())
    assert (provenance["truncate_dim"], provenance["max_length"]) == ("8", "9")
    ranked = run("rank", "dog", *texts, *options, "-k", 1, "--truncation", "allow").stdout
    assert len(ranked.splitlines()) == 1
