"""The README of a golden kit."""

from collections.abc import Mapping
from typing import Any

from e5ref.checkpoint.config import BertConfig

# What each batch of a kit is for.
BATCHES = {
    "alone": "one short text, in a batch of its own",
    "ragged": "short texts of different lengths, an empty one among them, so that all but one are padded",
    "reversed": "the same in the other order: each text keeps its vector",
    "traps": "prompts with and without a space, capitals, accents, CJK, emoji, control characters, one text twice",
    "long": "a text of as many tokens as the model takes, one of one token more, which is cut, and a short one between",
}

# What the vector of each way of pooling is.
POOLED = {
    "mean": "the vector: the mean of `last_hidden_state` over a text's real tokens, `{start}` and `{end}` among them",
    "cls": "the vector: `last_hidden_state` at a text's first token, `{start}`",
}

README = """\
# Golden kit: {model}

What {model} gives for {texts} texts: token ids, states inside the model, vectors. Computed by e5ref {e5ref_version} in
float64, with how far from that rounding may take another implementation, in float32, float16 or bfloat16.

- weights: SHA-256 `{weights_sha256}`{revision}
- at most {max_length} tokens a text, pooled by {pooling}, {normalized}

## The model

- {L} layers, {D} wide; {N} heads of {H}, whose scores are divided by √{H}; a feed-forward layer of {F}
- {V} tokens in the vocabulary; a text's positions are counted from {first_position}, and its token type is 0
- LayerNorm after each sum, with the variance over {D} (not {D} - 1) and an epsilon of {epsilon}
- GELU in its erf form, x / 2 · (1 + erf(x / √2)), not the tanh one
- {pooled}{then}
- a text of more than {max_length} tokens is cut so that `{end}` stays: its first {kept} tokens, then `{end}`

## Test a port

1. Run each batch of `kit.json` through the port, its `texts` as they are: prompts are part of them.
2. For each batch write `RUNS/BATCH.safetensors`: `input_ids` and `attention_mask`, and the batch's `points`.
3. Run `python check.py RUNS` (Python 3.10 and NumPy are all that it needs) or `e5ref check KIT RUNS`. The first line
   that is not `[OK]` is where to look.

`--only "embeddings,layers.0.*"` judges those points alone while the rest is not written yet, and
`--only normalized` the vectors.

| batch | texts | tokens | points | for |
| --- | ---: | ---: | ---: | --- |
{batches}

## What is in a run

A [safetensors](https://github.com/huggingface/safetensors) file, for which most languages have a library. A file is: 8
bytes, the length of the header, little-endian; the header, JSON that gives each array's dtype, shape and place; the
numbers.

| name | shape | |
| --- | --- | --- |
| `input_ids`, `attention_mask` | [B, T] | whole numbers of any width; 1 in the mask for a real token |
| `embeddings` | [B, T, {D}] | word, position and token type, summed and normalised |
| `layers.0.query`, `.key`, `.value` | [B, T, {D}] | projections with their biases, heads side by side |
| `layers.0.attention_probabilities` | [B, {N}, T, T] | softmax of the scores, queries before keys |
| `layers.0.context` | [B, T, {D}] | probabilities times values, heads side by side |
| `layers.0.attention_output` | [B, T, {D}] | projected, added to the layer's input, normalised |
| `layers.0.feed_forward_activation` | [B, T, {F}] | after GELU |
| `layers.0.output` | [B, T, {D}] | projected, added to `attention_output`, normalised |
| `last_hidden_state` | [B, T, {D}] | the last layer's output |
| `pooled`{normalized_name} | [B, {D}] | the vector of a text{normalized_shape} |

B texts, T tokens of the longest one. Points are float64, float32, float16 or bfloat16; what a model computed in, if its
arrays do not show it, goes into the header's metadata as `dtype`. What stands at padding is not looked at, and where it
stands and how much does not matter. The kit's own files are runs too, with points in float32.

## When it passes

`kit.json` has `tolerances`: dtype → point → the largest absolute error that passes, and the largest root mean square.
They are a fixed multiple of what rounding cost e5ref itself at that point, on these very texts, in that dtype.
"""


def readme(kit: Mapping[str, Any], config: BertConfig, start: str, end: str) -> str:
    """Write the README.md of a kit.

    Args:
        kit: what stands in its kit.json.
        config: the model's sizes and constants.
        start: the special token before a text.
        end: the one after it.
    """
    facts, batches = kit["reference"], kit["batches"]
    normalized = facts["normalized"] == "true"
    rows = (
        f"| `{batch}` | {len(entry['texts'])} | {entry['tokens']} | {len(entry['points'])} | {BATCHES[batch]} |"
        for batch, entry in batches.items()
    )
    return README.format(
        **{key: facts[key] for key in ("model", "e5ref_version", "weights_sha256", "max_length", "pooling")},
        revision=f", revision `{facts['revision']}`" if facts["revision"] else "",
        normalized="scaled to unit L2 norm" if normalized else "not normalised",
        normalized_name=", `normalized`" if normalized else "",
        normalized_shape="; that scaled to unit L2 norm" if normalized else "",
        texts=sum(len(entry["texts"]) for entry in batches.values()),
        batches="\n".join(rows),
        epsilon=f"{config.layer_norm_eps:g}",
        pooled=POOLED[facts["pooling"]].format(start=start, end=end),
        then="; that, divided by its L2 norm" if normalized else "",
        end=end,
        kept=int(facts["max_length"]) - 1,
        L=config.num_hidden_layers,
        D=config.hidden_size,
        N=config.num_attention_heads,
        H=config.head_size,
        F=config.intermediate_size,
        V=config.vocab_size,
        first_position=config.position_offset,
    )
