"""What changes if: a text with its prefix away or exchanged, a word less, or its words in another order."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from e5ref.inside.run import Trace
from e5ref.operations.similarity import pairwise_cosines


class Change(NamedTuple):
    """A text that was changed, and how."""

    name: str
    text: str


def changes_of(text: str, prompts: Mapping[str, str]) -> list[Change]:
    """Change a text in all the ways that it allows.

    Args:
        text: with its prefix, if it has one.
        prompts: those of the checkpoint, by name.
    """
    known = list(dict.fromkeys(filter(None, prompts.values())))
    prefix = max((prompt for prompt in known if text.startswith(prompt)), key=len, default="")
    body = text[len(prefix) :]
    changes = [Change("the prefix away", body)] if prefix else []
    changes += [
        Change(f"“{other.strip()}” {f'for “{prefix.strip()}”' if prefix else 'in front'}", other + body)
        for other in known[:3]
        if other != prefix
    ]
    words = body.split()
    if len(words) > 1:
        left_out = words.index(max(words, key=len))
        changes.append(
            Change(f"without “{words[left_out]}”", prefix + " ".join(words[:left_out] + words[left_out + 1 :]))
        )
        changes.append(Change("the words backwards", prefix + " ".join(reversed(words))))
    return changes


def compared(before: Trace, after: Trace, others: list[Trace]) -> dict[str, Any]:
    """Say what a change does to the hidden states and to the vector.

    Args:
        before: the run of the text as it was.
        after: the run of the text as it was changed.
        others: runs of texts that both are compared with.

    Returns:
        "cosine" of the two vectors; "cosines" with those of the others, before and after; "kept", the tokens that are
        in both texts, as pairs of places; "moved" [kept, layers + 1], the distance between the two states of such a
        token, relative to the norm of the first, as they enter the first layer and leave each.
    """
    kept = kept_tokens(before.ids, after.ids)
    first, second = ([pair[side] for pair in kept] for side in (0, 1))
    states = [name for name in before.points if name == "embeddings" or name.endswith(".output")]
    moved = [
        np.linalg.norm(before.points[name][first] - after.points[name][second], axis=1)
        / np.linalg.norm(before.points[name][first], axis=1)
        for name in states
    ]
    return {
        "cosine": float(pairwise_cosines(before.vector, after.vector)[0]),
        "cosines": [
            [float(pairwise_cosines(run.vector, other.vector)[0]) for run in (before, after)] for other in others
        ],
        "kept": kept,
        "moved": np.array(moved, np.float64).T.round(6).tolist(),
    }


def kept_tokens(before: NDArray[np.int64], after: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pair the tokens that are in both texts: the first of an id with the first, the second with the second.

    Args:
        before: ids, [T].
        after: ids, [U].

    Returns:
        Pairs of places, in the order of `before`.
    """

    def numbered(ids: NDArray[np.int64]) -> dict[tuple[int, int], int]:
        seen: Counter[int] = Counter()
        places = {}
        for place, token_id in enumerate(ids.tolist()):
            places[token_id, seen[token_id]] = place
            seen[token_id] += 1
        return places

    places = numbered(after)
    return [(place, places[key]) for key, place in numbered(before).items() if key in places]
