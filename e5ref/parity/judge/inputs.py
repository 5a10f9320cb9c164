"""Whether two runs are of the same token ids."""

from e5ref.parity.runs.run import Run


def other_inputs(run: Run, reference: Run) -> str | None:
    """Say how the inputs of two runs differ. Where padding stands, and how much there is, does not count.

    Args:
        run: what is judged.
        reference: what it is judged by.

    Returns:
        The difference in words, of the first text that differs; None where there is none.
    """
    ours, theirs = (
        [ids[mask == 1].tolist() for ids, mask in zip(one.input_ids, one.attention_mask, strict=True)]
        for one in (run, reference)
    )
    if ours == theirs:
        return None
    if len(ours) != len(theirs):
        return f"{len(ours)} texts for {len(theirs)}"
    if sorted(ours) == sorted(theirs):
        return "the same texts in another order"
    text = next(index for index, row in enumerate(ours) if row != theirs[index])
    if run.texts and reference.texts and run.texts[text] != reference.texts[text]:
        return f"text {text} is {_short(run.texts[text])} for {_short(reference.texts[text])}"
    least = min(len(ours[text]), len(theirs[text]))
    # Of a text that was cut, the last token may be [SEP] all the same.
    if len(ours[text]) != len(theirs[text]) and ours[text][: least - 1] == theirs[text][: least - 1]:
        return f"text {text} has {len(ours[text])} real tokens for {len(theirs[text])}: cut, or masked, otherwise"
    token = next(index for index in range(least) if ours[text][index] != theirs[text][index])
    return (
        f"text {text}, token {token} is {_token(run, ours, text, token)} for {_token(reference, theirs, text, token)}"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


def _token(run: Run, ids: list[list[int]], text: int, token: int) -> str:
    string = run.token(text, token)
    return f"{ids[text][token]}" + ("" if string is None else f" ({string})")
