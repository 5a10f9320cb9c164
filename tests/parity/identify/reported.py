"""Mistakes that ports were reported to make, written down before the judge could identify an operation.

Each was read in an issue of a port, or is the nearest thing to one that a BERT encoder can have. They are edits of the
forward pass's statements or of the weights. None is in `e5ref.parity.altered.mistakes`.
"""

import ast
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from e5ref import Checkpoint, numpy_model
from e5ref.checkpoint.params import Affine, BertParams

Weights = Callable[[BertParams, Checkpoint, np.ndarray], BertParams]  # params, checkpoint, input_ids


@dataclass(frozen=True)
class Reported:
    """A mistake to plant.

    Attributes:
        name: the mistake.
        source: a report of it, or of a mistake in the same operation.
        point: the point where it shows first.
        says: a pattern that the judge's words must hold if it has found the cause.
        edits: (statements, mistake) pairs for numpy_model, as `ast.unparse` writes it.
        weights: a change of the weights.
    """

    name: str
    source: str
    point: str
    says: str
    edits: tuple[tuple[str, str], ...] = ()
    weights: Weights | None = None


def planted(*mistakes: Reported, checkpoint: Checkpoint, input_ids: np.ndarray) -> tuple[types.ModuleType, Checkpoint]:
    """The forward pass and the checkpoint with these mistakes in them."""
    # Parsed and written again: comments, spacing and line breaks do not matter.
    source, params = ast.unparse(ast.parse(inspect.getsource(numpy_model))), checkpoint.params
    for mistake in mistakes:
        for old, new in mistake.edits:
            assert old in source, f"{mistake.name}: the forward pass has changed, or two mistakes edit the same line"
            source = source.replace(old, new, 1)
        if mistake.weights is not None:
            params = mistake.weights(params, checkpoint, input_ids)
    module = types.ModuleType("reported")
    exec(compile(source, "reported", "exec"), module.__dict__)
    return module, replace(checkpoint, params=params)


def layers(change: Callable[..., dict[str, Affine]]) -> Weights:
    """Change every layer: `change(layer, index, params, checkpoint)` returns what is replaced."""

    def weights(params: BertParams, checkpoint: Checkpoint, _ids: np.ndarray) -> BertParams:
        changed = (layer._replace(**change(layer, i, params, checkpoint)) for i, layer in enumerate(params.layers))
        return params._replace(layers=tuple(changed))

    return weights


def all_matrices(change: Callable[[np.ndarray], np.ndarray]) -> Weights:
    names = ("query", "key", "value", "attention_output", "feed_forward_up", "feed_forward_down")
    return layers(
        lambda layer, *_: {
            name: Affine(change(getattr(layer, name).weight), getattr(layer, name).bias) for name in names
        }
    )


def bfloat16(x: np.ndarray) -> np.ndarray:
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def int8_by_tensor(weight: np.ndarray) -> np.ndarray:
    scale = np.abs(weight).max() / 127
    return (np.rint(weight / scale) * scale).astype(np.float32)


def int4_by_32(weight: np.ndarray) -> np.ndarray:
    """Scale and minimum for each 32 inputs, as MLX quantises."""
    groups = weight.reshape(len(weight), -1, 32 if weight.shape[1] % 32 == 0 else 16)
    low, high = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    scale = (high - low) / 15
    return (np.rint((groups - low) / scale) * scale + low).reshape(weight.shape).astype(np.float32)


def interleaved(layer, _index, _params, checkpoint) -> dict[str, Affine]:
    """Query, key and value one after another in memory, split as if each head had its three beside each other."""
    names, heads = ("query", "key", "value"), checkpoint.config.num_attention_heads
    weight = np.concatenate([getattr(layer, name).weight for name in names])
    bias = np.concatenate([getattr(layer, name).bias for name in names])
    weight = weight.reshape(heads, 3, -1, weight.shape[1])
    bias = bias.reshape(heads, 3, -1)
    return {
        name: Affine(weight[:, i].reshape(-1, weight.shape[-1]), bias[:, i].reshape(-1)) for i, name in enumerate(names)
    }


def rotary(layer, _index, _params, checkpoint) -> dict[str, Affine]:
    """The order of rows that is right for rotary positions, and wrong here."""
    heads = checkpoint.config.num_attention_heads

    def order(x: np.ndarray) -> np.ndarray:
        return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)

    return {
        name: Affine(order(getattr(layer, name).weight), order(getattr(layer, name).bias)) for name in ("query", "key")
    }


def with_last_row_of_first(params: BertParams, _checkpoint: Checkpoint, ids: np.ndarray) -> BertParams:
    """The closing token's row of the word embeddings is row 0."""
    word = params.embeddings.word.copy()
    word[ids[0][ids[0] > 0][-1]] = word[0]
    return params._replace(embeddings=params.embeddings._replace(word=word))


def rank_one(layer, _index, _params, _checkpoint) -> dict[str, Affine]:
    random = np.random.default_rng(3)
    weight = layer.value.weight
    change = np.outer(random.normal(size=len(weight)), random.normal(size=weight.shape[1])) * weight.std() / 10
    return {"value": Affine(weight + change.astype(weight.dtype), layer.value.bias)}


def noisy(layer, index, _params, _checkpoint) -> dict[str, Affine]:
    weight = layer.key.weight
    noise = np.random.default_rng(index).normal(size=weight.shape) * weight.std() / 100
    return {"key": Affine(weight + noise.astype(weight.dtype), layer.key.bias)}


POSITIONS = "embeddings += params.position[positions[real]]"
GELU = "    magnitude = np.clip(x, -40, 40)"
LINEAR = "    result = matmul_rows(x, weight)\n    result += bias"
SOFTMAX = "        probabilities = softmax(scores).swapaxes(-1, -2)"
SCALE = "        scores *= 1 / math.sqrt(config.head_size)"
CONTEXT = "np.matmul(probabilities, heads(value, block), out=heads(context, block))"
ATTENTION_NORM = "attention = layer_norm(attention, *params.attention_layer_norm, config.layer_norm_eps)"
OUTPUT_NORM = "output = layer_norm(output, *params.output_layer_norm, config.layer_norm_eps)"
AVERAGE = "np.add.reduceat(states, first, dtype=np.float64) / counts[is_there, None]"
NORM = "    norms = np.sqrt(np.sum(vectors * vectors, axis=-1, keepdims=True))\n"
NORM += "    return vectors / np.maximum(norms, 1e-12)"
QUERY = "    query = linear(hidden_states, *params.query)"
UP = "    activation = gelu(linear(hidden_states, *params.feed_forward_up))"
MASKED = "        at = np.arange(block.length)\n        scores += np.where({}, 0, -np.inf).astype(scores.dtype)\n"
GITHUB = "https://github.com/"


def gelu(body: str) -> tuple[tuple[str, str], ...]:
    return ((GELU, f"    {body}; return\n{GELU}"),)


def positions(expression: str) -> tuple[tuple[str, str], ...]:
    return ((POSITIONS, f"embeddings += params.position[{expression}]"),)


def masked(seen: str) -> tuple[tuple[str, str], ...]:
    """Scores have keys down: at[:, None] is the key, at the query."""
    return ((SOFTMAX, MASKED.format(seen) + SOFTMAX),)


ACTIVATION, PROBABILITIES = "layers.0.feed_forward_activation", "layers.0.attention_probabilities"

REPORTED = [
    # embeddings
    Reported(
        "positions counted across the texts of a batch",
        GITHUB + "huggingface/sentence-transformers/pull/3879",
        "embeddings",
        "position.*(across|whole batch)",
        positions("(np.arange(real.sum()) % len(params.position))"),
    ),
    Reported(
        "positions stop at 7",
        GITHUB + "abetlen/llama-cpp-python/pull/2217",
        "embeddings",
        "position.*(clipped|stop|at most) .*7",
        positions("np.minimum(positions[real], 7)"),
    ),
    Reported(
        "positions start again after 8 tokens",
        GITHUB + "qdrant/fastembed/pull/716",
        "embeddings",
        "position.*(again|restart|modulo).*8",
        positions("positions[real] % 8"),
    ),
    Reported(
        "position 0 for every token",
        GITHUB + "sugarme/transformer/issues/11",
        "embeddings",
        "position.*(every|all|always|only).* 0|position 0",
        positions("0 * positions[real]"),
    ),
    Reported(
        "positions counted from the end",
        GITHUB + "huggingface/transformers/issues/1761",
        "embeddings",
        "position.*(end|reverse)",
        positions("(attention_mask.sum(axis=1)[:, None] - 1 - positions)[real]"),
    ),
    Reported(
        "the closing token takes row 0 of the word embeddings",
        GITHUB + "huggingface/transformers/pull/3940",
        "embeddings",
        r"word.*row 0\b|row 0\b.*word",
        weights=with_last_row_of_first,
    ),
    Reported(
        "token type added twice",
        GITHUB + "ggml-org/llama.cpp/pull/5423",
        "embeddings",
        "token.type.*(twice|2)",
        (("+ params.token_type[0]", "+ 2 * params.token_type[0]"),),
    ),
    Reported(
        "position added after the LayerNorm",
        GITHUB + "IntelLabs/academic-budget-bert/pull/12",
        "embeddings",
        "position.*after",
        (
            (f"    {POSITIONS}\n", ""),
            (
                "return layer_norm(rows_of(embeddings, attention_mask), *params.layer_norm, config.layer_norm_eps)",
                "return layer_norm(rows_of(embeddings, attention_mask), *params.layer_norm, config.layer_norm_eps)"
                " + rows_of(params.position[positions[real]], attention_mask)",
            ),
        ),
    ),
    Reported(
        "the first layer's LayerNorm after the embeddings",
        GITHUB + "mmmwhy/pure_attention/pull/61",
        "embeddings",
        "LayerNorm.*(attention|layer 0|layers.0)",
        weights=lambda p, _c, _i: p._replace(
            embeddings=p.embeddings._replace(layer_norm=p.layers[0].attention_layer_norm)
        ),
    ),
    # LayerNorm
    Reported(
        "epsilon 1e-5 in the layers alone",
        GITHUB + "keras-team/keras-hub/issues/642",
        "layers.0.attention_output",
        "epsilon.*1e-0?5",
        (
            (ATTENTION_NORM, ATTENTION_NORM.replace("config.layer_norm_eps", "1e-5")),
            (OUTPUT_NORM, OUTPUT_NORM.replace("config.layer_norm_eps", "1e-5")),
        ),
    ),
    Reported(
        "epsilon 1e-4",
        GITHUB + "OpenNMT/CTranslate2/pull/951",
        "embeddings",
        "epsilon.*1(.0+)?e-0?4",
        (("np.sqrt(variance + eps)", "np.sqrt(variance + 1e-4)"),),
    ),
    Reported(
        "LayerNorm multiplies by 1 + weight",
        GITHUB + "Blaizzy/mlx-embeddings/pull/10",
        "embeddings",
        r"1 \+ weight|weight \+ 1",
        (("    x *= weight\n", "    x *= 1 + weight\n"),),
    ),
    Reported(
        "LayerNorm twice after the feed-forward part",
        GITHUB + "mead-ml/mead-baseline/issues/529",
        "layers.0.output",
        "LayerNorm.*twice",
        ((OUTPUT_NORM, f"{OUTPUT_NORM}\n    {OUTPUT_NORM}"),),
    ),
    Reported(
        "LayerNorm's standard deviation in float16",
        GITHUB + "deepspeedai/DeepSpeed/issues/581",
        "embeddings",
        "float16",
        (("x /= np.sqrt(variance + eps)", "x /= np.sqrt(variance + eps).astype(np.float16).astype(x.dtype)"),),
    ),
    # linear layers
    Reported(
        "the query of the next layer",
        GITHUB + "tracel-ai/burn/pull/4410",
        "layers.0.query",
        "query.*layer",
        weights=layers(lambda _l, i, p, _c: {"query": p.layers[(i + 1) % len(p.layers)].query}),
    ),
    Reported(
        "the query's bias added twice",
        GITHUB + "ml-explore/mlx-examples/pull/51",
        "layers.0.query",
        "bias.*(twice|double|2)",
        weights=layers(lambda layer, *_: {"query": Affine(layer.query.weight, 2 * layer.query.bias)}),
    ),
    Reported(
        "the key's bias for the query",
        GITHUB + "foundation-model-stack/foundation-model-stack/pull/181",
        "layers.0.query",
        "bias of key|key's bias",
        weights=layers(lambda layer, *_: {"query": Affine(layer.query.weight, layer.key.bias)}),
    ),
    Reported(
        "fused query, key and value split head by head",
        GITHUB + "vllm-project/vllm/pull/53114",
        "layers.0.query",
        "interleave|head by head",
        weights=layers(interleaved),
    ),
    Reported(
        "rows of query and key in rotary order",
        GITHUB + "ggml-org/llama.cpp/pull/8658",
        "layers.0.query",
        "rotary|permut",
        weights=layers(rotary),
    ),
    Reported(
        "feed_forward_up read as [in, out]",
        GITHUB + "tinygrad/tinygrad/pull/18103",
        ACTIVATION,
        "reshape|transpose|\\[in, out\\]",
        weights=layers(
            lambda layer, *_: {
                "feed_forward_up": Affine(
                    layer.feed_forward_up.weight.T.reshape(layer.feed_forward_up.weight.shape),
                    layer.feed_forward_up.bias,
                )
            }
        ),
    ),
    Reported(
        "weights of 8 bits, one scale each",
        GITHUB + "huggingface/transformers.js/issues/36",
        "layers.0.query",
        "8.bit|int8",
        weights=all_matrices(int8_by_tensor),
    ),
    Reported(
        "weights of 4 bits, in groups of 32",
        GITHUB + "ml-explore/mlx-examples/issues/967",
        "layers.0.query",
        "4.bit|int4",
        weights=all_matrices(int4_by_32),
    ),
    Reported(
        "weights in bfloat16",
        GITHUB + "NVIDIA/TensorRT-LLM/issues/1173",
        "layers.0.query",
        "bfloat16",
        weights=all_matrices(bfloat16),
    ),
    Reported(
        "inputs of products in bfloat16",
        GITHUB + "tenstorrent/tt-metal/issues/1262",
        "layers.0.query",
        "input.*bfloat16",
        (
            (
                LINEAR,
                LINEAR.replace(
                    "result = matmul_rows(x,",
                    "bits = x.view('u4')\n"
                    "    x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view('f4')\n"
                    "    result = matmul_rows(x,",
                ),
            ),
        ),
    ),
    Reported(
        "the last 8 inputs of a product left out",
        GITHUB + "ggml-org/llama.cpp/pull/27450",
        "layers.0.query",
        "(column|input)s? .*(left out|0|ignored|missing)",
        weights=all_matrices(lambda w: np.where(np.arange(w.shape[1]) < w.shape[1] - 8, w, 0).astype(w.dtype)),
    ),
    Reported(
        "rows 4 to 7 of every tile of 8 are 0",
        GITHUB + "tracel-ai/cubecl/pull/1636",
        "layers.0.value",
        "dimension.*(8|4)",
        weights=layers(
            lambda layer, *_: {
                "value": Affine(
                    *(a * (np.arange(len(a)) % 8 < 4).reshape(-1, *[1] * (a.ndim - 1)) for a in layer.value)
                )
            }
        ),
    ),
    Reported(
        "products are 0 from row 128 on",
        GITHUB + "tracel-ai/burn/issues/4966",
        "layers.0.query",
        "(row|token).*128",
        (
            (
                QUERY,
                f"{QUERY}\n    query = tokens_of(query, attention_mask).copy()\n"
                "    query[128:] = 0\n    query = rows_of(query, attention_mask)",
            ),
        ),
    ),
    Reported(
        "the scale is in the query's weights, and scores are not scaled",
        GITHUB + "pytorch/pytorch/issues/44367",
        "layers.0.query",
        "query.*(scale|times|multiplied)|scores are not scaled",
        ((SCALE, ""),),
        layers(
            lambda layer, _i, _p, c: {
                "query": Affine(*(a / np.float32(np.sqrt(c.config.head_size)) for a in layer.query))
            }
        ),
    ),
    Reported(
        "value plus a matrix of rank 1",
        GITHUB + "huggingface/candle/pull/969",
        "layers.0.value",
        "rank 1",
        weights=layers(rank_one),
    ),
    Reported(
        "key's weights of a different revision",
        GITHUB + "microsoft/onnxruntime/issues/18945",
        "layers.0.key",
        "noise|relative size|1(\\.0)? ?%|differ",
        weights=layers(noisy),
    ),
    # attention
    Reported(
        "exp2 for exp",
        GITHUB + "NVIDIA/TransformerEngine/issues/1524",
        PROBABILITIES,
        "exp2|base 2|2\\*\\*|ln 2",
        ((SCALE, "        scores *= math.log(2) / math.sqrt(config.head_size)"),),
    ),
    Reported(
        "a window of 4 tokens on either side",
        GITHUB + "huggingface/text-generation-inference/pull/2408",
        PROBABILITIES,
        "window|distance.* 4",
        masked("np.abs(at[:, None] - at) <= 4"),
    ),
    Reported(
        "softmax with a 1 in its divisor",
        GITHUB + "pytorch/executorch/pull/22483",
        PROBABILITIES,
        "1 (more|is added)|plus 1|\\+ 1",
        (
            (
                SOFTMAX,
                "        exponents = np.exp(scores)\n"
                "        probabilities = (exponents / (1 + exponents.sum(axis=-2, keepdims=True))).swapaxes(-1, -2)",
            ),
        ),
    ),
    Reported(
        "ALiBi",
        GITHUB + "ggml-org/llama.cpp/pull/5423",
        PROBABILITIES,
        "distance|ALiBi",
        (
            (
                SOFTMAX,
                "        at = np.arange(block.length)\n"
                "        slopes = np.arange(1, 1 + config.num_attention_heads)\n"
                "        slopes = 0.5 ** (8 * slopes / len(slopes))\n"
                "        slopes = slopes[block.heads][:, None, None]\n"
                "        scores -= (slopes * np.abs(at[:, None] - at)).astype(scores.dtype)\n" + SOFTMAX,
            ),
        ),
    ),
    Reported(
        "keys of head 0 for every head",
        GITHUB + "awslabs/slapo/pull/46",
        PROBABILITIES,
        "head 0",
        (
            (
                "matmul_heads(heads(key, block)",
                "matmul_heads(0 * heads(key, block) + heads(key, block._replace(heads=slice(0, 1)))",
            ),
        ),
    ),
    Reported(
        "dropout of 10 % left on",
        GITHUB + "facebookresearch/DME/issues/3",
        PROBABILITIES,
        "dropout",
        (
            (
                SOFTMAX,
                f"{SOFTMAX}\n        kept = np.random.default_rng(block.length).random(scores.shape) > 0.1\n"
                "        probabilities = probabilities * kept.swapaxes(-1, -2) / np.float32(0.9)",
            ),
        ),
    ),
    Reported(
        "probabilities in float16",
        GITHUB + "microsoft/onnxruntime/pull/29045",
        PROBABILITIES,
        "float16",
        ((SOFTMAX, f"{SOFTMAX}.astype(np.float16).astype(scores.dtype)"),),
    ),
    Reported(
        "[CLS] is masked",
        GITHUB + "microsoft/onnxruntime/pull/4889",
        PROBABILITIES,
        r"\[CLS\]|token 0|first token",
        masked("(at[:, None] > 0) | (block.length == 1)"),
    ),
    Reported(
        "values of the next token",
        GITHUB + "tenstorrent/tt-mlir/issues/8958",
        "layers.0.context",
        "value.*(next|shift|token)",
        ((CONTEXT, CONTEXT.replace("heads(value, block),", "np.roll(heads(value, block), -1, axis=2),")),),
    ),
    Reported(
        "heads of the context in reverse order",
        GITHUB + "NVIDIA/apex/issues/1131",
        "layers.0.context",
        "head",
        ((CONTEXT, "heads(context, block)[...] = np.matmul(probabilities, heads(value, block))[:, ::-1]"),),
    ),
    # feed-forward
    Reported(
        "tanh GELU with 0.44715 for 0.044715",
        GITHUB + "pytorch/torchdynamo/pull/202",
        ACTIVATION,
        "0\\.44715|function of",
        gelu("x *= 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.44715 * x**3)))"),
    ),
    Reported(
        "GELU stops at 1.5",
        GITHUB + "tinygrad/tinygrad/pull/9458",
        ACTIVATION,
        "(clip|stop|at most).*1\\.5",
        (
            (
                "    x -= np.multiply(magnitude, normal_tail(magnitude), out=magnitude)",
                "    x -= np.multiply(magnitude, normal_tail(magnitude), out=magnitude)\n    np.minimum(x, 1.5, out=x)",
            ),
        ),
    ),
    Reported(
        "GELU without its half",
        GITHUB + "basalt-org/basalt/pull/125",
        ACTIVATION,
        "GELU.*(2|twice)|(2|twice).*GELU",
        (
            (
                "    x -= np.multiply(magnitude, normal_tail(magnitude), out=magnitude)",
                "    x -= np.multiply(magnitude, normal_tail(magnitude), out=magnitude)\n    x *= 2",
            ),
        ),
    ),
    Reported(
        "bias after GELU",
        GITHUB + "microsoft/onnxruntime/issues/4293",
        ACTIVATION,
        "bias.*after",
        (
            (
                UP,
                "    up = params.feed_forward_up\n"
                "    activation = gelu(linear(hidden_states, up.weight, 0 * up.bias)) + up.bias",
            ),
        ),
    ),
    Reported(
        "the residual counted twice",
        GITHUB + "deepspeedai/DeepSpeed/issues/1967",
        "layers.0.attention_output",
        "residual.*(twice|2)",
        (("attention += hidden_states", "attention += 2 * hidden_states"),),
    ),
    # pooling and norm
    Reported(
        "[CLS] left out of the average",
        GITHUB + "JSybrandt/agatha/pull/2",
        "pooled",
        r"\[CLS\]|first token",
        (
            (
                AVERAGE,
                "np.stack([part[len(part) > 1 :].mean(axis=0) for part in np.split(states, first[1:])])",
            ),
        ),
    ),
    Reported(
        "later tokens weigh more",
        GITHUB + "huggingface/sentence-transformers/issues/335",
        "pooled",
        "weigh.*position|position.*weigh",
        (
            (
                AVERAGE,
                "np.stack([np.average(part, axis=0, weights=np.arange(len(part)) + 1.0) "
                "for part in np.split(states, first[1:])])",
            ),
        ),
    ),
    Reported(
        "the layer before the last one pooled",
        GITHUB + "imgarylai/bert-embedding/issues/4",
        "last_hidden_state",
        "layer",
        (
            (
                "        hidden_states = encoder_layer(layer, hidden_states,",
                "        before = hidden_states\n        hidden_states = encoder_layer(layer, hidden_states.copy(),",
            ),
            ("    record(tap, 'last_hidden_state'", "    hidden_states = before\n    record(tap, 'last_hidden_state'"),
        ),
    ),
    Reported(
        "every text has the vector of the text before it",
        GITHUB + "abetlen/llama-cpp-python/pull/2205",
        "pooled",
        "text.*(before|shift|order|permut)",
        (("    return vectors\n\ndef cls_pool", "    return np.roll(vectors, 1, axis=0)\n\ndef cls_pool"),),
    ),
    Reported(
        "divided by the norm plus 0.01",
        GITHUB + "VeriSilicon/TIM-VX/pull/589",
        "normalized",
        "0\\.01|1(\\.0*)?e-0?2",
        ((NORM, NORM.replace("np.maximum(norms, 1e-12)", "(norms + np.float32(0.01))")),),
    ),
    Reported(
        "divided by the squared norm",
        GITHUB + "ggml-org/llama.cpp/issues/5801",
        "normalized",
        "square|power",
        ((NORM, NORM.replace("np.maximum(norms, 1e-12)", "norms ** 2")),),
    ),
    Reported(
        "only the first text is normalised",
        GITHUB + "ggml-org/llama.cpp/pull/5466",
        "normalized",
        "(text 0|first text|text.* 1\\b).*|not normalised",
        (
            (
                NORM,
                NORM.replace(
                    "np.maximum(norms, 1e-12)", "np.where(np.arange(len(norms))[:, None] == 0, norms, np.float32(1))"
                ),
            ),
        ),
    ),
]
