"""What all commands share: help, options, and a sentence for whatever is wrong."""

import subprocess
import sys

import pytest

import e5ref
from e5ref import cli
from tests.tools.processes import fails, run


def test_help_and_version():
    assert b"embed" in run("--help").stdout
    assert e5ref.__version__.encode() in run("--version").stdout
    for command in ("embed", "rank", "models", "inspect"):
        assert b"Usage" in run(command, "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed"], "give TEXT arguments or -i FILE"),
        (["embed", "a", "-i", "-"], "one of the two"),
        (["embed", "-i", __file__, "--format", "text", "-o", "out.txt"], "must end in .npy, .safetensors, .jsonl"),
        (["embed", "a", "-o", "no/such/folder/out.npy"], "no/such/folder: no such folder; make it first"),
        (["embed", "-i", "no-such-file.txt"], "no-such-file.txt: no such file"),
        (["rank", "a", "-i", "."], ".: is a folder; give a file"),
        (["embed", "-i", "a.txt", "-i", "b.txt"], "give -i once"),
        (["embed", "a", "--dtype", "float16"], "'float16' is not one of"),
        (["embed", "a", "--model", "no/such/folder"], "no such folder, and not a hub name"),
        (["rank", "a"], "give PASSAGE arguments or -i FILE"),
        (["inspect", "."], "a checkpoint folder needs config.json"),
        (["embd"], "No such command"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(*arguments)
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == []


def test_a_checkpoint_that_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    message = fails("embed", "a", "--model", "intfloat/e5-large", own_process=True)
    assert "the hub cannot be reached" in message


def test_no_memory_is_said_in_a_sentence(tiny_bert, monkeypatch):
    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr(e5ref.E5, "encode_stream", no_memory)
    assert fails("embed", "query: a", "--model", tiny_bert) == (
        "Error: out of memory; take a smaller --batch-size, or a machine with more\n"
    )


def test_what_nobody_thought_of_is_said_in_a_sentence_too(tiny_bert, monkeypatch):
    def broken(*_, **__):
        raise KeyError("nowhere")

    monkeypatch.setattr(e5ref.E5, "encode_stream", broken)
    assert "Error: KeyError: 'nowhere' (with E5REF_TRACEBACK=1" in fails("embed", "query: a", "--model", tiny_bert)
    monkeypatch.setenv("E5REF_TRACEBACK", "1")
    with pytest.raises(KeyError):
        run("embed", "query: a", "--model", tiny_bert)


@pytest.mark.parametrize("command", ["embed", "rank", "eval sts", "eval retrieval"])
def test_every_command_that_runs_a_model_has_its_options(command):
    shown = run(*command.split(), "--help").stdout.decode()
    for option in ("--model", "--backend", "--threads", "--truncation", "--batch-size", "--dim", "--max-length"):
        assert f"  {option} " in shown


@pytest.mark.parametrize("command", ["inspect", "record", "golden"])
def test_a_model_is_an_option_and_may_be_an_argument(command, tiny_bert, tmp_path):
    (tmp_path / "in.txt").write_text("query: cat\n")
    suffix = {"inspect": [], "record": ["-i", tmp_path / "in.txt", "-o", "OUT.safetensors"], "golden": ["-o", "OUT"]}
    outputs = []
    for index, model in enumerate(([tiny_bert], ["--model", tiny_bert])):
        rest = [str(part).replace("OUT", str(tmp_path / f"out{index}")) for part in suffix[command]]
        outputs.append(run(command, *model, *rest).stdout.replace(b"out1", b"out0"))
    assert outputs[0] == outputs[1]
    assert "give the model once" in fails(command, tiny_bert, "--model", tiny_bert, *rest)
    usage = run(command, "--help").stdout.decode()
    assert "  --model TEXT" in usage
    assert "MODEL" not in usage


def test_help_stands_in_groups_whose_lines_fit(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = run("--help").stdout.decode()
    assert [line for line in shown.splitlines() if line.endswith(":")][1:] == [
        *("Use it:", "Measure it:", "Judge a port:")
    ]
    listed = shown[shown.index("Use it:") :].splitlines()
    assert not any("..." in line for line in listed)
    assert len([line for line in listed if line.startswith("  ")]) == len(cli.commands.commands)


def test_python_runs_the_package():
    result = subprocess.run([sys.executable, "-m", "e5ref", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"e5ref, version {e5ref.__version__}\n"
