"""What a mask says of texts, and where their tokens stand as rows."""

import numpy as np
import pytest

from e5ref.operations import rows


def test_rows_alternate_by_hand(monkeypatch):
    """Of two texts of nine and six tokens, eight stand at even positions and seven at odd ones."""
    monkeypatch.setattr(rows, "rows_alternate", lambda: True)
    mask = (np.arange(10) < np.array([[9], [6]])).astype(int)
    tokens = np.array([*range(1, 10), *range(11, 17)], float)[:, None]
    placed = rows.rows_of(tokens, mask)
    even, odd = [1, 3, 5, 7, 9, 11, 13, 15], [2, 4, 6, 8, 12, 14, 16]
    assert placed[:, 0].tolist() == even[:6] + odd[:6] + even[6:] + [1] * 4 + odd[6:] + [1] * 5
    np.testing.assert_array_equal(rows.tokens_of(placed, mask), tokens)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64"])
def test_rows_of_any_mask(monkeypatch, dtype):
    """Padding may stand anywhere: a token's position is that among its text's tokens."""
    monkeypatch.setattr(rows, "rows_alternate", lambda: True)
    mask = np.random.default_rng(0).integers(0, 2, (7, 23)).astype(dtype)
    places = rows.token_rows(mask)
    assert len(set(places)) == len(places)
    assert (places % 12 // 6).tolist() == [position % 2 for row in mask for position in range(int(row.sum()))]
    tokens = np.arange(2 * len(places), dtype=np.float32).reshape(-1, 2)
    placed = rows.rows_of(tokens, mask)
    assert len(placed) % 12 == 0
    np.testing.assert_array_equal(rows.tokens_of(placed, mask), tokens)


def test_lengths_and_starts_of_packed_texts_by_hand():
    """The first text of a row counts from the row's start; the others from their first token, also behind a hole."""
    mask = np.array([[1, 1, 2, 2, 2, 3], [0, 1, 0, 2, 0, 2], [1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]])
    assert rows.text_lengths(mask).tolist() == [[2, 3, 1], [1, 2, 0], [3, 0, 0], [0, 0, 0]]
    assert rows.text_lengths(mask, 4)[:, 3].tolist() == [0] * 4
    starts = [[0, 0, 2, 2, 2, 5], [0, 0, 0, 3, 3, 3], [0] * 6, [0] * 6]
    for dtype in ("int64", "uint8", "uint64"):
        assert rows.text_starts(mask.astype(dtype)).tolist() == starts
        assert rows.text_lengths(mask.astype(dtype)).tolist() == rows.text_lengths(mask).tolist()


def test_rows_alternate_within_each_packed_text(monkeypatch):
    """A token's place among twelve is by its position in its text, whatever row the text is in."""
    monkeypatch.setattr(rows, "rows_alternate", lambda: True)
    packed = rows.token_rows(np.array([[1, 1, 1, 0, 2, 2, 2, 2, 2, 3]]))
    np.testing.assert_array_equal(packed, rows.token_rows(np.array([[1] * 3 + [0] * 2, [1] * 5, [1] + [0] * 4])))
    assert (packed % 12 // 6).tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 0]


def test_rows_of_no_text(monkeypatch):
    monkeypatch.setattr(rows, "rows_alternate", lambda: True)
    assert rows.rows_of(np.zeros((0, 3)), np.zeros((0, 5), int)).shape == (0, 3)


def test_rows_by_hand():
    attention_mask = np.array([[1, 2, 0], [0, 1, 0]])
    padded = rows.pad_rows(rows.rows_of(np.array([[1.0], [2.0], [3.0]]), attention_mask), attention_mask)
    assert padded[..., 0].tolist() == [[1, 2, 0], [0, 3, 0]]
