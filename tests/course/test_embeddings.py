"""Every mistake that the exercises of chapter 2 know is named; the right answers are right."""

import numpy as np
import pytest

from e5ref.course import check


def one_hot(ids, size):
    return (np.arange(size) == ids[:, None]) * 1.0


def places(ids, size):
    rows = np.zeros((len(ids), size))
    rows[np.arange(len(ids)), np.arange(len(ids))] = 1
    return rows


def with_ids(ids, size):
    rows = np.zeros((len(ids), size))
    rows[np.arange(len(ids)), ids] = ids
    return rows


def seen(ids, size):
    row = np.zeros(size)
    row[ids] = 1
    return row


def ranked(table, row, n, *, by="cosine", itself=False, more=0):
    norms = np.linalg.norm(table, axis=1)
    scores = {
        "cosine": table @ table[row] / norms / norms[row],
        "dot": table @ table[row],
        "distance": -np.linalg.norm(table - table[row], axis=1),
    }[by]
    order = [index for index in np.argsort(scores)[::-1] if itself or index != row]
    return order[: n + more]


def farthest(table, row, n):
    return ranked(table, row, len(table), itself=True)[::-1][:n]


def scores_of(table, row, n):
    norms = np.linalg.norm(table, axis=1)
    return (table @ table[row] / norms / norms[row])[ranked(table, row, n)]


def embed(ids, word, position, token_type, *, first=0, types=(1, 0), scale=1.0):
    return word[ids] * scale + position[np.arange(len(ids)) + first] + np.array(types) @ token_type


@pytest.mark.parametrize(("exercise", "answer"), [("2.1", one_hot), ("2.2", ranked), ("2.3", embed)])
def test_right(exercise, answer, capsys):
    check(exercise, answer)
    assert capsys.readouterr().out == f"{exercise}: right\n"


@pytest.mark.parametrize(
    ("exercise", "answer", "sentence"),
    [
        ("2.1", lambda ids, size: one_hot(ids, size).T, "should be [T, V]"),
        ("2.1", lambda ids, size: places(ids, max(size, len(ids))), "it should stand at its id"),
        ("2.1", with_ids, "a row holds a single 1"),
        (
            "2.1",
            lambda ids, size: np.bincount(ids, minlength=size),
            "All tokens are in one row, which forgets their order:",
        ),
        ("2.1", seen, "their order and number"),
        ("2.1", lambda ids, size: one_hot((ids + 1) % size, size), "counted from 1"),
        (
            "2.2",
            lambda table, row, n: ranked(table, row, n, itself=True),
            "The row itself is in the list: leave it out.",
        ),
        ("2.2", lambda table, row, n: ranked(table, row, n, itself=True, more=1), "one of the n besides"),
        ("2.2", farthest, "the farthest rows"),
        ("2.2", lambda table, row, n: ranked(table, row, n)[::-1], "the nearest comes last"),
        ("2.2", lambda table, row, n: ranked(table, row, n, by="dot"), "favours long rows"),
        ("2.2", lambda table, row, n: ranked(table, row, n, by="dot", itself=True), "dot product, and the row itself"),
        ("2.2", lambda table, row, n: ranked(table, row, n, by="distance"), "favours short rows"),
        ("2.2", scores_of, "return the numbers of the rows"),
        ("2.3", lambda i, w, p, t: embed(i, w, p * 0, t), "The position is missing"),
        ("2.3", lambda i, w, p, t: embed(i, w, p, t * 0), "The token type is missing"),
        ("2.3", lambda i, w, p, t: embed(i, w, p, t, types=(0, 1)), "The token type is row 1"),
        ("2.3", lambda i, w, p, t: embed(i, w, p, t, types=(1, 1)), "Both rows of token types"),
        ("2.3", lambda i, w, p, t: embed(i, w, p, t, first=1), "counted from 1"),
        ("2.3", lambda i, w, p, t: w[i] + p[i] + t[0], "looked up by the token's id"),
        ("2.3", lambda i, w, p, t: embed(i, w, p, t, scale=2), "multiplied by √D"),
        ("2.3", lambda i, w, p, t: embed(i, w, p, t) / 3, "averaged"),
        ("2.3", lambda i, w, p, t: embed(i, w, p, t).sum(axis=0), "added up, too"),
    ],
)
def test_a_mistake_is_named(exercise, answer, sentence, capsys):
    check(exercise, answer)
    said = capsys.readouterr().out
    assert said.startswith(f"{exercise}: not yet. ")
    assert sentence in said
