"""A batch: what its `attention_mask` [B, T] says, and where its tokens stand as rows [R, n].

0 in the mask is padding, and k > 0 is a token of the row's k-th text. A mask of 0 and 1, as in `transformers`, is the
case of one text a row.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from e5ref.checkpoint.config import BertConfig
from e5ref.operations import Array, Ids
from e5ref.operations.blas import rows_alternate


def text_lengths(attention_mask: Ids, texts_per_row: int | None = None) -> NDArray[np.int64]:
    """Count the tokens of each text of each row. [B, T] -> [B, K], 0 for a text that is not there.

    K is `texts_per_row`; if that is None, as many as the fullest row has.

    Raises:
        ValueError: as `check_texts_per_row`.
    """
    rows = len(attention_mask)
    if texts_per_row is None:
        texts_per_row = int(attention_mask.max(initial=1))
    else:
        check_texts_per_row(attention_mask, texts_per_row)
    # No two rows share a number. [B, T]
    numbers = attention_mask.astype(np.int64, copy=False) + (texts_per_row + 1) * np.arange(rows)[:, None]
    counts = np.bincount(numbers.ravel(), minlength=rows * (texts_per_row + 1))
    return counts.reshape(rows, texts_per_row + 1)[:, 1:]


def text_starts(attention_mask: Ids) -> NDArray[np.int64]:
    """Find the column from which each token's text counts its positions. [B, T] -> [B, T].

    The first text of a row counts from the start of the row, even behind padding. The next ones count from their first
    token.
    """
    reached = np.maximum.accumulate(attention_mask, axis=1)  # [B, T]
    begins = (reached > 1) & (np.diff(reached, axis=1, prepend=0) > 0)  # [B, T]
    return np.maximum.accumulate(np.where(begins, np.arange(attention_mask.shape[1]), 0), axis=1)


def first_tokens(attention_mask: Ids, texts_per_row: int) -> NDArray[np.int64]:
    """Find the column of each text's first token. [B, T] -> [B, K], 0 for a text that is not there.

    Raises:
        ValueError: as `check_texts_per_row`.
    """
    check_texts_per_row(attention_mask, texts_per_row)
    is_of_text = attention_mask[:, None] == np.arange(1, texts_per_row + 1)[:, None]  # [B, K, T]
    return is_of_text.argmax(axis=2)


def token_positions(input_ids: Ids, attention_mask: Ids, config: BertConfig) -> NDArray[np.int64]:
    """Number the positions of tokens, anew in each text. [B, T], [B, T] -> [B, T].

    BERT numbers by column, from 0 on; XLM-RoBERTa counts the tokens that are not padding, from the padding id + 1 on.
    """
    starts = text_starts(attention_mask)  # [B, T]
    if not config.position_offset:
        return np.arange(input_ids.shape[1]) - starts
    is_token = input_ids != config.pad_token_id
    counts = np.cumsum(is_token, axis=1)  # [B, T]
    counts -= np.take_along_axis(counts - is_token, starts, axis=1)
    return counts * is_token + config.pad_token_id


def rows_of(tokens: Array, attention_mask: Ids) -> Array:
    """Put tokens, text after text, into rows in which the BLAS rounds each alike. [tokens, n], [B, T] -> [R, n].

    If `rows_alternate`, tokens at even positions of their text take the first six of every twelve rows, and those at
    odd positions the other six. Unused rows hold a copy of the first token. Otherwise each token takes the next row.
    """
    if not rows_alternate():
        return tokens
    places = token_rows(attention_mask)
    rows = np.repeat(tokens[:1], (places.max(initial=-1) // 12 + 1) * 12, axis=0)
    rows[places] = tokens
    return rows


def tokens_of(rows: Array, attention_mask: Ids) -> Array:
    """Take the tokens, text after text, out of the rows that `rows_of` gave them. [R, n], [B, T] -> [tokens, n]."""
    return rows[token_rows(attention_mask)] if rows_alternate() else rows


def token_rows(attention_mask: Ids) -> NDArray[np.int64]:
    """Return the row of each token if `rows_alternate`. [B, T] -> [tokens]."""
    return alternating_rows(tuple(text_lengths(attention_mask).ravel().tolist()))


@functools.lru_cache(maxsize=32)  # every layer of a batch asks for them, of several batches at a time
def alternating_rows(lengths: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the row of each token, for texts of these lengths, if `rows_alternate`."""
    counts = np.array(lengths, np.int64)
    odd = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)) % 2  # [tokens]
    before = np.where(odd, np.cumsum(odd), np.cumsum(1 - odd)) - 1  # [tokens], how many of its kind stand before each
    places = before // 6 * 12 + odd * 6 + before % 6
    places.flags.writeable = False  # it is handed out again
    return places


def pad_rows(rows: Array, attention_mask: Ids) -> Array:
    """Put rows back into their places in the padded batch, zeros elsewhere. [R, n], [B, T] -> [B, T, n]."""
    padded = np.zeros((*attention_mask.shape, rows.shape[-1]), rows.dtype)
    padded[attention_mask > 0] = tokens_of(rows, attention_mask)
    return padded


def check_texts_per_row(attention_mask: Ids, texts_per_row: int) -> None:
    """Check that no row has more texts than `texts_per_row`: pooling would give the rest to the next row.

    Raises:
        ValueError: says how many a row has.
    """
    most = attention_mask.max(initial=0)
    if most > texts_per_row:
        raise ValueError(f"attention_mask numbers {most} texts of a row, but texts_per_row is {texts_per_row}")


def check_batch(input_ids: Ids, attention_mask: Ids, config: BertConfig) -> None:
    """Check what goes into the forward pass.

    Raises:
        ValueError: says which argument is wrong, and where. Both must be NumPy arrays.
    """
    if input_ids.dtype.kind not in "iu" or attention_mask.dtype.kind not in "biu":
        raise ValueError(
            f"input_ids and attention_mask must be whole numbers, but are {input_ids.dtype} and {attention_mask.dtype}"
        )
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape:
        raise ValueError(
            f"input_ids and attention_mask must both be [B, T], but have shapes {input_ids.shape} and "
            f"{attention_mask.shape}"
        )
    empty = np.flatnonzero(~(attention_mask > 0).any(axis=1))
    if len(empty):
        raise ValueError(f"attention_mask leaves row {empty[0]} without a single real token")
    reached = np.maximum.accumulate(attention_mask, axis=1)  # [B, T]
    skipped = np.diff(reached, axis=1, prepend=0) > 1
    if (attention_mask < 0).any() or ((attention_mask > 0) & (attention_mask < reached)).any() or skipped.any():
        raise ValueError("attention_mask must hold 0 for padding and 1, 2, … for the first, second, … text of a row")
    positions = np.where(attention_mask > 0, np.arange(input_ids.shape[1]) - text_starts(attention_mask), 0)
    longest = positions.max(initial=-1) + 1
    if longest > config.max_tokens:
        raise ValueError(f"input_ids has a text of {longest} tokens, but the model {config.max_tokens} positions")
    outside = (input_ids < 0) | (input_ids >= config.vocab_size)
    if outside.any():
        row, token = np.argwhere(outside)[0]
        raise ValueError(
            f"input_ids[{row}, {token}] is {input_ids[row, token]}, outside the vocabulary of {config.vocab_size}; "
            "were the ids made by another model's tokenizer?"
        )
