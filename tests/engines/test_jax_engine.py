"""E5 on JAX: from text to vector, shapes and programs, devices and processes."""

import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import jax
import numpy as np
import pytest

import e5ref
from e5ref.engines import jax_engine
from e5ref.engines.engine import Precision, Window
from e5ref.extras import install_command
from e5ref.tokenizer import TokenIds
from tests.tools.checkpoints import write_random_bert
from tests.tools.tolerances import COSINE_HALF, VECTORS, VECTORS_HALF

TEXTS = [
    "query: how much protein",
    "",
    "cat",
    "a b c " * 9,
    "the dog " * 40,
    "naïve 日本語 🙂",
    "passage: plants need light",
]


@pytest.fixture(scope="module")
def tiny(tiny_bert):
    return e5ref.load(tiny_bert, backend="jax", truncation="allow")


@pytest.fixture
def programs():
    """How many programs XLA has compiled since."""
    compiled = []

    def count(event: str, _seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(count)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_vectors_as_numpy(tiny_bert, dtype):
    numpy, jax = (
        e5ref.load(tiny_bert, backend=backend, dtype=dtype, truncation="allow") for backend in ("numpy", "jax")
    )
    texts = TEXTS * 5
    for options in ({}, {"normalize_embeddings": False}, {"batch_size": 2}, {"prompt": "query: "}):
        expected = numpy.encode(texts, **options)
        actual = jax.encode(texts, **options)
        assert actual.dtype == dtype
        scale = max(1, np.abs(expected).max())  # 1 for unit vectors, for which the bound is meant
        assert np.abs(actual - expected).max() <= VECTORS[dtype] * scale
    assert jax.encode([]).shape == (0, 32)
    np.testing.assert_array_equal(jax.encode("cat"), jax.encode(["cat"])[0])
    assert jax.encode_query(["cat"]).shape == jax.encode_document(["cat"]).shape


def test_trained_weights(minilm):
    numpy, jax = (e5ref.load(minilm, backend=backend) for backend in ("numpy", "jax"))
    assert np.abs(numpy.encode(TEXTS) - jax.encode(TEXTS)).max() <= VECTORS["float32"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["high", "bfloat16", "float16"])
def test_precisions(minilm, precision):
    exact = e5ref.load(minilm).encode(TEXTS)
    model = e5ref.load(minilm, backend="jax", precision=precision)
    vectors = model.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - exact).max() <= VECTORS_HALF.get(precision, VECTORS["float32"])
    assert (1 - (vectors * exact).sum(axis=1)).max() <= COSINE_HALF.get(precision, 1e-6)
    assert model.provenance("")["precision"] == precision


def test_provenance_says_what_computed(tiny):
    facts = tiny.provenance("query: ")
    assert facts["backend"] == "jax"
    assert facts["precision"] == "highest"
    assert facts["platform"] == jax.devices()[0].platform
    assert facts["jax_version"] == jax.__version__


def test_numbers_that_grow_too_large_are_not_passed_on(tmp_path):
    model = e5ref.load(write_random_bert(tmp_path, initializer_range=300.0), backend="jax", precision="float16")
    with pytest.raises(ValueError, match="too large for precision 'float16'"):
        model.encode(["cat"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, "precision is 'half', but must be one of 'highest', 'high', 'bfloat16', 'float16'"),
        ({"precision": "bfloat16", "dtype": "float64"}, "precision 'bfloat16' is for dtype 'float32'"),
        ({"backend": "torch"}, "backend is 'torch', but must be 'numpy' or 'jax'"),
        ({"backend": "numpy", "precision": "highest"}, "precision is for backend='jax'"),
    ],
)
def test_options_that_do_not_fit(tiny_bert, options, message):
    with pytest.raises(ValueError, match=message):
        e5ref.load(tiny_bert, **{"backend": "jax"} | options)


def test_the_precisions_of_the_signature_are_those_of_the_engine():
    assert get_args(Precision) == tuple(jax_engine.PRECISIONS)


@pytest.mark.parametrize(
    ("platform", "capability", "product"),
    [
        ("PJRT C API\ncuda 13000", "9.0", "TF32_TF32_F32_X3"),
        ("CUDA 12", "7.5", "highest"),
        ("rocm 7", "gfx90a", "highest"),
    ],
)
def test_exact_products_on_a_gpu(platform, capability, product):
    device = SimpleNamespace(client=SimpleNamespace(platform_version=platform), compute_capability=capability)
    assert jax_engine.product_precision("highest", device) == product
    assert jax_engine.product_precision("high", device) == "high"
    assert jax_engine.product_precision("bfloat16", device) == "highest"


def test_without_jax_the_error_says_what_to_install(tiny_bert):
    code = f"""
import sys; sys.modules["jax"] = None
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "jax" else found(name)
import e5ref
try:
    e5ref.load("never/looked-for", backend="jax")
except ModuleNotFoundError as error:
    print(error)
e5ref.load({str(tiny_bert)!r}).encode("works without")
"""
    assert run_python(code) == (
        f"backend 'jax' (the extra is cuda on NVIDIA, tpu on TPU) needs jax: {install_command('jax')}\n"
    )


def run_python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_few_programs_for_any_corpus(tiny_bert, programs):
    """A corpus of any mix of lengths compiles each shape once at most, and what is warm compiles nothing."""
    model = e5ref.load(tiny_bert, backend="jax", truncation="allow")
    del programs[:]  # loading compiles how weights are stacked
    random = np.random.default_rng(0)
    corpora = [["a " * length for length in random.integers(0, 40, size)] for size in (1, 2, 3, 9, 50, 333, 700)]
    for texts in corpora:
        model.encode(texts)
    assert 0 < len(programs) <= len(model.engine.shapes.all()) <= 8
    del programs[:]
    for texts in corpora:
        model.encode(texts[::-1])
    assert len(programs) == 0


@pytest.mark.slow
def test_warm_up_leaves_nothing_to_compile(tiny_bert, programs):
    model = e5ref.load(tiny_bert, backend="jax", max_length=9)
    del programs[:]  # loading compiles how weights are stacked
    assert model.warm_up() == len(model.engine.shapes.all()) == len(programs)
    del programs[:]
    for size in (1, 2, 5, 40, 300):
        model.encode(["a b c " * (number % 4) for number in range(size)], truncation="allow")
    assert len(programs) == 0


def test_numpy_warms_up_too(tiny_bert):
    assert e5ref.load(tiny_bert).warm_up() == 1


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("max_length", [3, 64, 512, 514, 1024])
def test_shapes(platform, max_length, devices):
    shapes = jax_engine.batch_shapes(platform, max_length, devices)
    assert len(shapes.all()) == len(set(shapes.all())) <= 8
    assert shapes.rest[1] >= max_length
    assert shapes.full[-1][0] >= max_length
    assert [most for most, _ in shapes.full] == sorted(most for most, _ in shapes.full)
    assert all(rows % devices == 0 for rows, _ in shapes.all())
    assert all(length >= most for most, (_, length) in shapes.full)
    if platform != "cpu":
        for _, (rows, length) in shapes.full:
            assert 0.99 * 65_536 < rows * length / devices <= 65_536
            assert rows * length % (128 * devices) == length % 8 == 0  # which fits the tiles of the kernels


@pytest.mark.parametrize(
    ("platform", "lengths", "shape"),
    [
        ("cpu", [12], (1, 16)),
        ("cpu", [17], (1, 32)),
        ("cpu", [80], (1, 112)),
        ("cpu", [80] * 3, (1, 512)),
        ("cpu", [80] * 7, (1, 1024)),
        ("cpu", [80] * 5000, (1, 1024)),
        ("cpu", [350] * 5000, (1, 1536)),
        ("gpu", [12], (1, 64)),
        ("gpu", [65], (16, 512)),
        ("gpu", [12] * 6, (16, 512)),
        ("gpu", [12] * 2500, (16, 512)),  # four times
        ("gpu", [12] * 3000, (1024, 64)),
        ("gpu", [33] * 3000, (256, 256)),
        ("gpu", [5] * 10_000 + [129], (128, 512)),
        ("gpu", [256] * 300, (128, 512)),
        ("gpu", [257] * 300, (204, 320)),
        ("gpu", [385] * 300, (146, 448)),
        ("gpu", [512] * 300, (128, 512)),
    ],
)
def test_the_shape_of_the_next_batch(platform, lengths, shape):
    shapes = jax_engine.batch_shapes(platform, 512)
    assert shapes(np.array(lengths), alone=True) == shape
    if len(lengths) == 1 and platform == "cpu":  # what is left of many texts wants few programs of its own
        assert shapes(np.array(lengths), alone=False) == (1, 224)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("max_texts", [None, 1, 3, 100])
def test_batches_hold_each_text_once(tiny, platform, max_texts, monkeypatch):
    monkeypatch.setattr(tiny.engine, "shapes", jax_engine.batch_shapes(platform, 512, 2))
    random = np.random.default_rng(0)
    for size in (0, 1, 2, 7, 100, 700):
        lengths = random.integers(1, 513, size)
        batches = list(tiny.engine.batches(lengths, max_texts=max_texts))
        assert sorted(text for batch in batches for text in batch.texts) == list(range(size))
        for batch in batches:
            assert batch.shape in tiny.engine.shapes.all()
            assert np.bincount(batch.rows, lengths[batch.texts]).max() <= batch.shape[1]
            assert len(batch.texts) <= (max_texts or len(batch.texts))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_little_of_full_batches_is_padding(tiny, platform, monkeypatch):
    monkeypatch.setattr(tiny.engine, "shapes", jax_engine.batch_shapes(platform, 512))
    lengths = np.random.default_rng(0).lognormal(4.3, 0.4, 32_768).astype(int).clip(8, 512)
    batches = list(tiny.engine.batches(lengths))
    full = batches[: -len(batches) // 10]  # what is left at the end has no others to fill its rows
    assert sum(lengths[batch.texts].sum() for batch in full) > 0.97 * sum(math.prod(batch.shape) for batch in full)


def test_a_program_that_could_not_be_compiled_is_tried_again(tiny_bert, monkeypatch):
    model = e5ref.load(tiny_bert, backend="jax")
    with monkeypatch.context() as patch:
        patch.setattr(model.engine, "_compile", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.encode("cat")
    assert model.encode("cat").shape == (32,)


def test_the_host_does_not_wait_for_each_batch(tiny):
    """Results are asked for only when several batches are under way."""
    made = []

    def windows():
        for number in range(20):
            made.append(number)
            ids = TokenIds(np.array([2, 5, 3], np.int32), np.array([0, 3]), np.array([3]), np.array([True]))
            yield Window(ids, np.empty((1, 32), np.float32))

    run = tiny.engine.run(windows(), normalize=True)
    next(run)
    assert len(made) == jax_engine.IN_FLIGHT + 1
    next(run)
    assert len(made) == jax_engine.IN_FLIGHT + 2
    assert sum(run) == 18


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_vectors_stand_where_their_texts_do(tiny_bert, platform, monkeypatch):
    """In several windows, of several batches each; in rows of a CPU and in those of an accelerator."""
    monkeypatch.setattr(jax_engine, "FULL_TOKENS", 1024)
    monkeypatch.setattr(jax_engine, "REST_TOKENS", 512)
    model = e5ref.load(tiny_bert, backend="jax")
    model.engine.shapes = jax_engine.batch_shapes(platform, model.tokenizer.max_length)
    model.engine.first_texts, model.engine.window_texts = 60, 150
    texts = [f"cat {'a ' * (n * 7 % 60)}" for n in range(400)]
    windows = list(model.encode_stream(texts))
    assert [len(window) for window in windows] == [60, 150, 150, 40]
    assert np.abs(np.concatenate(windows) - e5ref.load(tiny_bert).encode(texts)).max() <= VECTORS["float32"]


def test_the_programs_own_settings_are_left_as_they_were(tiny_bert):
    e5ref.load(tiny_bert, backend="jax", dtype="float64").encode("cat")
    assert not jax.config.jax_enable_x64
    assert jax.config.jax_default_matmul_precision is None


FOUR_DEVICES = "--xla_force_host_platform_device_count=4"


@pytest.mark.slow
def test_the_batch_is_divided_among_the_devices(tiny_bert, tiny, tmp_path):
    """Four devices give the vectors of one, each computes its share of the rows, and none talks to another."""
    code = f"""
import re, numpy as np, e5ref, jax
model = e5ref.load({str(tiny_bert)!r}, backend="jax", truncation="allow")
engine = model.engine
program = engine._program((32, 16), True).result()
vectors = program(engine._params, *jax.device_put([np.ones((32, 16), np.int32)] * 2, engine._divided))
shares = sorted((shard.device.id, shard.data.shape) for shard in vectors.addressable_shards)
assert shares == [(device, (16, 32)) for device in range(4)], shares  # 8 rows of 2 texts
assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", program.as_text())
assert "f32[8," in program.as_text() and "f32[32,16" not in program.as_text()
np.save({str(tmp_path / "vectors.npy")!r}, model.encode({TEXTS * 3!r}))
"""
    run_python(code, XLA_FLAGS=FOUR_DEVICES)
    vectors = np.load(tmp_path / "vectors.npy")
    np.testing.assert_allclose(vectors, tiny.encode(TEXTS * 3), rtol=0, atol=VECTORS["float32"])


@pytest.mark.slow
def test_two_processes_embed_their_shares_of_a_file(tiny_bert, tiny, tmp_path):
    """Under jax.distributed: each process has its own devices, and takes its own share."""
    texts = [f"cat {'a ' * number}" for number in range(11)]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    processes = []
    for index in range(2):
        code = f"""
import sys, jax
jax.distributed.initialize({coordinator!r}, 2, {index})
assert len(jax.devices()) == 4 and len(jax.local_devices()) == 2
arguments = "embed -i texts.txt -o vectors.npy --backend jax --share auto --model".split()
sys.argv = ["e5ref", *arguments, {str(tiny_bert)!r}]
from e5ref.cli import main
main()
"""
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                env=os.environ
                | {
                    "XLA_FLAGS": FOUR_DEVICES.replace("4", "2"),
                    "JAX_COMPILATION_CACHE_DIR": str(tmp_path / str(index)),
                },
                cwd=tmp_path,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    parts = [np.load(tmp_path / f"vectors-{index:05}-of-00002.npy") for index in range(2)]
    assert [len(part) for part in parts] == [5, 6]
    np.testing.assert_allclose(np.concatenate(parts), tiny.encode(texts), rtol=0, atol=VECTORS["float32"])


@pytest.mark.slow
def test_compiled_programs_are_kept_for_the_next_run(tiny_bert, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    command = [sys.executable, "-c", "from e5ref.cli import main; main()"]
    options = ["embed", "query: cat", "--backend", "jax", "--model", str(tiny_bert)]

    def run() -> set[str]:
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
        result = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0
        assert result.stderr == ""
        return {path.name for path in Path(tmp_path, "e5ref", "jax").iterdir() if not re.search("atime", path.name)}

    kept = run()
    assert any("embed" in name for name in kept)
    assert run() == kept
