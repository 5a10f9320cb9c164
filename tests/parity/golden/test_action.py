"""The GitHub Action that judges a port: its own shell, run as GitHub runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from e5ref.checkpoint.hub import known_checkpoints

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/port/five-minutes.md").read_text()
ACTION = yaml.safe_load((ROOT / ".github/actions/judge/action.yml").read_text())

# What stands for a port: a program that runs the kit's texts and writes what came out, times a number.
PORT = """
import json, sys
from dataclasses import replace
from pathlib import Path
from e5ref.parity import record, write_run

kit, model, factor = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
Path("runs").mkdir()
for batch, entry in json.loads((kit / "kit.json").read_text())["batches"].items():
    run = record(model, entry["texts"], only=entry["points"])
    arrays = dict(run.arrays)
    arrays["normalized"] = arrays["normalized"] * factor
    write_run(replace(run, arrays=arrays), f"runs/{batch}.safetensors")
"""


def act(folder: Path, **inputs: str) -> tuple[int, str, str]:
    """Run the action's steps, all but the installation, in a repository's folder; return code, output, summary."""
    summary = folder / "summary.md"
    environment = os.environ | {
        "GITHUB_STEP_SUMMARY": str(summary),
        "RUNNER_TEMP": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    output = ""
    for step in ACTION["runs"]["steps"][1:]:
        variables = {
            name: inputs.get(expression.removeprefix("${{ inputs.").removesuffix(" }}"), "")
            for name, expression in step["env"].items()
        }
        result = subprocess.run(
            ["bash", "-e", "-c", step["run"]],  # as GitHub's runner calls bash
            cwd=folder,
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        output += result.stdout + result.stderr
        if result.returncode:
            break
    return result.returncode, output, summary.read_text() if summary.exists() else ""


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1, 1.001])
def test_the_verdict_of_a_port(kit, tiny_bert, tmp_path, factor):
    (tmp_path / "port.py").write_text(PORT)
    command = f"python port.py {kit} {tiny_bert} {factor}"
    code, output, summary = act(tmp_path, kit=str(kit), command=command, runs="runs")
    assert code == (0 if factor == 1 else 1), output
    assert ("Passed: alone" in summary) == (factor == 1)
    assert ("::error title=The port departs from the reference::First departure: normalized" in output) == (factor != 1)


def test_a_port_that_fails_is_not_judged(kit, tmp_path):
    code, output, summary = act(tmp_path, kit=str(kit), command="false | cat; echo on", runs="runs")
    assert (code, output, summary) == (1, "", "")


def test_points_that_the_port_computes_so_far(kit, tmp_path):
    """The kit itself is a folder of right runs."""
    code, output, _ = act(tmp_path, kit=str(kit), command="true", runs=str(kit), only="embeddings,layers.0.*")
    assert code == 0, output
    assert "layers.0.output" in output
    assert "layers.1.output" not in output


def test_the_page_gives_what_the_action_takes():
    workflow = yaml.safe_load(PAGE.split("```yaml\n")[1].split("```")[0])
    (step,) = [step for step in workflow["jobs"]["judge"]["steps"] if "actions/judge@" in step.get("uses", "")]
    assert set(step["with"]) <= set(ACTION["inputs"])
    assert {name for name, one in ACTION["inputs"].items() if one.get("required")} <= set(step["with"])


def test_the_page_writes_kits_of_ten_known_checkpoints():
    """Its loop is run with `echo` before the command."""
    (loop,) = [block for block in PAGE.split("```") if block.startswith("\nfor model in")]
    loop = loop.replace("do e5ref golden", "do echo e5ref golden")
    lines = subprocess.run(["bash", "-c", loop], capture_output=True, text=True, check=True).stdout.splitlines()
    names = [line.split()[3] for line in lines]
    assert len(set(names)) == 10
    assert set(names) <= set(known_checkpoints())
    assert [line.split()[-1] for line in lines] == [f"kits/{name.partition('/')[2]}" for name in names]
