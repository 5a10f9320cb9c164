"""What goes in and comes out, as the OpenAPI document says: requests, answers and errors."""

from typing import Annotated, Any, Literal

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field

TokenId = Annotated[int, Field(ge=0)]
Texts = Annotated[list[str], Field(min_length=1)]
Ids = Annotated[list[TokenId], Field(min_length=1)]
IdLists = Annotated[list[Ids], Field(min_length=1)]
Input = str | Texts | Ids | IdLists

INPUT = "a text, a list of texts, a list of token ids, or a list of such lists"


class RefusedError(HTTPException):
    """A request that is not served. Each route says so in its own form."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        """Say why, in one sentence.

        Args:
            status: of HTTP.
            message: the sentence.
            headers: of the answer.
        """
        super().__init__(status, message, headers)


class Request(BaseModel):
    """A body: nothing is converted, and no field is ignored because its name is unknown."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Answer(BaseModel):
    """What is sent back."""


PromptName = Annotated[
    str | None,
    Field(description='Which of the model\'s prompts to put before each text: "query" or "passage" (E5). Not for ids.'),
]
Truncate = Annotated[
    bool | None, Field(description="Cut texts that are longer than the model takes; else they are refused with 413.")
]
Dimensions = Annotated[
    int | None, Field(ge=1, description="Keep this many dimensions, the first ones. E5 is not trained for that.")
]
Direction = Annotated[
    Literal["Right", "right"] | None, Field(description="The end of a text that is cut; there is only one.")
]


class EmbeddingsRequest(Request):
    """OpenAI's `POST /v1/embeddings`."""

    input: Input = Field(description=f"{INPUT}; of ids as `/tokenize` gives them, with [CLS] and [SEP]")
    model: str = Field(description="The name that `/v1/models` gives.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64 is of float32, little-endian. The default is float."
    )
    dimensions: Dimensions = None
    user: str | None = Field(None, description="Ignored.")
    prompt_name: PromptName = None
    input_type: PromptName = Field(None, description="Another name of `prompt_name`.")
    truncate: Truncate = None


class Embedding(Answer):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(Answer):
    """The tokens of all texts, [CLS] and [SEP] counted, as far as they were not cut."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(Answer):
    """The vectors, in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class ModelCard(Answer):
    """The model, as OpenAI lists one."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Answer):
    """All models: one."""

    object: Literal["list"]
    data: list[ModelCard]


class OpenAIErrorBody(Answer):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(Answer):
    """An error as OpenAI's clients read it."""

    error: OpenAIErrorBody


class EmbedAllRequest(Request):
    """`POST /embed_all` of text-embeddings-inference: all tokens' hidden states."""

    inputs: Input = Field(description=f"{INPUT}; of ids as `/tokenize` gives them, with [CLS] and [SEP]")
    truncate: Truncate = None
    truncation_direction: Direction = None
    prompt_name: PromptName = None


class EmbedRequest(EmbedAllRequest):
    """`POST /embed` of text-embeddings-inference."""

    normalize: bool | None = Field(None, description="Scale to unit L2 norm. The default is what the checkpoint says.")
    dimensions: Dimensions = None


class SimilarityInputs(Request):
    """A text, and those that it is compared with."""

    source_sentence: str
    sentences: Texts


class SimilarityParameters(Request):
    """How texts become vectors."""

    truncate: Truncate = None
    truncation_direction: Direction = None
    prompt_name: PromptName = None


class SimilarityRequest(Request):
    """`POST /similarity` of text-embeddings-inference."""

    inputs: SimilarityInputs
    parameters: SimilarityParameters | None = None


class TokenizeRequest(Request):
    """`POST /tokenize` of text-embeddings-inference."""

    inputs: str | Texts = Field(description="a text, or a list of texts")
    add_special_tokens: bool = True
    prompt_name: PromptName = None


class Token(Answer):
    """A token, and where it stands in the text, counted in characters with the prompt; 0 and 0 for [CLS] and [SEP]."""

    id: int
    text: str
    special: bool
    start: int
    stop: int


class Info(Answer):
    """`GET /info`: the fields of text-embeddings-inference, and where the vectors come from."""

    model_config = ConfigDict(protected_namespaces=())

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: Literal[False]
    tokenization_workers: int
    version: str
    provenance: dict[str, str]


class TeiError(Answer):
    """An error as text-embeddings-inference writes it."""

    error: str
    error_type: str
