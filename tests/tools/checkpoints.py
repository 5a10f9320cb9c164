"""Checkpoints to test with: random ones, written in every way that libraries write them."""

import json
import warnings
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer

import e5ref

WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK] query passage : how much protein should a female eat the is of and what
why do plants need light sun water green cat dog man play ##s ##ing ##ed e b c d f g h i j k ! ? . , -""".split()

E5_SMALL = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
}

# Shapes that hide nothing by being round: one layer, one head, head size 8, a vocabulary of 50.
ODD_SHAPES = {
    "two layers": {},
    "one layer": {"num_hidden_layers": 1},
    "one head": {"num_attention_heads": 1},
    "head size 8": {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40},
    "vocabulary of 50": {"vocab_size": 50, "max_position_embeddings": 40},
    "xlm-roberta": {"model_type": "xlm-roberta"},
    "xlm-roberta, one head": {"model_type": "xlm-roberta", "num_attention_heads": 1, "num_hidden_layers": 3},
    "epsilon of 1e-3": {"layer_norm_eps": 1e-3},
}


def tiny_config() -> e5ref.BertConfig:
    return e5ref.BertConfig("bert", 5, 2, 1, 1, 2, 4, 1, 1e-12, 0)


def write_tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    """Write a small lower-case WordPiece tokenizer.json."""
    from tokenizers import BertWordPieceTokenizer

    BertWordPieceTokenizer({word: index for index, word in enumerate(words)}).save(str(folder / "tokenizer.json"))


def write_random_bert(folder: Path, *, seed: int = 0, shard_size: str | None = None, **sizes) -> Path:
    """Write a random BERT as transformers itself saves it, with a small tokenizer.

    Weights are a good deal larger than BERT's usual start, so that attention is not uniform and every part counts.
    """
    import torch
    from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

    model_type = sizes.pop("model_type", "bert")
    settings = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    } | sizes
    torch.manual_seed(seed)
    if model_type == "bert":
        model = BertModel(BertConfig(**settings))
    else:
        model = XLMRobertaModel(XLMRobertaConfig(type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, **settings))
    with torch.no_grad():  # transformers starts biases at 0 and LayerNorm at 1 and 0, which would hide their misuse
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder, **({"max_shard_size": shard_size} if shard_size else {}))
    write_tokenizer(folder)
    return folder


def write_unigram(folder):
    """A tokenizer in XLM-RoBERTa's form: SentencePiece's Unigram, <s> and </s>, its padding id 1."""
    pieces = [("<s>", 0), ("<pad>", 0), ("</s>", 0), ("<unk>", 0), ("▁", -2), ("▁query", -3), (":", -3), ("▁eat", -4)]
    tokenizer = FastTokenizer(models.Unigram([*pieces, *((letter, -8.0) for letter in "abcdefghi")], unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_unigram_of_words(folder):
    """As XLM-RoBERTa's has it: characters are normalised, white space counts once, and a word is of several pieces."""
    pieces = [("<unk>", 0), ("▁", -3), ("▁query", -4), (":", -4), ("▁the", -3), ("▁cat", -5), ("s", -4), ("ing", -4)]
    more = ["中文", "字", "中", "!", "▁a", "กข", "e", "[", "]", "S", "E", "P", "he", "t", "ca"]
    tokenizer = FastTokenizer(models.Unigram([*pieces, *((piece, -6.0) for piece in more)], unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.add_special_tokens(["<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))


def add_tokens(folder, *contents):
    tokenizer = FastTokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(content, lstrip=True, rstrip=True) for content in contents])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_sentence_transformer(folder, *, pooling=None, modules=("Transformer", "Pooling", "Normalize"), **prompts):
    """Write sentence-transformers' files, in the layout of its versions before 6, beside a plain checkpoint's."""
    layout = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(layout))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
    if prompts:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))


def write_dense(folder, features=24, *, activation="activation.Tanh", **settings):
    """Write sentence-transformers' files with a Dense module of random weights before Normalize."""
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    write_sentence_transformer(folder, pooling=pooling, modules=("Transformer", "Pooling", "Dense", "Normalize"))
    (folder / "2_Dense").mkdir()
    config = {"in_features": width, "out_features": features, "bias": True}
    config["activation_function"] = f"torch.nn.modules.{activation}"
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config | settings))
    random = np.random.default_rng(3)
    weights = {
        "linear.weight": random.normal(0, 0.3, (features, width)),
        "linear.bias": random.normal(0, 0.3, features),
    }
    save_file({name: array.astype(np.float32) for name, array in weights.items()}, folder / "2_Dense/model.safetensors")


def edit_json(path: Path, **values) -> None:
    """Change or (with None) remove entries of a JSON file."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
