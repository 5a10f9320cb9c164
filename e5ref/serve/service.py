"""From what a request asks to its vectors: prompt, tokens, bounds, queue, and a client that hangs up."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from e5ref.checkpoint.prompts import find_prompt
from e5ref.encoder import E5
from e5ref.engines.stream import check_tokens, check_unicode
from e5ref.numpy_model import l2_normalize
from e5ref.serve.batcher import Batcher, FullError, Job, Wanted
from e5ref.serve.schema import Input, RefusedError
from e5ref.tokenizer import TokenIds

# More characters are tokenized on a thread, so that the event loop goes on. Fewer take less time than the thread would.
FEW_CHARACTERS = 4096

# The most tokens of one request for hidden states: each of them has a vector in the answer.
MAX_HIDDEN_TOKENS = 16_384


class Limits(NamedTuple):
    """What a service takes."""

    max_texts: int = 2048  # of one request
    max_waiting: int = 8192  # texts that wait for the engine


class Service:
    """A model that serves many requests at once.

    Attributes:
        model: turns texts into vectors.
        name: what clients call the model.
        limits: what is refused.
        batcher: computes.
    """

    def __init__(self, model: E5, limits: Limits, batcher: Batcher) -> None:
        """Join a model with the queue of its texts."""
        self.model, self.limits, self.batcher = model, limits, batcher
        path = Path(model.checkpoint.name)
        self.name = path.resolve().name if path.is_dir() else model.checkpoint.name

    async def embed(
        self,
        request: Request,
        inputs: Input,
        *,
        prompt_name: str | None,
        truncate: bool | None,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> tuple[NDArray[np.floating], int]:
        """Turn texts into vectors.

        Args:
            request: watched, so that a client that hangs up frees its place.
            inputs: n texts, or token ids of n texts.
            prompt_name: which prompt to put before each text; None for the checkpoint's default.
            truncate: whether to cut texts that are too long.
            normalize: whether to scale to unit L2 norm; None does as the checkpoint says.
            dimensions: keep this many; None for all.

        Returns:
            The vectors, [n, D], and how many tokens they were made of.

        Raises:
            RefusedError: the request cannot be served.
        """
        width = self.model.checkpoint.dimensions
        if dimensions is not None and dimensions > width:
            raise RefusedError(422, f"dimensions is {dimensions}, but the model has {width}")
        if normalize is None:
            normalize = self.model.checkpoint.settings.normalize
        tokens = await self._tokens(inputs, prompt_name, bool(truncate))
        job = await self._finished(request, tokens, "normalized" if normalize else "pooled")
        vectors = job.vectors
        if dimensions is not None:
            vectors = l2_normalize(vectors[:, :dimensions]) if normalize else vectors[:, :dimensions]
        return np.ascontiguousarray(vectors), len(tokens.ids)

    async def hidden_states(
        self, request: Request, inputs: Input, *, prompt_name: str | None, truncate: bool | None
    ) -> list[NDArray[np.floating]]:
        """Turn texts into the last hidden states of their tokens, [tokens, D] each; arguments as of `embed`."""
        tokens = await self._tokens(inputs, prompt_name, bool(truncate))
        if len(tokens.ids) > MAX_HIDDEN_TOKENS:
            raise RefusedError(413, f"inputs have {len(tokens.ids)} tokens, more than {MAX_HIDDEN_TOKENS}; send fewer")
        return (await self._finished(request, tokens, "hidden states")).hidden_states

    def texts(self, texts: Sequence[str], prompt_name: str | None) -> list[str]:
        """Put a prompt before each text; None takes the checkpoint's default. Raises `RefusedError`."""
        self._check_number(len(texts))
        settings = self.model.checkpoint.settings
        try:
            prompt = find_prompt(settings.prompts, prompt_name or settings.default_prompt_name, None)
            return check_unicode([prompt + text for text in texts])
        except ValueError as error:
            raise RefusedError(422, str(error)) from None

    def _check_number(self, texts: int) -> None:
        if texts > self.limits.max_texts:
            raise RefusedError(413, f"{texts} texts are more than {self.limits.max_texts} in one request; send fewer")

    async def _tokens(self, inputs: Input, prompt_name: str | None, truncate: bool) -> TokenIds:
        """Turn what a request holds into token ids that the engine takes."""
        several = [inputs] if isinstance(inputs, str) or isinstance(inputs[0], int) else inputs
        if not isinstance(several[0], str):
            if prompt_name is not None:
                raise RefusedError(422, "a prompt goes before a text, not before token ids; leave out prompt_name")
            return self._checked_ids(several)  # type: ignore[arg-type]
        texts = self.texts(several, prompt_name)  # type: ignore[arg-type]
        few = sum(map(len, texts)) <= FEW_CHARACTERS
        tokens = self.model.tokenizer(texts) if few else await asyncio.to_thread(self.model.tokenizer, texts)
        try:
            check_tokens(tokens)
        except ValueError as error:
            raise RefusedError(422, str(error)) from None
        too_long = np.flatnonzero(tokens.truncated)
        if len(too_long) and not truncate:
            number = too_long[0]
            count = f"{'' if tokens.exact[number] else 'more than '}{tokens.n_tokens[number]}"
            most = self.model.tokenizer.max_length
            raise RefusedError(
                413, f"texts[{number}] has {count} tokens, more than {most}; split it, or send truncate: true"
            )
        return tokens

    def _checked_ids(self, several: Sequence[Sequence[int]]) -> TokenIds:
        """Take token ids as they are: those of whole texts, as `/tokenize` gives them."""
        self._check_number(len(several))
        size, most = self.model.checkpoint.config.vocab_size, self.model.tokenizer.max_length
        first, *_, last = self.model.tokenizer([""]).ids  # [CLS] and [SEP]
        for number, ids in enumerate(several):
            if max(ids) >= size:
                raise RefusedError(422, f"texts[{number}] has the token id {max(ids)}, but the ids end at {size - 1}")
            if len(ids) < 2 or (ids[0], ids[-1]) != (first, last):
                raise RefusedError(
                    422,
                    f"the token ids of texts[{number}] must begin with {first} and end with {last}, as those that "
                    "/tokenize gives; those of another tokenizer mean nothing to this model",
                )
            if len(ids) > most:
                raise RefusedError(413, f"texts[{number}] has {len(ids)} tokens, more than {most}; cut it")
        lengths = np.array([len(ids) for ids in several])
        flat = np.concatenate([np.array(ids, np.int32) for ids in several])
        return TokenIds(flat, np.cumsum([0, *lengths]), lengths, np.ones(len(lengths), np.bool_))

    async def _finished(self, request: Request, tokens: TokenIds, wanted: Wanted) -> Job:
        """Have texts computed; leave them if the client hangs up."""
        try:
            job = self.batcher.submit(tokens, wanted)
        except FullError as error:
            raise refused_for_now(error) from None
        hang_up = asyncio.ensure_future(request.receive())  # after the body nothing else can come
        either: set[asyncio.Future[Any]] = {job.done, hang_up}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not job.done.done():
                raise RefusedError(499, "the client has hung up")
            await job.done
        except ValueError as error:  # of the engine: numbers that its precision cannot hold
            raise RefusedError(500, str(error)) from None
        finally:
            hang_up.cancel()
            if not job.done.done():
                self.batcher.cancel(job)
        return job


def refused_for_now(error: FullError) -> RefusedError:
    """Turn a full queue into HTTP's way of saying so."""
    return RefusedError(429, str(error), {"Retry-After": str(error.seconds)})
