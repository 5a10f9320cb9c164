"""The kit's own checker and `check_kit`, and that both say the same."""

import subprocess
import sys
from pathlib import Path

from e5ref.parity import RunError
from e5ref.parity.golden.kit import check_kit


def run_checker(kit: Path, runs: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the kit's checker, which must not need e5ref."""
    code = "import runpy, sys; sys.argv = sys.argv[1:]; sys.modules['e5ref'] = None;"
    code += "runpy.run_path(sys.argv[0], {}, '__main__')"
    command = [sys.executable, "-c", code, str(kit / "check.py"), str(runs), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def own_verdicts(kit: Path, runs: Path, *options: str) -> tuple[int, list[tuple[str, str]], dict[str, str]]:
    """What the kit's checker says: exit code, verdict and name of each line, and for each name the detail."""
    result = run_checker(kit, runs, *options)
    assert not result.stderr
    *lines, last = result.stdout.splitlines()
    assert last.startswith("FAILED" if result.returncode else "PASSED")
    pairs, details = [], {}
    for line in lines:
        verdict, rest = line.split("]", 1)
        name, _, detail = rest.strip().partition("  ")
        pairs.append((verdict.strip("["), name))
        details[name] = detail.strip()
    return result.returncode, pairs, details


def own_error(kit: Path, runs: Path, *options: str) -> str:
    """Why the kit's checker cannot judge anything: one sentence, no traceback."""
    result = run_checker(kit, runs, *options)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1].partition("error: ")[2]


def verdicts(kit: Path, runs: Path) -> tuple[int, list[tuple[str, str]], dict[str, str]]:
    """The same of `check_kit`; details of what cannot be compared alone."""
    lines, details = [], {}
    for batch, result in check_kit(kit, runs).items():
        if isinstance(result, RunError):
            lines.append((result.verdict, batch))
            details[batch] = str(result)
        else:
            lines += [(verdict.verdict, f"{batch}: {verdict.name}") for verdict in result.verdicts]
            details |= {f"{batch}: input_ids": one.detail for one in result.verdicts if one.name == "input_ids"}
    return int(any(verdict != "OK" for verdict, _ in lines)), lines, details


def assert_judged_alike(kit: Path, runs: Path, *, passes: bool) -> list[str]:
    """Both come to the same verdict, for the same reason; return the names that fail."""
    code, lines, details = verdicts(kit, runs)
    own_code, own_lines, own_details = own_verdicts(kit, runs)
    assert (own_code, own_lines) == (code, lines)
    for name, detail in details.items():
        detail = detail.replace("this e5ref reads", "this kit reads")
        # Why a file is no safetensors file, each reader says in its own words.
        start = detail.partition("safetensors file (")[0]
        assert own_details[name].startswith(start), name
        assert own_details[name] == detail or start != detail
    assert passes == (code == 0)
    return [name for verdict, name in lines if verdict != "OK"]
