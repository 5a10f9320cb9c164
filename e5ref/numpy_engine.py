"""Runs batches of token ids through the NumPy twin."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from e5ref import numpy_model
from e5ref.batching import pad_ids, token_batches
from e5ref.checkpoint import Checkpoint
from e5ref.numpy_ops import rows_are_independent


class Batch(NamedTuple):
    """Token ids of some texts, and where their vectors belong."""

    ids: list[list[int]]
    vectors: NDArray[np.floating]  # [n, D], of a whole window of texts
    rows: list[int]  # the rows of `vectors` that are those of `ids`


class NumpyEngine:
    """What `E5` asks of a twin. `JaxEngine` has the same methods.

    Attributes:
        window_texts: how many texts to tokenize and sort by length together: enough to fill every batch well, few
            enough to hold.
    """

    window_texts = 4096

    def __init__(self, checkpoint: Checkpoint, *, pad_id: int) -> None:
        """Run the weights of `checkpoint`; `pad_id` fills short rows of a batch."""
        self._checkpoint = checkpoint
        self._pad_id = pad_id

    def batches(self, lengths: Sequence[int], *, max_texts: int | None) -> Iterator[list[int]]:
        """Split texts of these lengths into batches of at most `max_texts`; yields indices."""
        # Where the BLAS rounds a text's rows differently by what stands beside them, it gets one text at a time.
        return token_batches(lengths, max_texts=max_texts if self._rows_are_independent() else 1)

    def run(self, batches: Iterable[Batch], *, normalize: bool) -> Iterator[Batch]:
        """Compute the vectors of each batch, write them where they belong, and yield the batch."""
        for batch in batches:
            input_ids, attention_mask = pad_ids(batch.ids, self._pad_id)
            batch.vectors[batch.rows] = numpy_model.embed(
                self._checkpoint.params,
                input_ids,
                attention_mask,
                config=self._checkpoint.config,
                pooling=self._checkpoint.settings.pooling,
                normalize=normalize,
            )
            yield batch

    def warm_up(self) -> Iterator[int]:
        """Do what the first texts would wait for; yield the number of all steps after each. Here: try out the BLAS."""
        self._rows_are_independent()
        yield 1

    def provenance(self) -> dict[str, str]:
        """Say what computed the vectors."""
        return {"backend": "numpy"}

    def _rows_are_independent(self) -> bool:
        D, F = self._checkpoint.config.hidden_size, self._checkpoint.config.intermediate_size
        dtype = str(self._checkpoint.params.embeddings.word.dtype)
        return all(rows_are_independent(*shape, dtype) for shape in ((D, D), (D, F), (F, D)))
