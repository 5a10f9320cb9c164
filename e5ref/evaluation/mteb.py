"""A model for mteb (2.x): `mteb.evaluate(e5ref.evaluation.mteb.Encoder(model), tasks)`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from e5ref.checkpoint.params import leaves
from e5ref.encoder import E5
from e5ref.evaluation.protocols import Protocol, Role, find_rule
from e5ref.extras import require
from e5ref.operations.similarity import cosines, pairwise_cosines

require("mteb", "e5ref.evaluation.mteb", "mteb")

import torch  # noqa: E402  # comes with mteb
from mteb.models.model_meta import ModelMeta, ScoringFunction  # noqa: E402


class Encoder:
    """An E5 model behind mteb's `EncoderProtocol`, with the prompts and normalisation of a named protocol.

    Attributes:
        model: the model.
        protocol: how the model is asked.
        mteb_model_meta: the identity that mteb files results under. It includes the protocol and everything else that
            vectors depend on, so mteb never confuses our results with those of another protocol or of its own E5.
    """

    def __init__(self, model: E5, *, protocol: Protocol = "authors") -> None:
        """Wrap a model from `e5ref.load`; the protocol is "authors" or "mteb".

        Raises:
            ValueError: the protocol is unknown.
        """
        find_rule(protocol, "STS")  # refuses an unknown protocol
        self.model, self.protocol = model, protocol
        self.mteb_model_meta = _model_meta(model, protocol)

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> NDArray[np.floating]:
        """Embed the texts of a task.

        Args:
            inputs: a `DataLoader[BatchedInput]`: batches with "text", and for documents "title" and "body".
            task_metadata: the task's name and type decide the prompt.
            hf_split, hf_subset: not used.
            prompt_type: query, document, or None.
            kwargs: `show_progress_bar` as in `E5.encode`. `batch_size` has no effect: mteb means padded batches, and
                e5ref makes batches by tokens. Vectors do not depend on it.

        Returns:
            Vectors, [n, D].

        Raises:
            ValueError: the inputs have no text, or e5ref does not have an option.
        """
        unknown = kwargs.keys() - {"batch_size", "show_progress_bar"}
        if unknown:
            raise ValueError(f"e5ref has no option {min(unknown)!r} for embedding; leave it out of encode_kwargs")
        role: Role | None = None if prompt_type is None else prompt_type.value
        rule = find_rule(self.protocol, task_metadata.type, task_metadata.name)
        # mteb joins title and text in "text" as both protocols do, and keeps the text alone in "body".
        key = "body" if role == "document" and not rule.title else "text"
        texts: list[str] = []
        for batch in inputs:
            if key not in batch:
                raise ValueError(f"{task_metadata.name} has inputs without {key!r}; e5ref embeds texts only")
            texts += batch[key]
        return self.model.encode(
            texts,
            prompt=rule.prompt(self.model.checkpoint.settings, role),
            normalize_embeddings=rule.normalize,
            show_progress_bar=kwargs.get("show_progress_bar"),
        )

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compute the cosine of every pair of two sets of vectors, [n, D] or [D] and [m, D] or [D].

        Returns:
            [n, m] float32, a PyTorch tensor: for summarization mteb makes a float of [1, 1], which NumPy refuses.
        """
        return torch.from_numpy(cosines(np.asarray(embeddings1), np.asarray(embeddings2)))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Compute the cosine of each vector, [n, D], with its counterpart. -> [n] float32, a PyTorch tensor."""
        return torch.from_numpy(pairwise_cosines(np.asarray(embeddings1), np.asarray(embeddings2)))


def _model_meta(model: E5, protocol: Protocol) -> ModelMeta:
    """Describe a model to mteb."""
    checkpoint, facts = model.checkpoint, model.provenance("")
    experiment: dict[str, Any] = {"protocol": protocol, "e5ref": facts["e5ref_version"]}
    experiment |= {
        key: facts[key] for key in ("max_length", "dtype", "truncate_dim", "backend", "precision") if key in facts
    }
    on_hub = checkpoint.revision is not None
    return ModelMeta(
        loader=None,
        name=checkpoint.name if on_hub else f"e5ref/{checkpoint.folder.resolve().name}",
        # A folder has no revision; its weights' hash identifies it too.
        revision=checkpoint.revision or checkpoint.weights_sha256,
        experiment_kwargs=experiment,
        release_date=None,
        languages=None,
        n_parameters=sum(array.size for array in leaves(checkpoint.params)),
        memory_usage_mb=None,
        max_tokens=model.tokenizer.max_length,
        embed_dim=model.dimensions,
        license=None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["JAX" if facts["backend"] == "jax" else "NumPy", "safetensors"],
        reference=f"https://huggingface.co/{checkpoint.name}" if on_hub else None,
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=True,
        training_datasets=None,
    )
