"""transformers, run so that it yields the same named points as our forward pass, and the comparison of two runs."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel

from tests.tolerances import POINTS

Run = dict[str, np.ndarray]


def transformers_run(folder: Path, input_ids: np.ndarray, attention_mask: np.ndarray, dtype: str) -> Run:
    """Run a checkpoint in transformers and record every named point, in the forward pass's order."""
    model = AutoModel.from_pretrained(
        folder, attn_implementation="eager", dtype=getattr(torch, dtype), local_files_only=True, add_pooling_layer=False
    ).eval()
    run: Run = {}

    def record(module: torch.nn.Module, name: str) -> None:
        module.register_forward_hook(lambda _module, _inputs, output: run.update({name: output.numpy()}))

    record(model.embeddings, "embeddings")
    for index, layer in enumerate(model.encoder.layer):
        name = f"layers.{index}"
        record(layer.attention.self.query, f"{name}.query")
        record(layer.attention.self.key, f"{name}.key")
        record(layer.attention.self.value, f"{name}.value")

        def record_attention(_module, _inputs, output, name=name):
            run[f"{name}.attention_probabilities"] = output[1].numpy()
            run[f"{name}.context"] = output[0].numpy()

        layer.attention.self.register_forward_hook(record_attention)
        record(layer.attention.output, f"{name}.attention_output")
        record(layer.intermediate, f"{name}.feed_forward_activation")
        record(layer.output, f"{name}.output")

    ids, mask = torch.from_numpy(input_ids), torch.from_numpy(attention_mask)
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled = states.masked_fill(mask[..., None] == 0, 0.0).sum(dim=1) / mask.sum(dim=1)[..., None]
        normalized = torch.nn.functional.normalize(pooled, p=2, dim=1)
    return run | {"last_hidden_state": states.numpy(), "pooled": pooled.numpy(), "normalized": normalized.numpy()}


def first_departure(run: Run, reference: Run, attention_mask: np.ndarray, dtype: str) -> str | None:
    """Name the first point where a run leaves the reference by more than its tolerance, and by how much.

    What stands at padding is not compared: transformers computes something there, we put 0.
    """
    if list(run) != list(reference):
        return f"names: {sorted(run.keys() ^ reference.keys()) or 'in another order'}"
    real = attention_mask == 1
    for name, expected in reference.items():
        actual = run[name]
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            return f"{name}: {actual.dtype} {actual.shape} for {expected.dtype} {expected.shape}"
        if actual.ndim == 4:  # [B, N, T, T] -> [real pairs of tokens, N]
            pairs = real[:, :, None] & real[:, None, :]
            actual, expected = (array.transpose(0, 2, 3, 1)[pairs] for array in (actual, expected))
        elif actual.ndim == 3:  # [B, T, n] -> [R, n]
            actual, expected = actual[real], expected[real]
        difference = np.abs(actual - expected).max() / np.abs(expected).max()
        if not difference <= POINTS[dtype]:  # so written, a NaN departs too
            return f"{name}: {difference:.1e}"
    return None
