"""The README of a golden kit."""

from collections.abc import Mapping
from typing import Any

from e5ref.checkpoint import Checkpoint
from e5ref.parity.runs.run import Run

# Batch → what it is for.
BATCHES = {
    "alone": "one short text in a batch of its own",
    "ragged": "short texts of different lengths and an empty one, so all texts but one are padded",
    "reversed": "the same texts in reverse order: each text keeps its vector",
    "traps": "prompts with and without a space, capitals, accents, CJK, emoji, control characters, one text twice",
    "long": "a text of the model's maximum length, a short text, and a text of one token too many, which is cut",
}

# Pooling → what a text's vector is.
POOLED = {
    "mean": "the vector: the mean of `last_hidden_state` over a text's real tokens, `{start}` and `{end}` included",
    "cls": "the vector: `last_hidden_state` at a text's first token, `{start}`",
}

# Kind of Dense layer → what its activation is.
ACTIVATIONS = {"Dense": "without activation", "TanhDense": "then tanh"}

# What every kit's README says of testing a port, before the table of points and after it.
STEPS = """\
## Test a port

1. Run each batch of `kit.json` through the port. Use its `texts` as they are: they already include the prompts.
2. For each batch write `RUNS/BATCH.safetensors` with `input_ids`, `attention_mask` and the batch's `points`.
3. Run `python check.py RUNS` (it needs only Python 3.10 and NumPy) or `e5ref check KIT RUNS`. Look at the first line
   that is not `[OK]`.

`--only "{first_points}"` judges only those points, while the rest of the port is not written yet.
`--only {last_point}` judges only what comes last.

| batch | texts | tokens | points | for |
| --- | ---: | ---: | ---: | --- |
{batches}

## What is in a run

A run is a [safetensors](https://github.com/huggingface/safetensors) file. Most languages have a library for it. The
file has three parts: 8 bytes with the length of the header, little-endian; the header, JSON that gives each array's
dtype, shape and place; the values.

| name | shape | |
| --- | --- | --- |
"""

PASSES = """\
B is the number of texts, T the tokens of the longest one. Points are float64, float32, float16 or bfloat16. If the
model computed in a dtype that its arrays do not show, name it as `dtype` in the header's metadata. Padding may stand
anywhere, and its values are ignored. The kit's own files are runs too, with points in float32.

## When it passes

`kit.json` has `tolerances`: dtype → point → the largest absolute error that passes, and the largest root mean square
error that passes. They are a fixed multiple of what rounding cost e5ref itself at that point, on the same texts, in
that dtype.
"""

README = """\
# Golden kit: {model}

What {model} gives for {texts} texts: token ids, states inside the model, vectors. e5ref {e5ref_version} computed
them in float64. The kit also says how far rounding may take an implementation in float32, float16 or bfloat16 away from
them.

- weights: SHA-256 `{weights_sha256}`{revision}
- at most {max_length} tokens a text, pooled by {pooling}, {normalized}

## The model

- {L} layers, {D} wide; {N} heads of {H}, whose scores are divided by √{H}; a feed-forward layer of {F}
- {V} tokens in the vocabulary; a text's positions are counted from {first_position}, and its token type is 0
- LayerNorm after each sum, with the variance over {D} (not {D} - 1) and an epsilon of {epsilon}
- GELU in its erf form, x / 2 · (1 + erf(x / √2)), not the tanh form
- {pooled}{then}
- a text of more than {max_length} tokens is cut so that `{end}` stays: its first {kept} tokens, then `{end}`

{steps}| `input_ids`, `attention_mask` | [B, T] | whole numbers of any width; 1 in the mask for a real token |
| `embeddings` | [B, T, {D}] | word, position and token type, summed and normalised |
| `layers.0.query`, `.key`, `.value` | [B, T, {D}] | projections with their biases, heads side by side |
| `layers.0.attention_probabilities` | [B, {N}, T, T] | softmax of the scores, queries before keys |
| `layers.0.context` | [B, T, {D}] | probabilities times values, heads side by side |
| `layers.0.attention_output` | [B, T, {D}] | projected, added to the layer's input, normalised |
| `layers.0.feed_forward_activation` | [B, T, {F}] | after GELU |
| `layers.0.output` | [B, T, {D}] | projected, added to `attention_output`, normalised |
| `last_hidden_state` | [B, T, {D}] | the last layer's output |
{vectors}

{passes}"""

MODULES_README = """\
# Golden kit: {model}

What {model} gives for {texts} texts: token ids, and what every module gives, up to the vectors. The model's own PyTorch
modules computed them in float64, each text alone ({versions}). The kit also says how far rounding may take an
implementation in float32, float16 or bfloat16 away from them: as far as it took these modules.

{steps}| `input_ids`, `attention_mask` | [B, T] | whole numbers of any width; 1 in the mask for a real token |
{points}

A point has the name of a module. Of modules that give the same numbers, such as a layer and its last norm, the
innermost has the point. What goes into a linear layer or a norm is `NAME.input`, unless a module gave it. The second
array of a module is `NAME.1`. What a module gives when it is used again is `NAME'`. The heads of an array stand side by
side.

{passes}"""


def readme(kit: Mapping[str, Any], checkpoint: Checkpoint, start: str, end: str) -> str:
    """Write the README.md of a kit, given its kit.json, and the special tokens before and after a text."""
    facts, batches, config = kit["reference"], kit["batches"], checkpoint.config
    normalized = facts["normalized"] == "true"
    dense = (
        f"through a linear layer of {checkpoint.dimensions}, {ACTIVATIONS[facts['dense']]}" if "dense" in facts else ""
    )
    names = {"pooled": "the vector of a text"}
    if dense:
        names = {"pooled": "the vector of a text before the last linear layer", "dense": f"`pooled` {dense}"}
    if normalized:
        names["normalized"] = f"`{list(names)[-1]}` scaled to unit L2 norm"
    rows = (
        f"| `{name}` | [B, {config.hidden_size if name == 'pooled' else checkpoint.dimensions}] | {what} |"
        for name, what in names.items()
    )
    return README.format(
        **{key: facts[key] for key in ("model", "e5ref_version", "weights_sha256", "max_length", "pooling")},
        revision=f", revision `{facts['revision']}`" if facts["revision"] else "",
        normalized="scaled to unit L2 norm" if normalized else "not normalised",
        vectors="\n".join(rows),
        texts=sum(len(entry["texts"]) for entry in batches.values()),
        steps=steps(batches, "embeddings,layers.0.*", "normalized" if normalized else list(names)[-1]),
        passes=PASSES,
        epsilon=f"{config.layer_norm_eps:g}",
        pooled=POOLED[facts["pooling"]].format(start=start, end=end),
        then=(f", {dense}" if dense else "") + (", divided by its L2 norm" if normalized else ""),
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


def modules_readme(kit: Mapping[str, Any], run: Run) -> str:
    """Write the README.md of a kit of a tree of modules, given its kit.json, and a run of all points."""
    facts, batches = kit["reference"], kit["batches"]
    shapes = {
        name: {2: f"[B, {array.shape[-1]}]", 3: f"[B, T, {array.shape[-1]}]", 4: f"[B, {array.shape[1]}, T, T]"}[
            array.ndim
        ]
        for name, array in run.points.items()
    }
    rows = (f"| `{name}` | {shape} | {run.modules[name]['kind']} |" for name, shape in shapes.items())
    versions = {name.removesuffix("_version"): version for name, version in facts.items() if name.endswith("_version")}
    return MODULES_README.format(
        model=facts["model"],
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        texts=sum(len(entry["texts"]) for entry in batches.values()),
        steps=steps(batches, next(iter(shapes)), list(shapes)[-1]),
        points="\n".join(rows),
        passes=PASSES,
    )


def steps(batches: Mapping[str, Any], first_points: str, last_point: str) -> str:
    """Say how a port is tested, with the table of batches."""
    lines = (
        f"| `{batch}` | {len(entry['texts'])} | {entry['tokens']} | {len(entry['points'])} | {BATCHES[batch]} |"
        for batch, entry in batches.items()
    )
    return STEPS.format(batches="\n".join(lines), first_points=first_points, last_point=last_point)
