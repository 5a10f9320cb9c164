"""How a checkpoint pools, cuts and prompts, by sentence-transformers' files."""

import json

import pytest

import e5ref
from e5ref.checkpoint.settings import read_settings
from tests.tools.checkpoints import write_random_bert, write_sentence_transformer


def settings_of(folder) -> e5ref.EmbeddingSettings:
    return read_settings(folder, e5ref.read_checkpoint(folder).config)


def test_settings_of_a_plain_folder_are_those_of_e5(tiny_bert):
    expected = e5ref.EmbeddingSettings("mean", True, 64, {"query": "query: ", "passage": "passage: "})
    assert settings_of(tiny_bert) == expected


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, "cls"),
    ],
)
def test_pooling(tiny_copy, pooling, expected):
    write_sentence_transformer(tiny_copy, pooling=pooling)
    assert settings_of(tiny_copy).pooling == expected


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode": "lasttoken"},
        {"pooling_mode_mean_tokens": True, "include_prompt": False},
        {"word_embedding_dimension": 32},
    ],
)
def test_other_ways_of_pooling_are_refused(tiny_copy, pooling):
    write_sentence_transformer(tiny_copy, pooling=pooling)
    with pytest.raises(e5ref.CheckpointError, match="but e5ref pools by mean or cls alone"):
        settings_of(tiny_copy)


def test_a_folder_without_a_normalize_module_is_not_normalised(tiny_copy):
    write_sentence_transformer(tiny_copy, modules=("Transformer", "Pooling"))
    assert not settings_of(tiny_copy).normalize


@pytest.mark.parametrize(
    "modules",
    [
        (),
        ("Transformer",),
        ("Transformer", "Normalize"),
        ("Transformer", "Normalize", "Pooling"),
        ("Transformer", "Pooling", "Normalize", "Dense"),
        ("Transformer", "Pooling", "Dense", "Dense"),
        ("Transformer", "Dense"),
    ],
)
def test_other_modules_are_refused(tiny_copy, modules):
    write_sentence_transformer(tiny_copy, modules=modules)
    with pytest.raises(e5ref.CheckpointError, match=f"has the modules {', '.join(modules) or 'none'}; e5ref runs"):
        settings_of(tiny_copy)


@pytest.mark.parametrize(("key", "value"), [("type", "my_code.custom.Transformer"), ("path", "0_Transformer")])
def test_another_transformer_is_refused(tiny_copy, key, value):
    write_sentence_transformer(tiny_copy)
    layout = json.loads((tiny_copy / "modules.json").read_text())
    layout[0][key] = value
    (tiny_copy / "modules.json").write_text(json.dumps(layout))
    with pytest.raises(e5ref.CheckpointError, match="e5ref runs sentence-transformers' own Transformer, at the top"):
        settings_of(tiny_copy)


@pytest.mark.parametrize(
    "content",
    ["[1]", '[{"type": "x"}]', "[", '[{"type": 1, "path": ""}]', "7", '[{"type": "x", "path": null}]', 999999 * "["],
)
def test_a_broken_list_of_modules(tiny_copy, content):
    (tiny_copy / "modules.json").write_text(content)
    with pytest.raises(e5ref.CheckpointError, match=r"modules\.json: is not a list of modules"):
        settings_of(tiny_copy)


def test_prompts_are_the_checkpoints_own(tiny_copy):
    write_sentence_transformer(tiny_copy, prompts={"query": "ask: ", "document": ""}, default_prompt_name="query")
    settings = settings_of(tiny_copy)
    assert settings.prompts == {"query": "ask: ", "document": ""}
    assert settings.default_prompt_name == "query"


def test_a_sentence_transformer_without_prompts_has_none(minilm):
    assert settings_of(minilm) == e5ref.EmbeddingSettings("mean", True, 256, {"query": "", "document": ""})


@pytest.mark.parametrize(("max_seq_length", "expected"), [(20, 20), (5000, 64), (None, 64)])
def test_max_length(tiny_copy, max_seq_length, expected):
    (tiny_copy / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_seq_length}))
    assert settings_of(tiny_copy).max_length == expected


def test_lower_case_is_no_change_if_the_tokenizer_has_it(tiny_copy):
    """As in BGE."""
    (tiny_copy / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    (tiny_copy / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True, "max_seq_length": 20}))
    assert settings_of(tiny_copy).max_length == 20


def test_max_length_where_newer_sentence_transformers_keep_it(tiny_copy):
    (tiny_copy / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 30}))
    assert settings_of(tiny_copy).max_length == 30


def test_max_length_is_512_where_nothing_says_more(tmp_path):
    folder = write_random_bert(tmp_path, max_position_embeddings=1024)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    assert settings_of(folder).max_length == 512
    (folder / "sentence_xlm-roberta_config.json").write_text(json.dumps({"max_seq_length": 900}))
    assert settings_of(folder).max_length == 900


@pytest.mark.parametrize(
    ("file", "setting", "message"),
    [
        ("tokenizer_config.json", {"truncation_side": "left"}, "sets truncation_side to 'left', but e5ref has 'right'"),
        ("tokenizer_config.json", {"model_max_length": "20"}, "model_max_length is '20', but must be a number"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length is 0, but must be a number of tokens"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "sets do_lower_case to True"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "sets transformer_task to 'fill-mask'"),
        ("sentence_roberta_config.json", {"tokenizer_args": {"model_max_length": 8}}, "sets tokenizer_args"),
    ],
)
def test_other_ways_of_preparing_a_text_are_refused(tiny_copy, file, setting, message):
    (tiny_copy / file).write_text(json.dumps(setting))
    with pytest.raises(e5ref.CheckpointError, match=message):
        settings_of(tiny_copy)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({"prompts": None}, {"query": "", "document": ""}),
        ({"prompts": {"query": "q: "}}, {"query": "q: ", "document": ""}),
        ({"prompts": {"query": "q: ", "passage": "p: "}}, {"query": "q: ", "passage": "p: "}),
        ({"prompts": {}, "default_prompt_name": "query"}, {"query": "", "document": ""}),
    ],
)
def test_prompts_that_are_not_written_are_empty(tiny_copy, written, expected):
    (tiny_copy / "config_sentence_transformers.json").write_text(json.dumps(written))
    assert settings_of(tiny_copy).prompts == expected


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"prompts": ["a"]}, "prompts must be text by name"),
        ({"prompts": {"query": None}}, "prompts must be text by name"),
        ({"truncate_dim": 16}, "sets truncate_dim"),
        ({"prompts": {}, "default_prompt_name": "sts"}, "default_prompt_name is 'sts', but the prompts are"),
    ],
)
def test_broken_prompts(tiny_copy, written, message):
    (tiny_copy / "config_sentence_transformers.json").write_text(json.dumps(written))
    with pytest.raises(e5ref.CheckpointError, match=message):
        settings_of(tiny_copy)
