"""Kinds of vectors that look like different ones: made with transformers, named, or called unknown."""

import base64

import numpy as np
import pytest

from e5ref.parity import diagnose


def deviations(case, vectors) -> list[str]:
    """Return what is found; [] if the vectors are right."""
    diagnosis = diagnose(case.texts, vectors, [case.model])
    assert diagnosis.verdict in ("found", "correct"), str(diagnosis)
    return list(diagnosis.findings[0].deviations)


@pytest.mark.peer
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_tanh_gelu_is_not_taken_for_rounding(activation, dtype, case, peer):
    """In float32 it is exact, and in float16 the direction of the error tells, if there is enough of it."""
    diagnosis = diagnose(case.texts, peer(activation=activation, dtype=dtype), [case.model])
    right = ["tanh GELU"] if activation == "gelu_new" else []
    if dtype == "float32":
        assert diagnosis.verdict == ("found" if right else "correct"), str(diagnosis)
        assert list(diagnosis.findings[0].deviations) == right
        return
    named = list(diagnosis.findings[0].deviations)
    assert diagnosis.verdict == "found", str(diagnosis)
    if any("from: tanh GELU; add more texts" in note for note in diagnosis.notes):
        assert named == [dtype]
        assert dtype == "bfloat16" or case.folder.name != "real"  # all-MiniLM-L6-v2 shows it with 20 texts
    else:
        assert named == [*right, dtype], str(diagnosis)


def as_json(vectors, digits: str):
    return np.array([[float(format(value, digits)) for value in row] for row in vectors.tolist()])


@pytest.mark.peer
@pytest.mark.parametrize("prompt", ["query: ", ""])
def test_rounded_json(prompt, case, peer):
    vectors = peer(prompt=prompt)
    wrong = [] if prompt else ["prefix missing"]
    for number in (3, 5):
        assert deviations(case, as_json(vectors, f".{number}g")) == [*wrong, f"rounded to {number} significant digits"]
        assert deviations(case, as_json(vectors, f".{number}f")) == [*wrong, f"rounded to {number} decimals"]
    assert deviations(case, as_json(vectors, ".9g")) == wrong


@pytest.mark.peer
def test_base64_of_the_wrong_byte_order(case, peer):
    for vectors, wrong in ((peer(), []), (peer(prompt=""), ["prefix missing"])):
        answer = base64.b64encode(vectors.astype(">f4").tobytes())
        decoded = np.frombuffer(base64.b64decode(answer), "<f4").reshape(vectors.shape)
        assert deviations(case, decoded) == [*wrong, "wrong byte order"]
    with np.errstate(invalid="ignore"):
        doubles = decoded.astype(np.float64)
    with pytest.raises(ValueError, match="wrong order; give them in float32"):
        diagnose(case.texts, doubles, [case.model])
    with pytest.raises(ValueError, match="holds NaN"):  # absurd with their bytes in either order
        diagnose(case.texts, np.where(np.arange(vectors.shape[1]) == 3, np.nan, 1e30 * vectors), [case.model])
