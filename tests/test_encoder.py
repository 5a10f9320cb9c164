"""From text to vector: against sentence-transformers, neighbours, options, bad input."""

import itertools
import json
import os
import subprocess
import sys
import threading
import warnings
from functools import partial

import numpy as np
import pytest
import threadpoolctl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

import e5ref
from e5ref import E5, numpy_model
from e5ref.engines import numpy_engine, stream
from e5ref.engines.batching import pad_ids
from e5ref.operations.blas import blas
from e5ref.terminal.progress import progress_bar
from tests.awkward import TEXTS
from tests.conftest import write_random_bert
from tests.test_checkpoint import write_sentence_transformer
from tests.test_numpy_model import E5_SMALL
from tests.test_numpy_ops import in_another_blas
from tests.test_tokenizer import write_unigram
from tests.tolerances import POINTS, SCORES, SUM_TO_ONE, VECTORS, VECTORS_OWN_ROUNDING

# The four texts of the model card's example (huggingface.co/intfloat/e5-small-v2).
CARD_QUERIES = ["how much protein should a female eat", "summit define"]
CARD_PASSAGES = [
    "As a general guideline, the CDC's average requirement of protein for women ages 19 to 70 is 46 grams per day. "
    "But, as you can see from this chart, you'll need to increase that if you're expecting or training for a "
    "marathon. Check out the chart below to see how much protein you should be eating each day.",
    "Definition of summit for English Language Learners. : 1  the highest point of a mountain : the top of a mountain. "
    ": 2  the highest level. : 3  a meeting or series of meetings between the leaders of two or more governments.",
]


@pytest.fixture(scope="module", autouse=True)
def blas_threads():
    """As many as there are: what they must not change is tested here."""


@pytest.fixture(scope="module")
def model(minilm):
    return e5ref.load(minilm)


@pytest.fixture(scope="module")
def tiny(tiny_bert):
    return e5ref.load(tiny_bert)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_whole_path_against_sentence_transformers(minilm, dtype):
    texts = [*TEXTS.values(), *CARD_QUERIES, *CARD_PASSAGES]
    peer = SentenceTransformer(str(minilm), device="cpu").to(getattr(torch, dtype))
    expected = peer.encode(texts, convert_to_tensor=True).numpy()
    ours = e5ref.load(minilm, dtype=dtype, truncation="allow").encode(texts)
    assert ours.dtype == dtype
    assert np.abs(ours - expected).max() <= VECTORS[dtype]


def test_float32_against_our_float64(minilm):
    texts = list(TEXTS.values())
    single, double = (e5ref.load(minilm, dtype=dtype, truncation="allow") for dtype in ("float32", "float64"))
    assert np.abs(single.encode(texts) - double.encode(texts)).max() <= VECTORS_OWN_ROUNDING


@pytest.mark.parametrize("modules", [("Transformer", "Pooling"), ("Transformer", "Pooling", "Normalize")])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_other_sentence_transformers(tiny_copy, pooling, modules):
    """Mean or CLS pooling, with or without normalisation, prompts of their own."""
    write_sentence_transformer(
        tiny_copy,
        pooling={"word_embedding_dimension": 32, f"pooling_mode_{pooling}_token{'s' * (pooling == 'mean')}": True},
        modules=modules,
        prompts={"query": "what: ", "document": ""},
        default_prompt_name="query",
        __version__={"sentence_transformers": "3.0.0"},
    )
    texts = ["how much protein", "cat", ""]
    peer, ours = SentenceTransformer(str(tiny_copy), device="cpu"), e5ref.load(tiny_copy)
    for method in ("encode", "encode_query", "encode_document"):
        expected = getattr(peer, method)(texts)
        actual = getattr(ours, method)(texts)
        difference = np.abs(actual - expected).max()
        if "Normalize" in modules:
            assert difference <= VECTORS["float32"], method
        else:  # a point inside the model, and no vector of unit length
            assert difference <= POINTS["float32"] * np.abs(expected).max(), method


def test_the_model_cards_example(shared, tmp_path):
    """The card's own code, line by line, on random weights of e5-small's shape and the real tokenizer."""
    folder = write_random_bert(tmp_path, **E5_SMALL)
    (folder / "tokenizer.json").write_bytes((shared / "e5-small-v2" / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    texts = [f"query: {text}" for text in CARD_QUERIES] + [f"passage: {text}" for text in CARD_PASSAGES]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    peer = AutoModel.from_pretrained(folder)
    batch = tokenizer(texts, max_length=512, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        states = peer(**batch).last_hidden_state
    states = states.masked_fill(~batch["attention_mask"][..., None].bool(), 0.0)
    vectors = torch.nn.functional.normalize(states.sum(dim=1) / batch["attention_mask"].sum(dim=1)[..., None])
    expected = (vectors[:2] @ vectors[2:].T * 100).numpy()

    model = e5ref.load(folder)
    scores = 100 * model.similarity(model.encode_query(CARD_QUERIES), model.encode_document(CARD_PASSAGES))
    assert np.abs(scores - expected).max() <= SCORES

    # The same in the functional layer, named as on the card.
    batch_dict = model.tokenize(texts)
    input_ids, attention_mask = batch_dict["input_ids"], batch_dict["attention_mask"]
    np.testing.assert_array_equal(input_ids, batch["input_ids"].numpy())
    checkpoint = model.checkpoint
    outputs = numpy_model.forward(checkpoint.params, input_ids, attention_mask, config=checkpoint.config)
    embeddings = numpy_model.l2_normalize(numpy_model.average_pool(outputs, attention_mask))
    assert np.abs((embeddings[:2] @ embeddings[2:].T) * 100 - expected).max() <= SCORES


def test_real_sentences_through_trained_weights(model):
    """The main job: each query finds its own passage."""
    scores = model.similarity(model.encode_query(CARD_QUERIES), model.encode_document(CARD_PASSAGES))
    assert scores.shape == (2, 2)
    assert scores.argmax(axis=1).tolist() == [0, 1]
    assert scores.diagonal().min() > 0.6 > 0.2 > (scores - np.diag(scores.diagonal())).max()


WORD_LISTS = st.lists(st.sampled_from("a b c d cat dog how much protein plants ! zzz".split()), max_size=40)
TEXT_LISTS = st.lists(WORD_LISTS.map(" ".join), min_size=1, max_size=12)


@pytest.fixture(scope="module", params=["float32", "float64"])
def wide(request, tmp_path_factory):
    """A model of e5-small's widths, whose texts go through matrix products together (those of the tiny one cannot)."""
    sizes = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536, "num_hidden_layers": 1}
    model = e5ref.load(write_random_bert(tmp_path_factory.mktemp("wide"), **sizes), dtype=request.param)
    if not model.engine.rows_are_independent:
        pytest.skip("this machine's BLAS rounds a row by its place: e5ref gives it one text at a time")
    return model


@settings(max_examples=40, deadline=None)
@given(texts=TEXT_LISTS, batch_size=st.one_of(st.none(), st.integers(1, 4)), data=st.data())
def test_neighbours_do_not_matter(wide, texts, batch_size, data):
    """The same bits alone, in any batch, in any order."""
    model = wide
    together = model.encode(texts, batch_size=batch_size)
    order = data.draw(st.permutations(range(len(texts))))
    np.testing.assert_array_equal(model.encode([texts[index] for index in order]), together[order])
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_array_equal(model.encode(text), vector)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([*TEXTS.values(), *CARD_QUERIES, *CARD_PASSAGES]), min_size=2, max_size=40))
def test_neighbours_do_not_matter_with_trained_weights(model, texts):
    together = model.encode(texts, truncation="allow")
    for text, vector in zip(texts[:3], together, strict=False):
        np.testing.assert_array_equal(model.encode(text, truncation="allow"), vector)


@settings(max_examples=30, deadline=None)
@given(extra=st.integers(0, 9), others=st.lists(st.integers(1, 9), max_size=5))
def test_padding_does_not_matter(wide, extra, others):
    """More padding, and texts beside, leave a text's bits alone."""
    model = wide
    text = model.tokenizer(["how much protein"]).ids
    input_ids, attention_mask = pad_ids([text, *([5] * length for length in others)], model.tokenizer.pad_id)
    wider = [np.pad(array, ((0, 0), (0, extra))) for array in (input_ids, attention_mask)]
    checkpoint = model.checkpoint
    alone = [np.array([text]), np.ones((1, len(text)), np.int64)]
    with blas.at_most(1):  # several threads may divide the rows elsewhere
        vectors = [
            numpy_model.embed(checkpoint.params, *batch, config=checkpoint.config)[0] for batch in (wider, alone)
        ]
    np.testing.assert_array_equal(*vectors)


IN_PLAIN_ORDER = """
e5ref.operations.rows.rows_alternate = lambda: False
"""


@pytest.mark.parametrize(
    ("core", "change", "expected"),
    [
        ("Prescott", "", "rows independent, bits are the same: False True"),
        ("Haswell", "", "rows independent, bits are the same: True True"),
        ("Haswell", IN_PLAIN_ORDER, "rows independent, bits are the same: True False"),
    ],
    ids=["a batch each", "places", "planted"],
)
def test_neighbours_do_not_matter_on_another_processor(tiny_bert, core, change, expected):
    """On a BLAS whose rows depend on their place, tokens have places of their own, or texts batches of their own."""
    code = f"""
import numpy as np, e5ref
model = e5ref.load({str(tiny_bert)!r})
independent = model.engine.rows_are_independent
{change}
texts = ["a b c " * (n % 9 + 1) for n in range(40)]
together = model.encode(texts)
same = all(np.array_equal(model.encode(text), vector) for text, vector in zip(texts, together))
print("rows independent, bits are the same:", independent, same)
"""
    assert in_another_blas(core, code) == expected


@pytest.fixture
def small_windows(tiny, monkeypatch):
    """Let windows have a few texts."""

    def set_to(texts):
        monkeypatch.setattr(tiny.engine, "first_texts", texts)
        monkeypatch.setattr(tiny.engine, "window_texts", texts)

    set_to(7)
    return set_to


def test_batches_of_more_than_one_window(tiny, small_windows):
    texts = [f"cat {'a ' * (n % 7)}" for n in range(50)]
    small_windows(1000)
    expected = tiny.encode(texts)
    small_windows(7)
    np.testing.assert_array_equal(tiny.encode(text for text in texts), expected)
    with pytest.raises(ValueError, match=r"texts\[30\] has \d+ tokens"):
        tiny.encode([*texts[:30], "a " * 1000, *texts[30:]], truncation="error")


def test_a_stream_gives_the_same_part_by_part(tiny, small_windows):
    texts = [f"cat {'a ' * (n % 7)}" for n in range(50)]
    expected = tiny.encode(texts)
    parts = list(tiny.encode_stream(text for text in texts))
    assert [len(part) for part in parts] == [1] + [7] * 7
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    (vector,) = tiny.encode_stream("cat", prompt_name="query")
    np.testing.assert_array_equal(vector[0], tiny.encode("query: cat"))
    assert list(tiny.encode_stream([])) == []
    with pytest.raises(ValueError, match="batch_size is 0"):
        tiny.encode_stream(["cat"], batch_size=0)  # at once, and not when the first part is taken


def test_a_stream_reads_a_generator_as_it_goes(tiny, small_windows):
    """What is held is a few windows of texts and batches, however many texts there are."""
    read = 0

    def texts():
        nonlocal read
        while True:  # without end
            read += 1
            yield "cat " + "a " * (read % 5)

    ahead = []
    for number, part in zip(range(1, 60), tiny.encode_stream(texts()), strict=False):
        assert len(part) == (1 if number == 1 else 7)
        ahead.append(read - 7 * number)
    assert max(ahead) <= 7 * (2 * tiny.engine.threads + 4)
    assert max(ahead[40:]) <= max(ahead[:20])


def test_a_stream_that_is_left_ends_its_work(tiny, small_windows):
    before = blas.threads
    stream = tiny.encode_stream("cat" for _ in itertools.count())
    next(stream)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("e5ref")]
    assert blas.threads == before


def test_long_texts_fill_a_window_sooner(tiny, small_windows, monkeypatch):
    monkeypatch.setattr(stream, "WINDOW_CHARACTERS", 10)
    small_windows(4)
    texts = ["cat", "a" * 50, "b" * 39, "", "", "c"]
    assert [len(part) for part in tiny.encode_stream(texts)] == [2, 4]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_matter(wide, threads):
    """Vectors have the same bits with any number of threads, and BLAS has its own number afterwards."""
    texts = ["how much protein " * (number % 20) for number in range(60)]
    before = blas.threads
    other = E5(wide.checkpoint, threads=threads)
    assert other.engine.threads == threads
    np.testing.assert_array_equal(other.encode(texts), wide.encode(texts))
    np.testing.assert_array_equal(other.encode("how much"), wide.encode("how much"))
    assert blas.threads == before


@pytest.mark.parametrize(("shared", "batches"), [(True, 1), (False, 4)])
def test_few_texts_are_divided_where_threads_cannot_share_a_batch(tiny_bert, monkeypatch, shared, batches):
    monkeypatch.setattr(numpy_engine, "threads_do_not_matter", lambda *_: shared)
    monkeypatch.setattr(numpy_engine, "rows_are_independent", lambda *_: True)
    engine = e5ref.load(tiny_bert, threads=8).engine
    assert len(list(engine.batches(np.full(21, 12)))) == batches


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere children do not begin as copies")
def test_a_child_that_is_forked_while_threads_encode_can_encode(tiny_bert):
    """What a thread of the parent holds at that moment, such as a lock, is not held in the child for good."""
    code = f"""
import os, signal, threading, time
from tqdm import tqdm
import e5ref
from e5ref.operations.blas import blas

def state():
    return blas.threads, [library.num_threads for library in blas._libraries], model.encode("query: cat").tobytes()

def encode():
    while True:
        model.encode(["cat", "dog"] * 20)

def show_progress():
    while True:
        with tqdm.get_lock():
            time.sleep(0.001)
        time.sleep(0.001)

model = e5ref.load({str(tiny_bert)!r}, threads=1)
before, children = state(), []
for work in (encode, encode, show_progress):
    threading.Thread(target=work, daemon=True).start()
for number in range(40):
    time.sleep(0.001 * (number % 7))
    child = os.fork()
    if not child:
        signal.alarm(20)  # a hang is a failure
        os._exit(state() != before)
    children.append(child)
statuses = [os.waitpid(child, 0)[1] for child in children]
print(40 - statuses.count(0), "of 40 children failed", flush=True)
os._exit(0)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "0 of 40 children failed\n"


def test_batches_are_computed_side_by_side(tiny, monkeypatch):
    """Two threads meet inside the forward pass, each with a BLAS of one thread."""
    together = threading.Barrier(2)
    seen = []

    def embed(*arguments, **options):
        if len(seen) < 2:
            seen.append([library.num_threads for library in blas._libraries])
            together.wait(timeout=20)
        return original(*arguments, **options)

    original = numpy_model.embed
    monkeypatch.setattr(numpy_model, "embed", embed)
    E5(tiny.checkpoint, threads=2).encode(["cat"] * 4, batch_size=2)
    assert seen == [[1] * len(blas._libraries)] * 2


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "900000 100000"}, 8),
        ("0::/a/b", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "200000 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "100000 100000", "a/cpu.max": "max 100000"}, 1),
        ("0::/../a", {"cpu.max": "300000 100000"}, 3),
        ("0::/", {"cpu.max": ""}, 8),
        (
            "5:memory:/x\n4:cpu,cpuacct:/docker/x\n0::/docker/x",
            {"cpu/cpu.cfs_quota_us": "20000", "cpu/cpu.cfs_period_us": "100000"},
            1,
        ),
        ("1:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, 8),
        ("1:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "500000", "cpu/a/cpu.cfs_period_us": "100000"}, 5),
        ("1:cpuset:/a", {"cpuset/a/cpu.max": "100000 100000"}, 8),
        (None, {}, 8),
    ],
)
def test_a_containers_quota_bounds_the_cores(tmp_path, monkeypatch, cgroup, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    written = {f"sys/fs/cgroup/{name}": content for name, content in files.items()}
    if cgroup is not None:
        written["proc/self/cgroup"] = cgroup
    for name, content in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert numpy_engine.usable_cores(tmp_path) == cores


def test_no_more_cores_than_the_affinity_has(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    assert numpy_engine.usable_cores() == 1


@pytest.mark.parametrize(
    ("variable", "given", "threads"), [(None, None, 2), ("OPENBLAS_NUM_THREADS", None, 3), (None, 4, 4)]
)
def test_threads_are_the_usable_cores_unless_somebody_says_otherwise(tiny, monkeypatch, variable, given, threads):
    """The BLAS keeps to them too, if it computes a query with several threads."""
    for name in numpy_engine.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "3")
    tried, seen = [], []

    def embed(*arguments, **options):
        seen.extend(library.num_threads for library in blas._libraries)
        return original(*arguments, **options)

    original = numpy_model.embed
    monkeypatch.setattr(numpy_model, "embed", embed)
    monkeypatch.setattr(numpy_engine, "usable_cores", lambda: 2)
    monkeypatch.setattr(numpy_engine, "threads_do_not_matter", lambda *arguments: tried.append(arguments[-1]) or True)
    with threadpoolctl.threadpool_limits(3, user_api="blas"):  # whatever this machine has
        E5(tiny.checkpoint, threads=given).encode("cat")
    assert set(tried) == {threads}
    assert set(seen) <= {min(threads, 3)}


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2"])
def test_bad_threads(tiny, threads):
    with pytest.raises(ValueError, match=f"threads is {threads!r}, but must be a whole number of at least 1"):
        E5(tiny.checkpoint, threads=threads)


def test_threads_are_for_numpy(tiny):
    with pytest.raises(ValueError, match="threads is for backend='numpy'"):
        E5(tiny.checkpoint, backend="jax", threads=2)


def test_a_failing_batch_ends_the_work(tiny, monkeypatch):
    monkeypatch.setattr(numpy_model, "embed", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        E5(tiny.checkpoint, threads=2).encode(["cat"] * 100, batch_size=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("e5ref")]


def test_shapes_and_dtypes(tiny):
    assert tiny.encode("cat").shape == (32,)
    assert tiny.encode(["cat"]).shape == (1, 32)
    assert tiny.encode(("cat", "dog")).shape == (2, 32)
    assert tiny.encode(iter(["cat", "dog", ""])).shape == (3, 32)
    assert tiny.encode([]).shape == (0, 32)
    assert tiny.encode([]).dtype == tiny.encode("cat").dtype == np.float32


def test_prompts(tiny):
    np.testing.assert_array_equal(tiny.encode_query(["cat"]), tiny.encode(["query: cat"]))
    np.testing.assert_array_equal(tiny.encode_document(["cat"]), tiny.encode(["passage: cat"]))
    np.testing.assert_array_equal(tiny.encode(["cat"], prompt_name="passage"), tiny.encode(["passage: cat"]))
    np.testing.assert_array_equal(tiny.encode_query("cat", prompt="what "), tiny.encode("what cat"))
    np.testing.assert_array_equal(tiny.encode_document("cat", prompt_name="query"), tiny.encode("query: cat"))
    assert not np.array_equal(tiny.encode_query("cat"), tiny.encode("cat"))


def test_vectors_have_norm_one(tiny):
    norms = np.linalg.norm(tiny.encode(["cat", "dog", ""]), axis=1)
    assert np.abs(norms - 1).max() <= SUM_TO_ONE["float32"]
    assert (np.linalg.norm(tiny.encode(["cat", "dog"], normalize_embeddings=False), axis=1) > 2).all()


def test_every_cut_is_told(tiny_bert):
    """Also the second one from the same line, and at the line of the caller."""
    code = f"""
import e5ref
model = e5ref.load({str(tiny_bert)!r}, max_length=5)
for text in ("a " * 9, "b " * 9):
    model.encode_query(text)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.count("<string>:5: E5Warning: 1 of 1 texts are longer than 5 tokens") == 2


@pytest.mark.parametrize(("batch_size", "sizes"), [(None, [5]), (2, [2, 2, 1])])
def test_batch_size_is_a_bound(wide, monkeypatch, batch_size, sizes):
    seen = []
    embed = numpy_model.embed
    monkeypatch.setattr(
        numpy_model, "embed", lambda p, ids, mask, **kw: seen.append(mask.max()) or embed(p, ids, mask, **kw)
    )
    wide.encode(["a"] * 5, batch_size=batch_size)
    assert sorted(seen, reverse=True) == sizes  # threads begin them in any order


def test_truncate_dim_warns_and_renormalises(tiny):
    with pytest.warns(UserWarning, match="keeps 8 of 32 dimensions; E5 is not trained for that"):
        cut = tiny.encode(["cat", "dog"], truncate_dim=8)
    expected = numpy_model.l2_normalize(tiny.encode(["cat", "dog"])[:, :8])
    np.testing.assert_array_equal(cut, expected)


def test_xlm_roberta_from_text(tmp_path):
    """The whole path with XLM-RoBERTa's kind of tokenizer, against sentence-transformers."""
    folder = write_random_bert(tmp_path, model_type="xlm-roberta")
    write_unigram(folder)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "model_max_length": 62}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    write_sentence_transformer(folder, pooling={"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    texts = ["query: eat", "", "abc def <pad> ghi", "query: abcdefghi eat", "日本 🙂"]
    peer, ours = SentenceTransformer(str(folder), device="cpu"), e5ref.load(folder)
    ids = AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]
    assert [text.tolist() for text in ours.tokenizer(texts).texts()] == ids
    assert np.abs(ours.encode(texts) - peer.encode(texts)).max() <= VECTORS["float32"]


def test_similarity_by_hand(tiny):
    a, b = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 2.0], [-6.0, -8.0]])
    np.testing.assert_allclose(tiny.similarity(a, b), [[0.6, 0.8, -1], [1, 0, -0.6]], atol=SUM_TO_ONE["float64"])
    assert tiny.similarity(a[0], b).shape == (1, 3)
    assert tiny.similarity(a[0], b[0]).shape == (1, 1)
    with pytest.raises(ValueError, match=r"but are \(2, 2\) and \(2, 3\)"):
        tiny.similarity(a, np.ones((2, 3)))


def test_truncation(tiny_bert):
    texts = ["cat", "a " * 9, "b " * 20]
    model = e5ref.load(tiny_bert, max_length=8)
    with pytest.warns(UserWarning, match=r"2 of 3 texts are longer than 8 tokens .* longest, texts\[2\], has 22"):
        vectors = model.encode(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(model.encode(texts, truncation="allow"), vectors)
        np.testing.assert_array_equal(model.encode("a " * 6), vectors[1])
    with pytest.raises(ValueError, match=r"texts\[2\] has 22 tokens, more than max_length 8"):
        model.encode(texts, truncation="error")
    with pytest.raises(ValueError, match="more than max_length"):
        e5ref.load(tiny_bert, max_length=8, truncation="error").encode(texts)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (None, TypeError, "texts must be a str or an iterable of str in order, not NoneType"),
        (b"bytes", TypeError, "not bytes"),
        (7, TypeError, "not int"),
        ({"a": "b"}, TypeError, "not dict"),
        ({"a", "b"}, TypeError, "not set"),
        ([None], TypeError, r"texts\[0\] is NoneType, not str"),
        (["a", b"bytes"], TypeError, r"texts\[1\] is bytes, not str"),
        (["a", "b", 3.5], TypeError, r"texts\[2\] is float, not str"),
        (np.array("a"), TypeError, "must be a str or an iterable of str in order, not ndarray"),
        (np.array([["a", "b"]]), TypeError, r"texts\[0\] is ndarray, not str"),
        (["a", ["b"]], TypeError, r"texts\[1\] is list, not str"),
        (["a", "b\ud800c"], ValueError, r"texts\[1\] is not valid Unicode: a lone surrogate at position 1"),
        ("\udfff", ValueError, r"texts\[0\] is not valid Unicode"),
    ],
)
@pytest.mark.parametrize("method", ["encode", "encode_query", "tokenize"])
def test_bad_texts_are_named(tiny, method, texts, error, message):
    with pytest.raises(error, match=message) as caught:
        getattr(tiny, method)(texts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"truncate_dim": "8"}, "truncate_dim is '8'"),
        ({"truncation": ""}, "truncation is ''"),
        ({"prompt": "\ud800"}, "prompt is not valid Unicode"),
        ({"truncate_dim": 0}, "truncate_dim is 0, but must be a whole number from 1 to 32"),
        ({"truncate_dim": 33}, "truncate_dim is 33"),
        ({"truncation": "cut"}, "truncation is 'cut'"),
        ({"prompt_name": "question"}, "unknown prompt_name 'question'"),
        ({"prompt_name": "query", "prompt": "query: "}, "not both"),
    ],
)
def test_bad_options(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        tiny.encode(["cat"], **options)


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_unknown_options_are_refused(tiny, method):
    with pytest.raises(TypeError, match="convert_to_tensor"):
        getattr(tiny, method)(["cat"], convert_to_tensor=True)


def test_ten_megabytes_without_a_space(model):
    """WordPiece makes one [UNK] of it, as of any word of more than 100 letters."""
    vectors = model.encode(["a" * 10_000_000, "ab" * 5_000_000, "[UNK]"])
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_array_equal(vectors[1], vectors[2])


def test_ten_megabytes_of_ideographs(model):
    with pytest.warns(UserWarning, match=r"texts\[0\], has more than 65026 "):
        assert model.encode("日" * 3_333_333).shape == (384,)
    with pytest.raises(ValueError, match=r"texts\[1\] has more than 65026 tokens, more than max_length 256; split it"):
        model.encode(["cat", "日" * 3_333_333], truncation="error")


def test_two_hundred_megabytes_in_little_memory():
    code = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30, 2 * 2**30))
import e5ref
model = e5ref.load("e5ref-nano", truncation="allow")
words, letters = (model.encode([text * 50_000_000]) for text in ("cat ", "aaaa"))
print((words == model.encode(["cat " * 1000])).all(), (letters == model.encode(["[UNK]"])).all())
"""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # each thread takes address space
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("True True\n", "")


@pytest.mark.parametrize("method", ["encode", "tokenize"])
def test_a_long_text_with_hardly_a_token_is_named(tiny, method):
    texts = ["cat", "a", "\0\ufeff" * 600_000, "dog"]
    with pytest.raises(
        ValueError, match=r"texts\[2\] has hardly a token in a million characters; take out what is not"
    ):
        getattr(tiny, method)(texts)


def test_provenance(tiny, tiny_bert):
    provenance = tiny.provenance("query: ")
    assert provenance["model"] == str(tiny_bert)
    assert provenance["prompt"] == "query: "
    assert len(provenance["weights_sha256"]) == len(provenance["tokenizer_sha256"]) == 64
    assert all(isinstance(value, str) for value in provenance.values())


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_a_table_is_refused_and_its_column_taken(tiny, library):
    frames = pytest.importorskip(library, reason="comes with pip install mteb")
    columns = {"id": [1, 2], "text": ["query: cat", "query: dog"]}
    table = frames.table(columns) if library == "pyarrow" else frames.DataFrame(columns)
    message = r"texts is a (DataFrame|Table) with the columns id, text; give one of them, such as texts\['text'\]"
    for call in (tiny.encode, tiny.encode_query, tiny.encode_stream, tiny.tokenize):
        with pytest.raises(TypeError, match=message):
            call(table)
    with pytest.raises(TypeError, match=r"texts\[0\] is (int|int64), not str"):
        tiny.encode(table["id"])
    expected = tiny.encode(columns["text"])
    np.testing.assert_array_equal(tiny.encode(table["text"]), expected)
    if library == "pyarrow":
        np.testing.assert_array_equal(tiny.encode(table["text"].chunk(0)), expected)
        with pytest.raises(TypeError, match=r"texts\[1\] is NoneType, not str"):
            tiny.encode(frames.array(["a", None]))


def test_it_says_what_it_is(tiny_bert):
    assert repr(e5ref.load(tiny_bert)) == (
        f"E5({str(tiny_bert)!r}, backend='numpy', dtype='float32', dimensions=32, max_length=64)"
    )
    with pytest.warns(UserWarning, match="keeps 8 of 32"):
        model = e5ref.load(tiny_bert, dtype="float64", backend="jax", max_length=9, truncate_dim=8)
    assert "backend='jax', precision='highest', platform='cpu', dtype='float64', dimensions=8, max_length=9)" in repr(
        model
    )


def test_settings_of_the_model_are_those_of_each_call(tiny_bert, tiny):
    with pytest.warns(UserWarning, match="keeps 8 of 32"):
        model = e5ref.load(tiny_bert, batch_size=2, truncate_dim=8)
    texts = ["cat", "dog", "a b c"]
    with pytest.warns(UserWarning, match="keeps 8 of 32"):
        expected = tiny.encode(texts, truncate_dim=8)
    np.testing.assert_array_equal(model.encode(texts), expected)
    np.testing.assert_array_equal(model.encode(text for text in texts), expected)
    assert model.dimensions == 8
    assert model.provenance("")["truncate_dim"] == "8"
    with pytest.warns(UserWarning, match="keeps 16 of 32"):
        np.testing.assert_array_equal(model.encode(texts, truncate_dim=16), tiny.encode(texts, truncate_dim=16))
    for options in ({"batch_size": 0}, {"truncate_dim": 33}):
        with pytest.raises(ValueError, match=r"must be a whole number"):
            e5ref.load(tiny_bert, **options)


def test_of_a_stream_the_first_vectors_come_at_once(tiny):
    """Of a generator, whose next text may be long in coming, but not of what can be counted and taken apart."""
    taken = 0

    def texts():
        nonlocal taken
        while True:
            taken += 1
            yield "cat"

    stream = tiny.encode_stream(texts())
    for texts_of_window, read in ((1, 1), (16, 17), (256, 273)):
        assert len(next(stream)) == texts_of_window
        assert taken == read
    assert len(next(tiny.encode_stream(["cat"] * 300))) == 300


def test_a_length_that_is_a_guess(tiny):
    """As of a progress bar around a generator."""

    class Guess:
        def __len__(self):
            return 8

        def __iter__(self):
            return iter(["cat", "dog"])

    np.testing.assert_array_equal(tiny.encode(Guess()), tiny.encode(["cat", "dog"]))


def test_a_warning_where_there_is_no_module(tiny):
    with pytest.warns(e5ref.E5Warning, match="1 of 1 texts"):
        exec("model.encode('a ' * 999)", {"model": tiny})


def test_a_progress_bar_in_a_notebook(tiny, capsys, monkeypatch):
    """Standard error is no terminal there."""
    monkeypatch.setitem(sys.modules, "ipykernel", None)
    with progress_bar(3, "embedding", "text", delay=0) as bar:
        bar.update(3)
    assert "embedding: 100%" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "ipykernel")
    with progress_bar(3, "embedding", "text", delay=0) as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_progress_bar(tiny, capsys, monkeypatch):
    tiny.encode(["cat"])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(stream, "progress_bar", partial(progress_bar, delay=0))
    tiny.encode(["cat"] * 3, show_progress_bar=False)
    tiny.encode(["cat"] * 3)  # standard error is no terminal here
    assert capsys.readouterr().err == ""
    tiny.encode(["cat"] * 3, show_progress_bar=True)
    assert "3/3" in capsys.readouterr().err


def test_known_answer_of_e5_small_v2():
    """Four numbers that transformers gives for the real weights, where they are on this machine."""
    try:
        model = e5ref.load("intfloat/e5-small-v2")
    except e5ref.CheckpointError as reason:
        pytest.skip(str(reason))
    vector = model.encode("query: I love transformers.")
    expected = [-0.0663562790, 0.0153982891, -0.0412562378, -0.0130311009]
    assert np.abs(vector[[0, 1, 382, 383]] - expected).max() <= VECTORS["float32"]


def test_a_generator_is_not_read_ahead(tiny, small_windows):
    small_windows(2)
    seen = []

    def texts():
        for number in range(5):
            seen.append(number)
            yield "cat" if number < 4 else None

    with pytest.raises(TypeError, match=r"texts\[4\] is NoneType"):
        tiny.encode(texts())
    assert seen == [0, 1, 2, 3, 4]


def test_token_embeddings_are_those_of_sentence_transformers(minilm):
    from sentence_transformers import SentenceTransformer

    texts = ["a cat", "the dog of a man, who plays"]
    theirs = SentenceTransformer(str(minilm), device="cpu").encode(texts, output_value="token_embeddings")
    ours = e5ref.load(minilm).encode(texts, output_value="token_embeddings", convert_to_numpy=True)
    for our, their in zip(ours, theirs, strict=True):
        assert our.shape == their.shape
        assert np.abs(our - their.numpy()).max() < POINTS["float32"] * np.abs(our).max()


def test_token_embeddings_pool_to_the_vector(tiny):
    (states,) = tiny.encode(["cat"], prompt_name="query", output_value="token_embeddings")
    assert len(states) == tiny.tokenize("query: cat")["n_tokens"][0]
    pooled = states.mean(axis=0) / np.linalg.norm(states.mean(axis=0))
    assert np.abs(pooled - tiny.encode_query("cat")).max() < VECTORS["float32"]
    assert np.array_equal(tiny.encode("query: cat", output_value="token_embeddings"), states)


def test_token_embeddings_say_what_was_cut(tiny):
    long = "cat " * 99
    with pytest.warns(UserWarning, match="1 of 1 texts are longer than 64 tokens and were cut"):
        (states,) = tiny.encode([long], output_value="token_embeddings")
    assert states.shape == (64, 32)
    with pytest.raises(ValueError, match=r"texts\[0\] has 101 tokens, more than max_length 64"):
        tiny.encode([long], output_value="token_embeddings", truncation="error")


def test_what_encode_does_not_give_is_said(tiny, tiny_bert):
    with pytest.raises(ValueError, match="convert_to_numpy is False, but must be True"):
        tiny.encode("cat", convert_to_numpy=False)
    with pytest.raises(ValueError, match="output_value is None, but must be 'sentence_embedding' or"):
        tiny.encode("cat", output_value=None)
    with pytest.raises(ValueError, match="output_value='token_embeddings' needs backend='numpy'"):
        e5ref.load(tiny_bert, backend="jax").encode("cat", output_value="token_embeddings")
