"""E5's forward pass in NumPy: the reference, to be read from top to bottom.

Wang et al., "Text Embeddings by Weakly-Supervised Contrastive Pre-training" (arXiv 2212.03533), put an average over
the tokens on top of BERT (Devlin et al., arXiv 1810.04805), whose encoder is that of Vaswani et al., "Attention Is
All You Need" (arXiv 1706.03762). The sections named below are those of Vaswani et al.

Letters in shapes:
    B texts in the batch      T tokens of the longest text      R rows: one for each real token of all texts
    D hidden size             N attention heads                 H size of one head, D / N
    F feed-forward size       V vocabulary                  E numbers of a vector: D, if no Dense follows

Padding stops at the door. `embed_tokens` takes padded ids [B, T] and gives rows [R, D], in the order of `rows_of`.
From there on nothing is computed for padding, and attention looks at one text at a time. `forward` gives padded states
[B, T, D] back, 0 at padding. All keep the weights' dtype, float32 or float64.
"""

import math

import numpy as np

from e5ref.checkpoint.config import BertConfig
from e5ref.checkpoint.params import BertParams, Dense, Embeddings, Layer, TanhDense
from e5ref.operations import Array, Ids, Tap, prefixed
from e5ref.operations.blocks import AttentionBlock, attention_blocks, pad_squares
from e5ref.operations.numpy_ops import in_row_blocks, matmul_heads, matmul_rows, normal_tail, softmax
from e5ref.operations.rows import check_batch, first_tokens, pad_rows, rows_of, text_lengths, token_positions, tokens_of


def linear(x: Array, weight: Array, bias: Array) -> Array:
    """A linear layer, x Wᵀ + b. [m, in], [out, in], [out] -> [m, out]."""
    result = matmul_rows(x, weight)  # [m, in], [out, in] -> [m, out]
    result += bias
    return result


@in_row_blocks
def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> None:
    """Layer normalisation (Ba et al., arXiv 1607.06450) of each row, in place. [m, D], [D], [D] -> [m, D]."""
    x -= x.mean(axis=-1, keepdims=True)
    variance = np.square(x).mean(axis=-1, keepdims=True)  # [m, 1]; added up in pairs, einsum would do it one by one
    x /= np.sqrt(variance + eps)
    x *= weight
    x += bias


@in_row_blocks
def gelu(x: Array) -> None:
    """GELU in its erf form, x Φ(x) (Hendrycks and Gimpel, arXiv 1606.08415), in place. [m, n] -> [m, n].

    With Q = 1 - Φ it is `max(x, 0) - |x| Q(|x|)`: no two nearly equal numbers are subtracted on either side of 0. From
    40 on, Q is 0 in either dtype, and the bound keeps infinity · 0 away.
    """
    magnitude = np.clip(x, -40, 40)
    np.abs(magnitude, out=magnitude)
    np.clip(x, 0, np.inf, out=x)  # a maximum with a number takes NumPy several times as long
    x -= np.multiply(magnitude, normal_tail(magnitude), out=magnitude)


def embed_tokens(params: Embeddings, input_ids: Ids, attention_mask: Ids, *, config: BertConfig) -> Array:
    """Token, position and token-type embedding, summed and normalised (section 3.4; BERT, figure 2).

    [B, T], [B, T] -> [R, D]. All of an E5 text is of token type 0.
    """
    positions = token_positions(input_ids, attention_mask, config)  # [B, T]
    real = attention_mask > 0  # [B, T]
    embeddings = params.word[input_ids[real]] + params.token_type[0]  # [tokens, D] + [D] -> [tokens, D]
    embeddings += params.position[positions[real]]
    return layer_norm(rows_of(embeddings, attention_mask), *params.layer_norm, config.layer_norm_eps)


def self_attention(
    params: Layer, hidden_states: Array, attention_mask: Ids, *, config: BertConfig, tap: Tap | None = None
) -> Array:
    """Multi-head self-attention (sections 3.2.1 and 3.2.2): softmax(Q Kᵀ / √H) V, heads side by side, times W_O.

    [R, D] -> [R, D]. A text's tokens attend to all tokens of the same text, and to nothing else.
    """
    query = linear(hidden_states, *params.query)  # [R, D]
    key = linear(hidden_states, *params.key)  # [R, D]
    value = linear(hidden_states, *params.value)  # [R, D]
    record(tap, "query", query, attention_mask)
    record(tap, "key", key, attention_mask)
    record(tap, "value", value, attention_mask)
    query, key, value = (tokens_of(x, attention_mask) for x in (query, key, value))  # [R, D] -> [tokens, D]

    def heads(x: Array, block: AttentionBlock) -> Array:  # [tokens, D] -> [n, N, T, H], those of a block
        x = x[block.tokens].reshape(block.texts, block.length, config.num_attention_heads, config.head_size)
        return x[:, :, block.heads].transpose(0, 2, 1, 3)

    context = np.empty_like(query)  # [tokens, D]
    squares = []
    for block in attention_blocks(attention_mask, config.num_attention_heads):
        # Scores have keys down and queries across. [n, N, T, H] @ [n, N, H, T] -> [n, N, T, T]
        scores = matmul_heads(heads(key, block), heads(query, block).swapaxes(-1, -2))
        scores *= 1 / math.sqrt(config.head_size)
        probabilities = softmax(scores).swapaxes(-1, -2)
        # [n, N, T, T] @ [n, N, T, H] -> [n, N, T, H], written head by head into [tokens, D]
        np.matmul(probabilities, heads(value, block), out=heads(context, block))
        if tap is not None:
            squares.append((block, probabilities))
    if tap is not None:
        tap("attention_probabilities", pad_squares(squares, attention_mask, config.num_attention_heads))
    context = rows_of(context, attention_mask)  # [tokens, D] -> [R, D]
    record(tap, "context", context, attention_mask)
    return linear(context, *params.attention_output)


def feed_forward(params: Layer, hidden_states: Array, attention_mask: Ids, *, tap: Tap | None = None) -> Array:
    """The position-wise feed-forward network, with GELU for ReLU (section 3.3). [R, D] -> [R, F] -> [R, D]."""
    activation = gelu(linear(hidden_states, *params.feed_forward_up))  # [R, F]
    record(tap, "feed_forward_activation", activation, attention_mask)
    return linear(activation, *params.feed_forward_down)


def encoder_layer(
    params: Layer, hidden_states: Array, attention_mask: Ids, *, config: BertConfig, tap: Tap | None = None
) -> Array:
    """Self-attention, then feed-forward; LayerNorm(x + Sublayer(x)) after each (section 3.1). [R, D] -> [R, D]."""
    attention = self_attention(params, hidden_states, attention_mask, config=config, tap=tap)
    attention += hidden_states
    attention = layer_norm(attention, *params.attention_layer_norm, config.layer_norm_eps)
    record(tap, "attention_output", attention, attention_mask)

    output = feed_forward(params, attention, attention_mask, tap=tap)
    output += attention
    output = layer_norm(output, *params.output_layer_norm, config.layer_norm_eps)
    record(tap, "output", output, attention_mask)
    return output


def forward(
    params: BertParams, input_ids: Ids, attention_mask: Ids, *, config: BertConfig, tap: Tap | None = None
) -> Array:
    """Run the encoder: what `transformers` calls `BertModel(...).last_hidden_state`.

    Args:
        params: the weights.
        input_ids: token ids, [B, T], any integer dtype.
        attention_mask: [B, T], 0 for padding and k > 0 for a token of the row's k-th text; so with one text a row 1 for
            a real token. If padding stands on the left, BERT's positions shift, as they do in transformers.
        config: the sizes and constants.
        tap: called as `tap(name, array)` at every named point, with padded arrays: "embeddings" [B, T, D]; for each
            layer "layers.0.query", "layers.0.key", "layers.0.value", "layers.0.context", "layers.0.attention_output",
            "layers.0.output" [B, T, D], "layers.0.attention_probabilities" [B, N, T, T] and
            "layers.0.feed_forward_activation" [B, T, F]; "last_hidden_state" [B, T, D]. Padding is 0.

    Returns:
        The last hidden states, [B, T, D], in the weights' dtype; 0 at padding.

    Raises:
        ValueError: shapes that differ, an id outside the vocabulary, a mask that does not number a row's texts, a row
            without a real token, or a text of more tokens than the checkpoint has positions.
    """
    check_batch(input_ids, attention_mask, config)
    hidden_states = embed_tokens(params.embeddings, input_ids, attention_mask, config=config)  # [R, D]
    record(tap, "embeddings", hidden_states, attention_mask)
    for index, layer in enumerate(params.layers):
        layer_tap = prefixed(tap, f"layers.{index}.")
        hidden_states = encoder_layer(layer, hidden_states, attention_mask, config=config, tap=layer_tap)
    record(tap, "last_hidden_state", hidden_states, attention_mask)
    return pad_rows(hidden_states, attention_mask)  # [R, D] -> [B, T, D]


def average_pool(last_hidden_state: Array, attention_mask: Ids, texts_per_row: int = 1) -> Array:
    """Average the hidden states of each text's tokens (E5, section 3; the model card's function of this name).

    [B, T, D], [B, T] -> [B · K, D], K texts a row; one that is not there gives 0. Summed in float64: adding 512 states
    one by one in float32 would cost more than any layer does.
    """
    counts = text_lengths(attention_mask, texts_per_row).ravel()  # [B · K]
    states = last_hidden_state[attention_mask > 0]  # [tokens, D], text after text
    is_there = counts > 0
    first = (np.cumsum(counts) - counts)[is_there]  # [texts], the first token of each
    vectors = np.zeros((len(counts), states.shape[1]), states.dtype)
    vectors[is_there] = np.add.reduceat(states, first, dtype=np.float64) / counts[is_there, None]
    return vectors


def cls_pool(last_hidden_state: Array, attention_mask: Ids, texts_per_row: int = 1) -> Array:
    """Take the hidden state of each text's first token, [CLS]; not E5's way, but that of some of its kin.

    [B, T, D], [B, T] -> [B · K, D], K texts a row; numbers without meaning for one that is not there.
    """
    columns = first_tokens(attention_mask, texts_per_row)  # [B, K]
    return last_hidden_state[np.arange(len(columns))[:, None], columns].reshape(columns.size, -1)


def dense(params: Dense, vectors: Array) -> Array:
    """Apply the linear layer that some of E5's kin have after pooling, and its activation. [B, D] -> [B, E]."""
    alone = np.ones((len(vectors), 1), np.int64)  # [B, 1], as a mask: each vector is a text of one token
    vectors = tokens_of(linear(rows_of(vectors, alone), *params), alone)
    return np.tanh(vectors) if isinstance(params, TanhDense) else vectors


def l2_normalize(vectors: Array) -> Array:
    """Scale each vector to unit L2 norm, as torch's `F.normalize` does: x / max(‖x‖, 1e-12). [B, E] -> [B, E]."""
    norms = np.sqrt(np.sum(vectors * vectors, axis=-1, keepdims=True))  # [B, 1]
    return vectors / np.maximum(norms, 1e-12)


def embed(
    params: BertParams,
    input_ids: Ids,
    attention_mask: Ids,
    *,
    config: BertConfig,
    pooling: str = "mean",
    normalize: bool = True,
    texts_per_row: int = 1,
    tap: Tap | None = None,
) -> Array:
    """Token ids in, vectors out: `forward`, pooled and normalised, and `dense` between the two if there is one.

    Args:
        params: the weights.
        input_ids: token ids, [B, T].
        attention_mask: [B, T], as in `forward`.
        config: the sizes and constants.
        pooling: "mean" (E5) or "cls".
        normalize: whether to scale the vectors to unit L2 norm (E5 does).
        texts_per_row: K, the most texts of a row.
        tap: as in `forward`; also gets "pooled" [B · K, D] and, if computed, "dense" and "normalized" [B · K, E].

    Returns:
        The vectors, [B · K, E], in the weights' dtype: the k-th text of row b at b · K + k - 1.

    Raises:
        ValueError: an unknown pooling, more texts in a row than said, and as `forward`.
    """
    if pooling not in ("mean", "cls"):
        raise ValueError(f"pooling is {pooling!r}, but must be 'mean' or 'cls'")
    last_hidden_state = forward(params, input_ids, attention_mask, config=config, tap=tap)  # [B, T, D]
    pool = average_pool if pooling == "mean" else cls_pool
    vectors = pool(last_hidden_state, attention_mask, texts_per_row)  # [B · K, D]
    record(tap, "pooled", vectors)
    if params.dense:
        vectors = dense(params.dense, vectors)
        record(tap, "dense", vectors)
    if normalize:
        vectors = l2_normalize(vectors)
        record(tap, "normalized", vectors)
    return vectors


def record(tap: Tap | None, name: str, array: Array, attention_mask: Ids | None = None) -> None:
    """Give `tap`, if there is one, a named array; rows [R, n], which come with their mask, as [B, T, n]."""
    if tap is not None:
        tap(name, array if attention_mask is None else pad_rows(array, attention_mask))
