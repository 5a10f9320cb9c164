"""The reference with something changed: unchanged it is the reference, and what is rounded is what the dtype holds."""

import numpy as np
import pytest
import torch

import e5ref
from e5ref import numpy_model
from e5ref.parity.altered import models
from e5ref.parity.altered.models import model_copy, padded_model, round_params, round_to, rounded_model, run_reference
from tests.tools.batches import ragged_batch
from tests.tools.runs import our_run

BATCH = ragged_batch([9, 1, 30, 2], 40)


@pytest.fixture(scope="module")
def checkpoint(tiny_bert) -> e5ref.Checkpoint:
    return e5ref.read_checkpoint(tiny_bert, dtype="float64")


def test_the_reference_in_small_batches_is_the_forward_pass(checkpoint, monkeypatch):
    monkeypatch.setattr(models, "BATCH_TOKENS", 60)
    expected = our_run(checkpoint, *BATCH)
    actual = run_reference(checkpoint, *BATCH)
    assert list(actual) == list(expected)
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], atol=1e-14)
    assert list(run_reference(checkpoint, *BATCH, only={"pooled", "layers.1.key"})) == ["layers.1.key", "pooled"]


def test_a_change_stays_in_its_copy(checkpoint):
    changed = model_copy(gelu=lambda x: np.maximum(x, 0))
    assert changed.gelu is not numpy_model.gelu
    assert np.abs(run_reference(checkpoint, *BATCH, model=changed)["pooled"]).max() > 0
    assert model_copy().gelu(np.array([[-1.0]])) == numpy_model.gelu(np.array([[-1.0]]))
    with pytest.raises(ValueError, match="has no 'gleu'"):
        model_copy(gleu=None)


def test_padding_computed_changes_nothing_of_the_texts(checkpoint):
    expected, real = run_reference(checkpoint, *BATCH), BATCH[1] == 1
    for name, actual in run_reference(checkpoint, *BATCH, model=padded_model()).items():
        if name.endswith("probabilities"):
            actual = np.where((real[:, :, None] & real[:, None, :])[:, None], actual, 0)
        elif actual.ndim == 3:
            actual = np.where(real[..., None], actual, 0)
        np.testing.assert_allclose(actual, expected[name], atol=1e-13, err_msg=name)
    unmasked = run_reference(checkpoint, *BATCH, model=padded_model(0.0))
    assert np.abs(unmasked["pooled"] - expected["pooled"]).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_is_that_of_torch(dtype):
    x = np.random.default_rng(0).normal(size=10_000).astype(np.float32) * np.float32(10.0) ** np.arange(-4, 4).repeat(
        1250
    )
    expected = torch.from_numpy(x).to(getattr(torch, dtype)).float().numpy()
    assert np.array_equal(round_to(x, dtype), expected)
    ties = np.array([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11], np.float32)
    assert np.array_equal(round_to(ties, dtype), torch.from_numpy(ties).to(getattr(torch, dtype)).float().numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_point_of_a_rounded_run_holds_rounded_numbers(tiny_bert, dtype):
    checkpoint = e5ref.read_checkpoint(tiny_bert)
    points = run_reference(
        checkpoint, *BATCH, model=rounded_model(dtype), params=round_params(checkpoint.params, dtype)
    )
    for name, array in points.items():
        assert np.array_equal(array, round_to(array, dtype)), name
    exact = run_reference(checkpoint, *BATCH)
    assert 0 < np.abs(points["normalized"] - exact["normalized"]).max() < 0.1
