"""What is measured: a wrong contender is found out and not timed, and ratios are those of rounds."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from e5ref import bench, read_checkpoint
from e5ref.bench import contenders, measure
from e5ref.bench.contenders import Contender
from e5ref.bench.measure import flops_per_token, product_rates, speed_ratio
from e5ref.bench.report import chart, tables
from tests.bench.planted import TEXTS, TINY, planted


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


@pytest.mark.peer
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


@pytest.mark.slow
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


def test_a_process_that_fails_says_why(folder, tmp_path):
    ours = ["numpy", "e5ref numpy"]
    with pytest.raises(ChildProcessError, match=r"'e5ref numpy' failed in a process of its own: .*no such folder"):
        measure._start([*ours, str(folder / "none"), str(tmp_path), str(tmp_path)], {})
    (tmp_path / "query.json").write_text(json.dumps([contenders.QUERY]))
    files = [str(tmp_path / name) for name in ("query.json", "texts.json")]
    with pytest.raises(ChildProcessError, match=r"No such file .*texts\.json"):  # after its first vector
        measure._start([*ours, str(folder), str(tmp_path), *files], {})


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


@pytest.mark.slow
def test_attention_is_timed_in_both_forms(folder, monkeypatch):
    monkeypatch.setattr(measure, "GPU_BATCH_TOKENS", 512)
    rows = bench.attention_times(read_checkpoint(folder).config)
    assert [row["tokens"] for row in rows] == [64, 128, 512]
    assert all(row["plain_ms"] > 0 and row["fast_ms"] > 0 for row in rows)
