"""A corpus on a Ray cluster: Ray gives ranges of rows to actors, one a device, and each writes its parts."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
from numpy.typing import NDArray

import e5ref
from e5ref.corpus.job import PART_BYTES, Done, Job, open_folder, write_parts
from e5ref.corpus.writing import find_parts, gaps
from e5ref.encoder import E5
from e5ref.files.whole import locked
from e5ref.terminal.progress import RowProgress

# Ranges that each actor gets, so that the last ones do not wait long for one of them.
RANGES_PER_ACTOR = 4


class Embed:
    """What `Dataset.map_batches` wants: adds the column `embedding` to batches of texts."""

    def __init__(self, *, text_column: str = "text", prompt_name: str | None = "passage", **settings: Any) -> None:
        """Load a model.

        Args:
            text_column: which column holds the texts.
            prompt_name: which of the checkpoint's prompts stands before each.
            settings: the arguments of `e5ref.load`.
        """
        self._model = e5ref.load(**settings)
        self._text_column, self._prompt_name = text_column, prompt_name

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Embed a batch: column → values, with `embedding` [n, D] added."""
        texts = batch[self._text_column].tolist()
        vectors = self._model.encode(texts, prompt_name=self._prompt_name, show_progress_bar=False)
        return {**batch, "embedding": vectors}


class WriteParts:
    """An actor: embeds ranges of rows, and writes them as parts of the folder."""

    def __init__(self, load: Callable[[], E5], job: dict[str, Any], plan: dict[str, Any], folder: Path) -> None:
        """Load the model, and join it with the rest of the job."""
        self._job, self._plan, self._folder = Job(load(), **job), plan, folder

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Embed what is missing of ranges from `start` to before `stop`: Ray may ask for one again."""
        for start, stop in zip(batch["start"].tolist(), batch["stop"].tolist(), strict=True):
            with locked(self._folder / f".lock-{start:012}", wait=True), closing(RowProgress(stop - start)) as progress:
                for first, last in gaps(find_parts(self._folder), start, stop):
                    write_parts(self._job, self._plan, self._folder, first, last, progress)
        return {"rows": batch["stop"] - batch["start"]}


def embed_on_ray(job: Job, load: Callable[..., E5], folder: Path, address: str, *, force: bool = False) -> Done:
    """Embed a corpus into a folder, as `embed_folder`, on all devices of a Ray cluster.

    Every machine sees the input and the folder under the same names. A job that was killed goes on, with or without
    Ray.

    Args:
        job: what to embed.
        load: makes the model in each actor; takes `threads`.
        folder: as of `embed_folder`, and so is `force`.
        address: "auto" for the cluster at hand, "local" for this machine alone, or a cluster's address.
        force: whether to replace other vectors that the folder holds.

    Raises:
        ValueError: as `embed_folder`.
        ConnectionError: there is no such cluster.
    """
    ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    with open_folder(job, folder.resolve(), force=force) as plan:
        rows = plan["rows"]
        missing = gaps(find_parts(folder), 0, rows)
        count = sum(stop - start for start, stop in missing)
        devices = _devices(job.model)
        bytes_of_row = job.model.dimensions * job.model.dtype.itemsize
        size = max(1, min(PART_BYTES // bytes_of_row, -(-count // (RANGES_PER_ACTOR * devices["actors"]))))
        ranges = [
            {"start": first, "stop": min(first + size, stop)}
            for start, stop in missing
            for first in range(start, stop, size)
        ]
        with closing(RowProgress(rows, rows - count)) as progress:
            if ranges:
                described = {one.name: getattr(job, one.name) for one in fields(job) if one.name != "model"}
                load_one = partial(load, threads=devices["threads"]) if devices["threads"] else load
                dataset = ray.data.from_items(ranges, override_num_blocks=len(ranges)).map_batches(
                    WriteParts,
                    fn_constructor_args=(load_one, described, plan, folder.resolve()),
                    batch_size=1,
                    compute=ray.data.ActorPoolStrategy(min_size=1, max_size=devices["actors"]),
                    num_cpus=devices["threads"] or 1,
                    num_gpus=devices["gpus"],
                )
                for batch in dataset.iter_batches(batch_size=1):
                    progress.update(int(np.sum(batch["rows"])), 0)
        return Done(rows, rows - count, len(plan["skipped"]))


def _devices(model: E5) -> dict[str, int]:
    """Say how many actors the cluster has room for, and what each takes: a GPU, or as many cores as NumPy uses."""
    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    threads = getattr(model.engine, "threads", 0)
    if threads:
        return {"actors": max(1, int(resources.get("CPU", 1)) // threads), "threads": threads, "gpus": 0}
    gpus = int(resources.get("GPU", 0))
    return {"actors": max(1, gpus), "threads": 0, "gpus": min(gpus, 1)}
