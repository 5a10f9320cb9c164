"""What a config.json may say, and what it may not."""

import json

import pytest

from e5ref.checkpoint.config import CheckpointError, read_config
from tests.tools.checkpoints import edit_json

E5_SMALL_V2 = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
}


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(E5_SMALL_V2))
    return path


def test_bert(config_file):
    config = read_config(config_file)
    assert (config.head_size, config.position_offset, config.max_tokens) == (32, 0, 512)


def test_xlm_roberta_counts_positions_from_its_padding_id_on(config_file):
    edit_json(config_file, model_type="xlm-roberta", pad_token_id=1, max_position_embeddings=514)
    config = read_config(config_file)
    assert (config.position_offset, config.max_tokens) == (2, 512)


def test_newer_transformers_leave_the_position_type_out(config_file):
    edit_json(config_file, position_embedding_type=None)
    assert read_config(config_file).hidden_size == 384


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'"),
        ({"hidden_act": None}, "hidden_act is None"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is true"),
        ({"add_cross_attention": True}, "add_cross_attention is true"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"model_type": "mpnet"}, "MPNet has a forward pass of its own, which sentence-transformers runs"),
        ({"model_type": "modernbert"}, "ModernBERT has a forward pass of its own, which sentence-transformers runs"),
        ({"hidden_size": "384"}, "hidden_size is '384'"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_attention_heads": 7}, "cannot be split evenly into 7"),
        ({"layer_norm_eps": None}, "layer_norm_eps is None"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps is 0.0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"pad_token_id": -1}, "pad_token_id is -1"),
        ({"pad_token_id": 30522}, "outside the vocabulary"),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 1}, "leaves no position"),
    ],
)
def test_what_e5ref_cannot_run_is_refused(config_file, change, message):
    edit_json(config_file, **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_config(config_file)
    assert str(config_file) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xfc", b'{"model_type": "be', 99999 * b"["])
def test_what_is_not_json_is_refused(config_file, content):
    config_file.write_bytes(content)
    with pytest.raises(CheckpointError, match="fetch the file anew"):
        read_config(config_file)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"a checkpoint folder needs config\.json"):
        read_config(tmp_path / "config.json")
