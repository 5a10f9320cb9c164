"""Which text of its row each token of a batch is of: what an `attention_mask` [B, T] says."""

import numpy as np
from numpy.typing import NDArray


def text_lengths(attention_mask: NDArray[np.integer], most: int | None = None) -> NDArray[np.int64]:
    """Count the tokens of each text of each row.

    Args:
        attention_mask: [B, T], k > 0 for a token of the row's k-th text.
        most: K, texts of a row; None for as many as the fullest row has.

    Returns:
        [B, K], 0 for a text that is not there.

    Raises:
        ValueError: as `check_texts_per_row`.
    """
    rows = len(attention_mask)
    if most is None:
        most = int(attention_mask.max(initial=1))
    else:
        check_texts_per_row(attention_mask, most)
    # No two rows share a number. [B, T]
    numbers = attention_mask.astype(np.int64, copy=False) + (most + 1) * np.arange(rows)[:, None]
    return np.bincount(numbers.ravel(), minlength=rows * (most + 1)).reshape(rows, most + 1)[:, 1:]


def text_starts(attention_mask: NDArray[np.integer]) -> NDArray[np.int64]:
    """Find the column from which each token's text counts its positions. [B, T] -> [B, T].

    The first text of a row counts from the start of the row, whatever padding stands before it; the others from their
    first token.
    """
    reached = np.maximum.accumulate(attention_mask, axis=1)  # [B, T]
    begins = (reached > 1) & (np.diff(reached, axis=1, prepend=0) > 0)  # [B, T]
    return np.maximum.accumulate(np.where(begins, np.arange(attention_mask.shape[1]), 0), axis=1)


def check_texts_per_row(attention_mask: NDArray[np.integer], texts_per_row: int) -> None:
    """Check that no row has more texts than said, which pooling would leave out or give to the next row.

    Raises:
        ValueError: says how many a row has.
    """
    most = attention_mask.max(initial=0)
    if most > texts_per_row:
        raise ValueError(f"attention_mask numbers {most} texts of a row, but texts_per_row is {texts_per_row}")
