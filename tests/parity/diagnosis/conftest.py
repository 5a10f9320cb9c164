"""The checkpoints and texts that mistakes are made with."""

import shutil
from functools import partial

import pytest

from e5ref.checkpoint.hub import BUNDLED_CHECKPOINT, weights_folder
from tests.parity.diagnosis.peers import FILES, Case, case_of, peer_vectors, real_texts
from tests.tools.checkpoints import write_random_bert
from tests.tools.texts import EVERYDAY, LICENSE, takes_minutes


@pytest.fixture(scope="module", params=["nano", "random", pytest.param("real", marks=takes_minutes)])
def case(request, tmp_path_factory) -> Case:
    return make_case(request, tmp_path_factory)


def make_case(request, tmp_path_factory) -> Case:
    """e5ref-nano, with texts of ours; where a developer has real data, for the time it takes, also random weights of
    other sizes that take 512 tokens, and real texts with all-MiniLM-L6-v2's weights, 512 tokens and E5's prompts.
    """
    if request.param == "nano":
        folder = weights_folder() / BUNDLED_CHECKPOINT
        return case_of(BUNDLED_CHECKPOINT, folder, [*EVERYDAY[:-2], LICENSE[:500], LICENSE])
    shared = request.getfixturevalue("shared")
    texts = real_texts(shared / "msmarco") if request.param == "real" else EVERYDAY
    minilm = request.getfixturevalue("minilm")
    folder = tmp_path_factory.mktemp("diagnose") / request.param
    if request.param == "random":
        write_random_bert(folder, vocab_size=30522, hidden_size=96, max_position_embeddings=512, initializer_range=0.1)
    folder.mkdir(exist_ok=True)
    for file in FILES:
        if not (folder / file).exists() or file == "tokenizer.json":
            shutil.copy(minilm / file, folder / file)
    return case_of(folder, folder, texts)


@pytest.fixture(scope="module")
def peer(case):
    return partial(peer_vectors, case)
