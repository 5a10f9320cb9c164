"""Chapter 8: the right answers are right, each usual mistake gets its sentence, and an unknown exercise is an error."""

import pytest

from e5ref.course import CHAPTERS, check


def flops(n, d, f, t):
    return n * (8 * d * d + 4 * d * f + 4 * d * t)


def pack(lengths, size):
    left = sorted(range(len(lengths)), key=lambda text: -lengths[text])
    rows = []
    while left:
        row, room = [], size
        for text in left:
            if lengths[text] <= room:
                row.append(text)
                room -= lengths[text]
        left = [text for text in left if text not in row]
        rows.append(row)
    return rows


def in_order(lengths, size):
    rows, room = [], 0
    for text, length in enumerate(lengths):
        if length > room:
            rows.append([])
            room = size
        rows[-1].append(text)
        room -= length
    return rows


def parts(rows, inputs, outputs, rate, bandwidth):
    moved = rows * inputs + inputs * outputs + rows * outputs
    return 2 * rows * inputs * outputs / rate, 4 * moved / bandwidth


def with_bytes(count):
    return lambda m, i, o, rate, bandwidth: max(2 * m * i * o / rate, 4 * count(m, i, o) / bandwidth)


@pytest.mark.parametrize(
    ("exercise", "answer"), [("8.1", flops), ("8.2", pack), ("8.3", lambda *sizes: max(parts(*sizes)))]
)
def test_right(exercise, answer, capsys):
    check(exercise, answer)
    assert capsys.readouterr().out == f"{exercise}: right\n"


@pytest.mark.parametrize(
    ("exercise", "answer", "sentence"),
    [
        ("8.1", lambda n, d, f, t: flops(n, d, f, t) / 2, "multiply by 2"),
        ("8.1", lambda n, d, f, t: flops(1, d, f, t), "That is one layer"),
        ("8.1", lambda n, d, f, t: n * (8 * d * d + 4 * d * f), "two products with the text's T tokens"),
        ("8.1", lambda n, d, f, t: n * (8 * d * d + 4 * d * f + 2 * d * t), "you count one"),
        ("8.1", lambda n, d, f, t: t * flops(n, d, f, t), "That is a whole text"),
        ("8.1", lambda n, d, f, t: n * (8 * d * d + 4 * d * f + 4 * d * t * t), "not for each pair"),
        ("8.1", lambda n, d, f, t: n * (6 * d * d + 4 * d * f + 4 * d * t), "You count three"),
        ("8.1", lambda n, d, f, t: n * (2 * d * d + 4 * d * f + 4 * d * t), "You count one"),
        ("8.1", lambda n, d, f, t: n * (8 * d * d + 2 * d * f + 4 * d * t), "up and down; you count one"),
        ("8.1", lambda n, d, f, t: n * (8 * d * d + 4 * d * t), "Feed-forward is missing"),
        ("8.2", lambda lengths, size: [[text] for text in range(len(lengths))], "you use 4 rows where 2 are enough"),
        ("8.2", in_order, "you use 3 rows where 2 are enough"),
        ("8.2", lambda lengths, size: [list(range(len(lengths)))], "Row 0 has 12 tokens; 6 fit"),
        ("8.2", lambda lengths, size: pack(lengths, size)[:1], "is in no row"),
        ("8.2", lambda lengths, size: [*pack(lengths, size), [0]], "stands in more than one place"),
        ("8.2", lambda lengths, size: [*pack(lengths, size), [99]], "A row has 99"),
        ("8.2", lambda lengths, size: None, "it lacks a `return`"),
        ("8.3", lambda *sizes: sum(parts(*sizes)), "You add both times"),
        ("8.3", lambda *sizes: min(parts(*sizes)), "You take the shorter time"),
        ("8.3", lambda *sizes: parts(*sizes)[0], "You leave out the time to move"),
        ("8.3", lambda *sizes: parts(*sizes)[1], "You leave out the time to compute"),
        ("8.3", lambda *sizes: max(parts(*sizes)[0], parts(*sizes)[1] / 4), "has 4 bytes."),
        ("8.3", lambda *sizes: max(parts(*sizes)[0], parts(*sizes)[1] * 2), "4 bytes, not 8"),
        ("8.3", lambda *sizes: max(parts(*sizes)[0] / 2, parts(*sizes)[1]), "multiply by 2"),
        ("8.3", with_bytes(lambda m, i, o: i * o), "Only the weight is moved"),
        ("8.3", with_bytes(lambda m, i, o: m * i + m * o), "The weight is missing"),
        ("8.3", with_bytes(lambda m, i, o: m * i + i * o), "The result is missing"),
        ("8.3", with_bytes(lambda m, i, o: i * o + m * o), "The rows are missing"),
        ("8.3", lambda *sizes: None, "it lacks a `return`"),
    ],
)
def test_a_usual_mistake(exercise, answer, sentence, capsys):
    check(exercise, answer)
    output = capsys.readouterr().out
    assert output.startswith(f"{exercise}: not yet. ")
    assert sentence in output


@pytest.mark.parametrize("exercise", ["9.1", "1.9", "0.1", "", "one", "-1.1"])
def test_an_unknown_exercise(exercise):
    with pytest.raises(KeyError, match=f"the course has 1.1 to {len(CHAPTERS)}.3"):
        check(exercise, 1)
