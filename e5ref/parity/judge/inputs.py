"""Whether two runs have the same token ids."""

from e5ref.parity.runs.run import Run


def difference_in_inputs(run: Run, reference: Run) -> str | None:
    """Say how the inputs of two runs differ. Padding does not count.

    Args:
        run: the run that is judged.
        reference: the run that it is judged by.

    Returns:
        The difference at the first text that differs, in words; None if there is no difference.
    """
    ours, theirs = (
        [ids[mask == 1].tolist() for ids, mask in zip(one.input_ids, one.attention_mask, strict=True)]
        for one in (run, reference)
    )
    if ours == theirs:
        return None
    if len(ours) != len(theirs):
        return f"{len(ours)} texts instead of {len(theirs)}"
    if sorted(ours) == sorted(theirs):
        return "the same texts in a different order"
    text = next(index for index, ids in enumerate(ours) if ids != theirs[index])
    if run.texts and reference.texts and run.texts[text] != reference.texts[text]:
        return f"text {text} is {_short(run.texts[text])} instead of {_short(reference.texts[text])}"
    ids, right = ours[text], theirs[text]
    least = min(len(ids), len(right))
    # The last token is left out: it is [SEP] even if the text was cut.
    if len(ids) != len(right) and ids[: least - 1] == right[: least - 1]:
        return f"text {text} has {len(ids)} real tokens instead of {len(right)}: it is cut or masked differently"
    token = next(index for index in range(least) if ids[index] != right[index])
    said, expected = _token(run, ids, text, token), _token(reference, right, text, token)
    return f"text {text}, token {token} is {said} instead of {expected}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


def _token(run: Run, ids: list[int], text: int, token: int) -> str:
    string = run.token(text, token)
    return f"{ids[token]}" + ("" if string is None else f" ({string})")
