"""The parameter tree, and the one table of checkpoint names ↔ tree.

The tree is made of NamedTuples, so that JAX sees a pytree and NumPy needs nothing. Weights keep the checkpoint's
orientation, [out, in]. Shape letters: V vocabulary, D hidden, F feed-forward, E numbers of a vector.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from e5ref.checkpoint.config import BertConfig

# An array of NumPy or of JAX, depending on the twin that the tree is for.
Array = Any


class Affine(NamedTuple):
    """A weight and a bias: of a linear layer ([out, in], [out]) or of a LayerNorm ([D], [D])."""

    weight: Array
    bias: Array


class Embeddings(NamedTuple):
    """What turns token ids into the first hidden states."""

    word: Array  # [V, D]
    position: Array  # [positions, D]
    token_type: Array  # [token types, D]
    layer_norm: Affine  # [D], [D]


class Layer(NamedTuple):
    """One encoder layer: self-attention, then feed-forward, each followed by a LayerNorm over the residual sum."""

    query: Affine  # [D, D], [D]
    key: Affine  # [D, D], [D]
    value: Affine  # [D, D], [D]
    attention_output: Affine  # [D, D], [D]
    attention_layer_norm: Affine  # [D], [D]
    feed_forward_up: Affine  # [F, D], [F]
    feed_forward_down: Affine  # [D, F], [D]
    output_layer_norm: Affine  # [D], [D]


class Dense(NamedTuple):
    """The linear layer that some of E5's kin have after pooling: a `Dense` module of sentence-transformers."""

    weight: Array  # [E, D]
    bias: Array  # [E]


class TanhDense(Dense):
    """A `Dense` whose activation is tanh, as in LaBSE. JAX and the twins tell the two apart by their types."""


class BertParams(NamedTuple):
    """All the weights of one encoder."""

    embeddings: Embeddings
    layers: tuple[Layer, ...]
    dense: Dense | tuple[()] = ()  # empty in most checkpoints


def build_params(tensor: Callable[[str, tuple[int, ...]], Array], config: BertConfig) -> BertParams:
    """Build the tree from `tensor(checkpoint_name, shape)`.

    This function is the table: every name that a BERT checkpoint holds, its shape, and its place in the tree. With
    `lambda name, shape: name` it yields the tree of names, with `lambda name, shape: zeros(shape)` an empty model.

    Args:
        tensor: gives the array for a name (without any of `NAME_PREFIXES`) and the shape it must have.
        config: the sizes.

    Returns:
        The tree, with whatever `tensor` returned at its leaves.
    """
    D, F = config.hidden_size, config.intermediate_size

    def affine(name: str, *shape: int) -> Affine:
        return Affine(tensor(f"{name}.weight", shape), tensor(f"{name}.bias", shape[:1]))

    def layer(name: str) -> Layer:
        return Layer(
            query=affine(f"{name}.attention.self.query", D, D),
            key=affine(f"{name}.attention.self.key", D, D),
            value=affine(f"{name}.attention.self.value", D, D),
            attention_output=affine(f"{name}.attention.output.dense", D, D),
            attention_layer_norm=affine(f"{name}.attention.output.LayerNorm", D),
            feed_forward_up=affine(f"{name}.intermediate.dense", F, D),
            feed_forward_down=affine(f"{name}.output.dense", D, F),
            output_layer_norm=affine(f"{name}.output.LayerNorm", D),
        )

    return BertParams(
        embeddings=Embeddings(
            word=tensor("embeddings.word_embeddings.weight", (config.vocab_size, D)),
            position=tensor("embeddings.position_embeddings.weight", (config.max_position_embeddings, D)),
            token_type=tensor("embeddings.token_type_embeddings.weight", (config.type_vocab_size, D)),
            layer_norm=affine("embeddings.LayerNorm", D),
        ),
        layers=tuple(layer(f"encoder.layer.{index}") for index in range(config.num_hidden_layers)),
    )


# A model that was saved with a head on top, or whole by sentence-transformers, has its encoder's names behind one of
# these.
NAME_PREFIXES = ("", "bert.", "roberta.", "model.", "0.auto_model.", "0.model.")

# How names end, and how they end in checkpoints that were converted from TensorFlow's, such as bert-base-uncased.
OLDER_ENDINGS = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

# Tensors that an embedding does not use: the pooler of BERT's next-sentence task, and the constant 0, 1, 2, …
UNUSED_NAMES = frozenset({"pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids"})

# How the names of heads begin, which work on the hidden states and so are not used either.
HEADS = ("cls.predictions.", "cls.seq_relationship.", "classifier.", "lm_head.", "qa_outputs.")


def stored_names(name: str) -> list[str]:
    """Return what a tensor may be called in a checkpoint: its name, and the one of older checkpoints if they differ."""
    return [name] + [name.removesuffix(end) + older for end, older in OLDER_ENDINGS.items() if name.endswith(end)]


def leaves(tree: Any) -> Iterator[Array]:
    """Yield the arrays of a tree in the order of its fields."""
    if isinstance(tree, tuple):
        for branch in tree:
            yield from leaves(branch)
    else:
        yield tree


def map_leaves(function: Callable[[Array], Array], tree: Any) -> Any:
    """Return a tree of the same kind with `function` applied to each of its arrays."""
    if isinstance(tree, tuple):
        branches = [map_leaves(function, branch) for branch in tree]
        return type(tree)(*branches) if hasattr(tree, "_fields") else tuple(branches)
    return function(tree)
