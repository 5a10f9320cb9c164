"""A small checkpoint and its texts, and contenders that do something wrong."""

from e5ref import E5, read_checkpoint
from e5ref.bench.contenders import Contender, run_engine

TINY = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 300,
    "max_position_embeddings": 64,
}
TEXTS = [f"passage: {'how much protein a female eats ' * (1 + number % 12)}" for number in range(40)]


def planted(name, change, **facts):
    """Make a peer that computes what e5ref does, then changes it."""

    def make(checkpoint, exports):
        encoder = E5(read_checkpoint(checkpoint), truncation="allow")
        yield Contender(
            name,
            lambda texts: change(encoder.encode(texts)),
            lambda ids: change(run_engine(encoder, ids)),
            **facts,
        )

    return make
