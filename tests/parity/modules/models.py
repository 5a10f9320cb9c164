"""Small models, with random weights, of four architectures that e5ref does not compute itself."""

from pathlib import Path

import e5ref

SIZES = {
    "vocab_size": 16000,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 16}

# Architecture → the name of its configuration in transformers, and its settings.
ARCHITECTURES = {
    "modernbert": (
        "ModernBertConfig",
        {"max_position_embeddings": 128, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 16},
    ),
    "qwen3": ("Qwen3Config", GROUPED),
    "gemma3": (
        "Gemma3TextConfig",
        {**GROUPED, "query_pre_attn_scalar": 16, "use_bidirectional_attention": True, "sliding_window": 16},
    ),
    "mpnet": ("MPNetConfig", {"max_position_embeddings": 130}),
}


def write_model(architecture: str, folder: Path) -> Path:
    """Let transformers save a model, with the tokenizer of e5ref-nano."""
    import torch
    import transformers

    torch.manual_seed(0)
    name, settings = ARCHITECTURES[architecture]
    model = transformers.AutoModel.from_config(getattr(transformers, name)(**SIZES, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)  # biases and norms too are of chance
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(e5ref.read_checkpoint("e5ref-nano").folder / "tokenizer.json"),
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder
