"""Batches of random ids: padded, or of several texts a row."""

import numpy as np

from e5ref.engines.batching import pad_ids


def ragged_batch(lengths: list[int], vocab_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random ids of the given lengths, padded with 1: XLM-RoBERTa's padding id, and an ordinary id to BERT."""
    random = np.random.default_rng(seed)
    attention_mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    input_ids = np.where(attention_mask == 1, random.integers(2, vocab_size, attention_mask.shape), 1)
    return input_ids, attention_mask


def packed_batch(rows: list[list[int]], vocab_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random ids of several texts a row: n stands for a text of n tokens, -n for padding of so many, of any ids."""
    random = np.random.default_rng(seed)
    attention_mask = np.zeros((len(rows), max(sum(map(abs, row)) for row in rows)), np.int64)
    for mask, row in zip(attention_mask, rows, strict=True):
        numbers = np.cumsum(np.array(row) > 0) * (np.array(row) > 0)
        mask[: sum(map(abs, row))] = np.repeat(numbers, np.abs(row))
    return random.integers(1, vocab_size, attention_mask.shape), attention_mask


def one_text_a_row(input_ids: np.ndarray, attention_mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take a packed batch apart: every text in a row of its own, padded on the right."""
    rows = zip(input_ids, attention_mask, strict=True)
    return pad_ids([ids[mask == number] for ids, mask in rows for number in range(1, mask.max() + 1)], 1)
