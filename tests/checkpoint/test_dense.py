"""The Dense module of a sentence-transformers folder: what is read, and what is refused."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import e5ref
from e5ref.checkpoint.params import Dense, TanhDense
from tests.tools.checkpoints import edit_json, write_dense


@pytest.mark.parametrize(("activation", "kind"), [("activation.Tanh", TanhDense), ("linear.Identity", Dense)])
def test_read(tiny_copy, activation, kind):
    plain = e5ref.read_checkpoint(tiny_copy)
    write_dense(tiny_copy, activation=activation)
    checkpoint = e5ref.read_checkpoint(tiny_copy, dtype="float64")
    stored = load_file(tiny_copy / "2_Dense" / "model.safetensors")
    assert type(checkpoint.params.dense) is kind
    np.testing.assert_array_equal(checkpoint.params.dense.weight, stored["linear.weight"])
    np.testing.assert_array_equal(checkpoint.params.dense.bias, stored["linear.bias"])
    assert checkpoint.dimensions == 24
    assert checkpoint.weights_sha256 != plain.weights_sha256
    assert e5ref.load(tiny_copy).provenance("")["dense"] == kind.__name__


def test_a_layer_without_bias(tiny_copy):
    write_dense(tiny_copy, bias=False)
    path = tiny_copy / "2_Dense" / "model.safetensors"
    save_file({"linear.weight": load_file(path)["linear.weight"]}, path)
    assert not e5ref.read_checkpoint(tiny_copy).params.dense.bias.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation_function": "torch.nn.modules.activation.ReLU"}, "but e5ref has Tanh and Identity only"),
        ({"in_features": 31}, "in_features is 31, but must be 32"),
        ({"out_features": "24"}, "must have out_features, a whole number"),
        ({"out_features": 23}, r"'linear.weight' is \[24, 32\], but by config.json it must be \[23, 32\]"),
        ({"bias": False}, r"but by its config.json must hold \['linear.weight'\]"),
        ({"use_residual": True}, "use_residual is True, but must be False"),
        ({"module_input_name": "token_embeddings"}, "but e5ref has a Dense after pooling only"),
    ],
)
def test_refused(tiny_copy, settings, message):
    write_dense(tiny_copy)
    edit_json(tiny_copy / "2_Dense" / "config.json", **settings)
    with pytest.raises(e5ref.CheckpointError, match=message) as caught:
        e5ref.read_checkpoint(tiny_copy)
    assert "2_Dense" in str(caught.value)


def test_damaged_weights(tiny_copy):
    write_dense(tiny_copy)
    path = tiny_copy / "2_Dense" / "model.safetensors"
    save_file(load_file(path) | {"linear.bias": np.full(24, np.nan, np.float32)}, path)
    with pytest.raises(e5ref.CheckpointError, match="holds NaN or infinity"):
        e5ref.read_checkpoint(tiny_copy)
    path.rename(path.with_name("pytorch_model.bin"))
    with pytest.raises(e5ref.CheckpointError, match="never opens pickles"):
        e5ref.read_checkpoint(tiny_copy)


def test_vectors_are_as_wide_as_the_layer(tiny_copy):
    write_dense(tiny_copy, 40)
    model = e5ref.load(tiny_copy)
    assert model.encode(["a", "cat"]).shape == (2, 40)
    assert model.encode([]).shape == (0, 40)
    with pytest.warns(UserWarning, match="keeps 33 of 40 dimensions"):
        assert model.encode("a", truncate_dim=33).shape == (33,)


def test_vectors_do_not_depend_on_their_company(tiny_copy):
    write_dense(tiny_copy, 40)
    model = e5ref.load(tiny_copy)
    texts = ["a cat", "the light of the sun"] * 20 + ["dog"]
    np.testing.assert_array_equal(model.encode(texts), [model.encode(text) for text in texts])


def test_a_cosine_cannot_be_divided_among_tokens(tiny_copy):
    write_dense(tiny_copy)
    with pytest.raises(ValueError, match="has a Dense layer after pooling"):
        e5ref.load(tiny_copy).explain("a", "b")
