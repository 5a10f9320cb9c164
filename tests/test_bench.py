"""The bench: contenders compute the same, a wrong one is found out and not timed, and ratios are those of rounds."""

import importlib.util
import itertools
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest
from tqdm import tqdm

from e5ref import E5, bench, read_checkpoint
from e5ref.bench import contenders, measure
from e5ref.bench.contenders import CONTENDERS, Contender, run_engine
from e5ref.bench.measure import flops_per_token, product_rates, speed_ratio
from e5ref.bench.prepare import write_exports, write_random_checkpoint
from e5ref.bench.report import INT8_NOTE, chart, tables
from e5ref.engines.engine import Precision

TINY = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 300,
    "max_position_embeddings": 64,
}
TEXTS = [f"passage: {'how much protein a female eats ' * (1 + number % 12)}" for number in range(40)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0)
    monkeypatch.setattr(measure, "FIXED_TOKENS", 256)
    monkeypatch.setattr(measure, "LATENCY_CALLS", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    write_random_checkpoint(folder, TINY, TEXTS)
    return folder


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    """The two folders that contenders load from."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason="comes with `pip install '.[bench]'`")
    exports = tmp_path_factory.mktemp("exports")
    write_exports(E5(read_checkpoint(folder)), ["onnxruntime-fused", "onnxruntime-int8"], exports)
    return folder, exports


@pytest.fixture
def in_process(monkeypatch):
    """Processes of their own are not started: in those there are no planted contenders."""
    monkeypatch.setattr(bench, "measure_processes", lambda *arguments: [])


@pytest.fixture
def no_rates(monkeypatch):
    """Large products, which take most of a small bench's time, are not timed: test_all_installed_contenders does it."""
    monkeypatch.setattr(bench, "product_rates", lambda contenders: [])


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


def test_all_installed_contenders_agree_and_are_timed(in_process):
    result = bench.bench(TINY, ["numpy", "jax-highest", "transformers"], texts=TEXTS, lengths=(16, 64), rounds=2)
    assert [inputs["name"] for inputs in result["inputs"]] == ["texts", "16 tokens", "64 tokens"]
    assert [inputs["tokens"] for inputs in result["inputs"][1:]] == [256, 256]
    for inputs in result["inputs"]:
        names = [row["contender"] for row in inputs["rows"]]
        assert names == ["e5ref numpy", "e5ref jax highest", "transformers float32"]
        for row in inputs["rows"]:
            assert row["right"]
            assert row["max_abs"] < 5e-7
            speed = row["tokens_per_second"]
            assert 0 < speed["min"] <= speed["median"] <= speed["max"]
            assert 0 < row["share"] < 1
            assert (row["latency_ms"] is not None) == (inputs["name"] == "texts")
            assert ("part_of_ids" in row) == (inputs["name"] == "texts" and not row["is_peer"])
    assert json.loads(json.dumps(result)) == result
    titles = [part for part in tables(result) if " texts, " in part]
    assert ["end to end: from a list of str" in title for title in titles] == [True, False, False]
    assert ["from token ids: the engine alone" in title for title in titles] == [False, True, True]
    for part in tables(result):
        assert len({len(line) for line in part.splitlines() if line.startswith("|")}) <= 1  # the columns are aligned


def test_sentence_transformers_takes_texts_only(in_process, no_rates):
    result = bench.bench(TINY, ["sentence-transformers", "numpy"], texts=TEXTS, lengths=(16,), rounds=1)
    rows = [[row["contender"] for row in inputs["rows"] if row["right"]] for inputs in result["inputs"]]
    assert rows == [["e5ref numpy", "sentence-transformers"], ["e5ref numpy"]]


def test_the_model_cards_code_agrees(in_process, no_rates):
    result = bench.bench(TINY, ["model-card"], texts=TEXTS, lengths=(), rounds=1)
    (row,) = result["inputs"][0]["rows"]
    assert (row["contender"], row["right"]) == ("model card's code", True)


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-fused", "onnxruntime-int8", "fastembed"])
def test_exported_graphs_agree(name, prepared):
    if name == "fastembed":
        pytest.importorskip("fastembed", reason="comes with `pip install '.[bench]'`")
    (contender,) = CONTENDERS[name](*prepared)
    (again,) = CONTENDERS[name](*prepared)  # fastembed keeps a list of names
    expected = E5(read_checkpoint(prepared[0]), truncation="allow").encode(TEXTS)
    error = np.abs(contender.of_texts(TEXTS) - expected).max()
    assert error < 5e-7 if contender.precision == "float32" else 1e-4 < error < measure.BOUNDS["int8"] / 3
    np.testing.assert_array_equal(again.of_texts(TEXTS[:3]), contender.of_texts(TEXTS[:3]))


def test_contenders_are_those_of_all_precisions():
    assert [name for name in CONTENDERS if name.startswith("jax")] == [f"jax-{name}" for name in get_args(Precision)]
    assert set(contenders.PACKAGES) == {name for name in CONTENDERS if not name.startswith(("numpy", "jax"))}


def test_what_is_found_grows_input_by_input(in_process, no_rates):
    steps = bench.bench_step_by_step(TINY, ["numpy"], lengths=(8, 16), rounds=1)
    results = [json.loads(json.dumps(step)) for step in steps]
    assert len(results) == 3  # after each input, and at the end
    for result in results:  # as on an accelerator, and with int8 beside
        result["attention"] = [{"tokens": 8, "plain_ms": 2.0, "fast_ms": 1.0}]
        for inputs in result["inputs"]:
            inputs["rows"].append(inputs["rows"][0] | {"precision": "int8", "is_peer": True})
    process = {"contender": "e5ref numpy", "is_peer": False, "precision": "float32", "peak_mib": 5.0, "ratios": {}}
    figures = {"first_vector_s": {"median": 1.0, "min": 1.0, "max": 1.0}, "cold_first_vector_s": None}
    results[-1]["processes"] = [process | figures]
    seen = [tables(result) for result in results]
    for less, more in itertools.pairwise(seen):
        assert more[: len(less)] == less
        assert len(more) > len(less)
    assert seen[-1].count(INT8_NOTE) == 1


@pytest.mark.parametrize(
    ("change", "precision", "right"),
    [
        (lambda vectors: vectors, "float32", True),
        (lambda vectors: vectors + 2e-5, "float32", False),
        (lambda vectors: vectors + 2e-5, "bfloat16", True),
        (lambda vectors: vectors + 4e-2, "bfloat16", False),
        (lambda vectors: vectors + 4e-2, "int8", False),
        (lambda vectors: np.full_like(vectors, np.nan), "bfloat16", False),
        (lambda vectors: vectors[::-1], "float32", False),
    ],
)
def test_who_is_wrong_is_not_timed(change, precision, right, monkeypatch, in_process, no_rates):
    calls = []
    change_and_count = lambda vectors: (calls.append(len(vectors)), change(vectors))[1]  # noqa: E731
    monkeypatch.setitem(bench.CONTENDERS, "planted", planted("planted", change_and_count, precision=precision))
    result = bench.bench(TINY, ["numpy", "planted"], lengths=(16,), rounds=3)
    ours, theirs = result["inputs"][0]["rows"]
    assert ours["right"]
    assert theirs["right"] is right
    assert len(calls) == (4 if right else 1)
    assert ("tokens_per_second" in theirs) is right
    assert ("planted" in ours["ratios"]) is right
    assert ("wrong" in "".join(tables(result))) is not right


def test_int8_is_marked_and_no_best_peer(monkeypatch, in_process, no_rates):
    monkeypatch.setitem(bench.CONTENDERS, "exact", planted("exact", lambda vectors: time.sleep(0.05) or vectors))
    monkeypatch.setitem(bench.CONTENDERS, "coarse", planted("coarse", lambda vectors: vectors, precision="int8"))
    lines = "\n".join(tables(bench.bench(TINY, ["exact", "coarse"], lengths=(16,), rounds=1))).splitlines()
    ratios = {line.split("|")[1].strip(): line.split("|")[5].strip() for line in lines if line.startswith("| ")}
    assert ratios["exact"] == "1.00"
    assert float(ratios["coarse"]) > 1
    assert lines[-1] == INT8_NOTE


def test_processes_of_their_own(no_rates):
    """The one that imports torch takes longer and more memory; what this process itself holds does not count."""
    import torch

    held = torch.ones(1 << 27)  # 512 MiB
    result = bench.bench(TINY, ["numpy", "transformers"], texts=TEXTS, lengths=(), rounds=2)
    ours, theirs = result["processes"]
    assert (ours["contender"], theirs["contender"]) == ("e5ref numpy", "transformers float32")
    for row in (ours, theirs):
        first, all_texts = row["first_vector_s"], row["all_texts_s"]
        assert 0 < first["min"] <= first["median"] <= first["max"]
        assert all(first[key] < all_texts[key] for key in first)
        assert row["cold_first_vector_s"] is row["cold_all_texts_s"] is None  # they compile nothing
    assert ours["ratios"]["transformers float32"] > 1
    assert theirs["ratios"] == {"transformers float32": 1.0}
    if Path("/proc/self/status").exists():
        assert ours["peak_mib"] < theirs["peak_mib"] < held.nbytes / 2**20
    else:
        assert ours["peak_mib"] is theirs["peak_mib"] is None


def test_cold_is_an_empty_folder_of_programs(folder, tmp_path, monkeypatch):
    """The query has one; so have the texts, embedded before the query; and what comes then compiles nothing."""
    start, starts = measure._start, []

    def programs(environment):
        return set(Path(environment["JAX_COMPILATION_CACHE_DIR"]).rglob("*-cache"))

    def start_and_look(arguments, environment):
        before = programs(environment)
        found = start(arguments, environment)
        files = [Path(file).name for file in arguments[4:]]
        starts.append((files, bool(before), bool(programs(environment) - before)))
        return found

    monkeypatch.setattr(measure, "_start", start_and_look)
    contender = Contender("e5ref jax highest", lambda texts: np.zeros(0), None, is_peer=False, compiles=True)
    with tqdm(disable=True) as progress:
        (row,) = measure.measure_processes({contender: "jax-highest"}, folder, tmp_path, TEXTS[:3], 1, progress)
    query, texts = "query.json", "texts.json"
    assert starts == [
        ([query], False, True),
        ([texts, query], False, True),
        ([query, texts], True, False),
    ]
    assert row["cold_first_vector_s"] > 0
    assert row["cold_all_texts_s"] > 0


@pytest.mark.parametrize("texts", [TEXTS[:4], []])
@pytest.mark.parametrize("device", ["cpu", "gpu", "tpu"])
def test_processes_on_an_accelerator(device, texts, monkeypatch, no_rates):
    """A TPU's are left out; those that compile are cold first, the texts without the query before them."""
    folders, lengths = [], [] if texts else [16]

    def start(arguments, environment):
        loader, name, _, _, *files = arguments
        assert {"numpy": "e5ref numpy", "planted": "planted, compiled"}[loader] == name
        folder = environment["TORCHINDUCTOR_CACHE_DIR"]
        cold = loader == "planted" and folder not in folders
        folders.append(folder)
        assert len({environment[name] for name in measure.PROGRAM_FOLDERS}) == len(measure.PROGRAM_FOLDERS)
        steps = {"query.json": 1.0 + 10 * cold, "texts.json": 4.0 + 100 * cold}
        return list(itertools.accumulate(steps[Path(file).name] for file in files)), 5.0

    monkeypatch.setattr(measure, "_start", start)
    peer = planted("planted, compiled", lambda vectors: vectors, device=device, compiles=True)
    monkeypatch.setitem(bench.CONTENDERS, "planted", peer)
    monkeypatch.setattr(measure, "FIXED_TOKENS_ACCELERATOR", 256)
    result = bench.bench(TINY, ["numpy", "planted"], texts=texts, lengths=lengths, rounds=2)
    ours, *theirs = result["processes"]
    assert ours["cold_first_vector_s"] is None
    assert bool(theirs) == (device != "tpu")
    assert len(folders) == 2 + (2 + 1 + bool(texts)) * len(theirs)
    for row in theirs:
        assert row["first_vector_s"] == {"median": 1.0, "min": 1.0, "max": 1.0}
        assert row["cold_first_vector_s"] == 11.0
        assert row.get("all_texts_s", {}).get("median") == (5.0 if texts else None)
        assert row.get("cold_all_texts_s") == (104.0 if texts else None)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables(result)[-1].splitlines()]
    columns = [index for index, name in enumerate(cells[0]) if name.endswith(", cold")]
    shown = [[line[index] for index in columns] for line in (cells[0], *cells[2:])]
    expected = (
        [["first vector, cold", "all texts, cold"], ["1.00", "5.00"], ["11.00", "104.00"]] if theirs else [[], []]
    )
    assert shown == (expected if texts else [line[:1] for line in expected])
    assert ("nothing compiled" in chart([result])) == bool(theirs)


def test_transformers_takes_three_forms_on_a_gpu_and_a_process_is_one(folder, tmp_path, monkeypatch, capsys):
    """A GPU is pretended: what goes there stays."""
    import torch

    move, loaded = torch.Tensor.to, []
    load_network = contenders.load_network

    def load(checkpoint, attention, precision):
        loaded.append(precision)
        return load_network(checkpoint, attention, precision)

    def to(tensor, device, *arguments, **options):
        return tensor if str(device) == "cuda" else move(tensor, device, *arguments, **options)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch, "compile", lambda network: loaded.append("compiled") or network)
    monkeypatch.setattr(contenders, "load_network", load)
    encoder = E5(read_checkpoint(folder), truncation="allow")
    write_exports(encoder, ["transformers"], tmp_path)
    forms = list(CONTENDERS["transformers"](folder, tmp_path))
    names = ["transformers float32", "transformers bfloat16", "transformers bfloat16, compiled"]
    assert [form.name for form in forms] == names
    assert [(form.device, form.precision, form.compiles) for form in forms] == [
        ("gpu", "float32", False),
        ("gpu", "bfloat16", False),
        ("gpu", "bfloat16", True),
    ]
    assert loaded == []
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps(TEXTS[:2]))
    for name, expected in zip(names, (["float32"], ["bfloat16"], ["bfloat16", "compiled"]), strict=True):
        loaded.clear()
        contenders.main(["transformers", name, str(folder), str(tmp_path), str(texts), str(texts)])
        assert loaded == expected
        assert capsys.readouterr().out.splitlines()[:-1] == [contenders.READY] * 2
    expected = encoder.encode(TEXTS)
    for form in forms:
        assert np.abs(form.of_texts(TEXTS) - expected).max() < measure.BOUNDS[form.precision]


def test_a_process_that_fails_says_why(folder, tmp_path):
    ours = ["numpy", "e5ref numpy"]
    with pytest.raises(ChildProcessError, match=r"'e5ref numpy' failed in a process of its own: .*no such folder"):
        measure._start([*ours, str(folder / "none"), str(tmp_path), str(tmp_path)], {})
    (tmp_path / "query.json").write_text(json.dumps([contenders.QUERY]))
    files = [str(tmp_path / name) for name in ("query.json", "texts.json")]
    with pytest.raises(ChildProcessError, match=r"No such file .*texts\.json"):  # after its first vector
        measure._start([*ours, str(folder), str(tmp_path), *files], {})


def test_peers_start_without_e5ref_and_the_exporter(prepared, tmp_path):
    (tmp_path / "texts.json").write_text(json.dumps([contenders.QUERY]))
    code = "import runpy, sys; runpy.run_path(sys.argv[0], run_name='__main__'); print(*sys.modules)"
    arguments = [contenders.__file__, "onnxruntime", "onnxruntime", *map(str, prepared), str(tmp_path / "texts.json")]
    code = f"import sys; sys.argv = {arguments!r}; {code}"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = {name.split(".")[0] for name in output.splitlines()[-1].split()}
    assert "onnxruntime" in loaded
    assert not {"e5ref", "torch", "transformers", "onnx", "safetensors", "jax"} & loaded


def test_the_chart_shows_each_input_and_contender(monkeypatch, in_process, no_rates):
    monkeypatch.setitem(bench.CONTENDERS, "planted", planted("A & B", lambda vectors: vectors))
    monkeypatch.setitem(bench.CONTENDERS, "wrong", planted("wrong", lambda vectors: -vectors))
    result = bench.bench(TINY, ["numpy", "planted", "wrong"], texts=TEXTS, lengths=(16,), rounds=2)
    image = ElementTree.fromstring(chart([result, result]))
    written = [element.text for element in image.findall(".//{*}text")]
    assert written.count("e5ref numpy") == written.count("A & B") == 4
    assert written.count("from their ids") == 2  # ours, on the texts
    assert "random weights, 1 layers of 32. 16 tokens: 16 texts, 256 tokens" in written
    assert "wrong" not in written
    bars = [element for element in image.findall(".//{*}rect") if element.get("class") in ("ours", "peer")]
    rows = [row for row in result["inputs"][0]["rows"] if row["right"]]
    speeds = [row["tokens_per_second"] for row in rows]
    top = max(speed["max"] for speed in [*speeds, rows[0]["ids_tokens_per_second"]])
    widths = [float(bar.get("width")) for bar in bars[:2]]
    assert widths == pytest.approx([400 * speed["median"] / top for speed in speeds], abs=0.1)
    height = float(image.get("height"))
    assert all(float(element.get("y")) < height for element in image.findall(".//{*}text"))


def test_a_random_checkpoint_gives_transformers_our_vectors(folder):
    """Through transformers' own tokenizer too, which the bench does not use."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True).eval()
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state.numpy()
    mask = inputs["attention_mask"].numpy()
    expected = (states * mask[..., None]).sum(axis=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    vectors = E5(read_checkpoint(folder), truncation="allow").encode(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=5e-7)
    assert np.ptp(mask.sum(axis=1)) > 40  # the texts differ in length, and some are cut
    assert vectors.std(axis=0).max() > 1e-3  # and in their vectors, so that a mix-up shows


def test_ratios_are_those_of_rounds():
    """The machine slows down fivefold and more, for both; the ratio of medians would be 1."""
    assert speed_ratio([1.0, 5.0, 20.0], [2.0, 10.0, 5.0]) == 2.0
    assert speed_ratio([2.0], [1.0]) == 0.5


def test_a_run_gives_the_ratios_of_its_rounds(monkeypatch, in_process, no_rates):
    """Round by round ours takes 1, 5 and 2 s, theirs 2, 10 and 20: also where the order turns round."""
    seconds = iter([1.0, 2.0, 10.0, 5.0, 2.0, 20.0])
    monkeypatch.setitem(bench.CONTENDERS, "planted", planted("planted", lambda vectors: vectors))
    monkeypatch.setattr(measure, "_seconds", lambda call, times: [next(seconds)])
    result = bench.bench(TINY, ["planted", "numpy"], lengths=(16,), rounds=3)
    ours, theirs = result["inputs"][0]["rows"]
    assert ours["ratios"] == {"planted": 2.0}
    assert theirs["ratios"] == {"planted": 1.0}
    assert ours["tokens_per_second"] == {"median": 128.0, "min": 51.2, "max": 256.0}
    assert ours["texts_per_second"] == 8.0
    assert ours["share"] is None


def test_from_texts_is_set_beside_from_ids(monkeypatch, in_process, no_rates):
    """Round by round ours takes 4, 2 and 5 s from texts and 1 s from ids: also where the order turns round."""
    seconds = iter([4.0, 1.0, 3.0, 3.0, 2.0, 1.0, 5.0, 1.0, 3.0])
    monkeypatch.setitem(bench.CONTENDERS, "planted", planted("planted", lambda vectors: vectors))
    monkeypatch.setattr(measure, "_seconds", lambda call, times: [next(seconds)] if times == 1 else [0.0] * times)
    result = bench.bench(TINY, ["planted", "numpy"], texts=TEXTS, lengths=(), rounds=3)
    ours, theirs = result["inputs"][0]["rows"]
    tokens = result["inputs"][0]["tokens"]
    assert ours["ids_tokens_per_second"] == {"median": tokens, "min": tokens, "max": tokens}
    assert ours["part_of_ids"] == 0.25
    assert ours["tokens_per_second"]["median"] == tokens / 4
    assert theirs["tokens_per_second"] == {"median": tokens / 3, "min": tokens / 3, "max": tokens / 3}
    assert "| 25% |" in " ".join(tables(result)[-1].split())


def test_flops_of_e5_small(folder):
    config = read_checkpoint(folder).config
    assert flops_per_token(config, np.array(10)) == 8 * 32 * 32 + 4 * 32 * 64 + 4 * 10 * 32


def test_half_precisions_share_a_ceiling():
    def contender(precision):
        return Contender("", lambda texts: np.zeros(0), None, precision=precision)

    assert contender("float16").ceiling == contender("bfloat16").ceiling == ("cpu", "bfloat16")
    assert contender("high").ceiling == ("cpu", "high")
    (rate,) = product_rates([contender("float32")])
    assert (rate["library"], rate["device"], rate["precision"]) == ("numpy", "cpu", "float32")
    assert math.isfinite(rate["teraflops"])


def test_attention_is_timed_in_both_forms(folder, monkeypatch):
    monkeypatch.setattr(measure, "GPU_BATCH_TOKENS", 512)
    rows = bench.attention_times(read_checkpoint(folder).config)
    assert [row["tokens"] for row in rows] == [64, 128, 512]
    assert all(row["plain_ms"] > 0 and row["fast_ms"] > 0 for row in rows)


def test_a_missing_peer_says_what_to_install(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else found(name))
    monkeypatch.setattr(bench, "write_random_checkpoint", None)  # nothing is written before
    with pytest.raises(ModuleNotFoundError, match=r"'onnxruntime' needs onnx and onnxruntime: pip install"):
        bench.bench(TINY, ["numpy", "onnxruntime"])


def test_an_unknown_contender_is_refused():
    with pytest.raises(ValueError, match="'tensorflow' is not one of numpy, jax-highest"):
        bench.bench(TINY, ["tensorflow"])


def test_other_pooling_is_refused(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "modules.json").write_text(
        json.dumps(
            [{"type": f"s.{kind}", "path": path} for kind, path in (("Transformer", ""), ("Pooling", "p"))]
        ).replace("s.", "sentence_transformers.models.")
    )
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(ValueError, match="must pool by mean and normalise"):
        bench.bench(tmp_path, ["numpy"])
