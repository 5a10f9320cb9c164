"""What stands beside each panel of the page: the equation, the shapes, and the code that made its numbers."""

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e5ref import numpy_model
from e5ref.checkpoint.config import BertConfig
from e5ref.inside import changes, explain
from e5ref.operations import numpy_ops
from e5ref.tokenizer import Tokenizer


def panels(config: BertConfig, tokens: int, pooling: str) -> dict[str, dict[str, Any]]:
    """Describe the panels of the page.

    Args:
        config: the checkpoint's sizes.
        tokens: T, how many tokens the first text has.
        pooling: "mean" or "cls".

    Returns:
        Panel → "equations" (MathML), "shapes" (lines) and "functions".
    """
    T, D, N, H = tokens, config.hidden_size, config.num_attention_heads, config.head_size
    F, V = config.intermediate_size, config.vocab_size
    return {
        "tokens": _panel(
            "<mtext>text</mtext><mo>→</mo><mtext>ids</mtext>",
            [f"text → ids [{T}], whole numbers below {V:,}"],
            Tokenizer.__call__,
        ),
        "embeddings": _panel(
            "<msub><mi>h</mi><mn>0</mn></msub><mo>=</mo><mtext>LayerNorm</mtext><mo>(</mo>"
            "<msub><mi>E</mi><mtext>word</mtext></msub><mo>[</mo><mi>id</mi><mo>]</mo><mo>+</mo>"
            "<msub><mi>E</mi><mtext>position</mtext></msub><mo>[</mo><mi>t</mi><mo>]</mo><mo>+</mo>"
            "<msub><mi>E</mi><mtext>type</mtext></msub><mo>[</mo><mn>0</mn><mo>]</mo><mo>)</mo>",
            [f"word table [{V:,}, {D}], ids [{T}] → [{T}, {D}]", f"+ position [{T}, {D}] + token type [{D}]"],
            numpy_model.embed_tokens,
            numpy_model.layer_norm,
        ),
        "attention": _panel(
            "<mtext>softmax</mtext><mo>(</mo><mfrac><mrow><mi>Q</mi><msup><mi>K</mi><mi>⊤</mi></msup></mrow>"
            "<msqrt><mpadded height='1em'><mi>H</mi></mpadded></msqrt></mfrac><mo>)</mo><mi>V</mi>",
            [
                f"Q, K, V: [{T}, {D}] → [{N} heads, {T}, {H}] each",
                f"Q Kᵀ: [{N}, {T}, {T}]",
                f"times V: [{N}, {T}, {H}] → side by side [{T}, {D}]",
            ],
            numpy_model.self_attention,
            numpy_ops.softmax,
        ),
        "states": _panel(
            "<mi>a</mi><mo>=</mo><mtext>LayerNorm</mtext><mo>(</mo><mi>x</mi><mo>+</mo><mtext>Attention</mtext>"
            "<mo>(</mo><mi>x</mi><mo>)</mo><mo>)</mo>\n"
            "<mi>y</mi><mo>=</mo><mtext>LayerNorm</mtext><mo>(</mo><mi>a</mi><mo>+</mo><mtext>FFN</mtext>"
            "<mo>(</mo><mi>a</mi><mo>)</mo><mo>)</mo>",
            [f"x, a, y: [{T}, {D}]", f"feed-forward: [{T}, {D}] → [{T}, {F}] → [{T}, {D}]"],
            numpy_model.encoder_layer,
            numpy_model.linear,
        ),
        "added": _panel(
            "<mtext>FFN</mtext><mo>(</mo><mi>a</mi><mo>)</mo><mo>=</mo><msub><mi>W</mi><mn>2</mn></msub>"
            "<mtext>GELU</mtext><mo>(</mo><msub><mi>W</mi><mn>1</mn></msub><mi>a</mi><mo>+</mo>"
            "<msub><mi>b</mi><mn>1</mn></msub><mo>)</mo><mo>+</mo><msub><mi>b</mi><mn>2</mn></msub>\n"
            "<mtext>GELU</mtext><mo>(</mo><mi>z</mi><mo>)</mo><mo>=</mo>"
            "<mi>z</mi><mi>Φ</mi><mo>(</mo><mi>z</mi><mo>)</mo>",
            [f"update of attention: [{T}, {D}]", f"update of feed-forward: [{T}, {D}]"],
            numpy_model.feed_forward,
            numpy_model.gelu,
        ),
        "average": _panel(
            "<mi>p</mi><mo>=</mo><mfrac><mn>1</mn><mi>T</mi></mfrac><munder><mo>∑</mo><mi>t</mi></munder>"
            "<msub><mi>h</mi><mi>t</mi></msub>"
            if pooling == "mean"
            else "<mi>p</mi><mo>=</mo><msub><mi>h</mi><mtext>[CLS]</mtext></msub>",
            [f"[{T}, {D}] → [{D}]"],
            numpy_model.average_pool if pooling == "mean" else numpy_model.cls_pool,
        ),
        "unit": _panel(
            f"<mi>v</mi><mo>=</mo><mfrac><mi>p</mi>{_norm('p')}</mfrac>",
            [f"[{D}] → [{D}]"],
            numpy_model.l2_normalize,
        ),
        "pairs": _panel(
            "<mtext>cosine</mtext><mo>=</mo><munder><mo>∑</mo><mrow><mi>s</mi><mo>,</mo><mi>t</mi></mrow></munder>"
            "<mfrac><mrow><msub><mi>w</mi><mi>s</mi></msub><msub><mi>h</mi><mi>s</mi></msub></mrow>"
            f"{_norm('p')}</mfrac><mo>·</mo><mfrac><mrow><msub><mi>w</mi><mi>t</mi></msub>"
            f"<msub><mi>g</mi><mi>t</mi></msub></mrow>{_norm('q')}</mfrac>",
            [f"parts of the first vector [{T}, {D}], of the second [U, {D}]", f"their products [{T}, U]"],
            explain.token_parts,
        ),
        "changes": _panel(
            f"<mtext>moved</mtext><mo>=</mo><mfrac>{_norm('h', '<mo>−</mo><mi>g</mi>')}{_norm('h')}</mfrac>",
            [f"h, g: the states [{D}] of a token before and after the change"],
            changes.compared,
        ),
    }


def _norm(letter: str, rest: str = "") -> str:
    return f"<mrow><mo>‖</mo><mi>{letter}</mi>{rest}<mo>‖</mo></mrow>"


def _panel(equations: str, shapes: list[str], *functions: Callable[..., Any]) -> dict[str, Any]:
    return {
        "equations": "".join(f"<math display='block'>{line}</math>" for line in equations.splitlines()),
        "shapes": shapes,
        "functions": [_function(function) for function in functions],
    }


def _function(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a function's name, its file beginning with the package, its first line, and its code."""
    original = inspect.unwrap(function)
    lines, first = inspect.getsourcelines(original)
    file = Path(inspect.getfile(original)).relative_to(Path(numpy_model.__file__).parents[1])
    return {
        "name": original.__qualname__,
        "file": file.as_posix(),
        "line": first,
        "code": textwrap.dedent("".join(lines)),
    }
