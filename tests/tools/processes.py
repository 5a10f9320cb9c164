"""The command line, in this process or in one of its own, and Python with another processor's kernels."""

import io
import os
import platform
import subprocess
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from e5ref.cli import main

COMMAND = [sys.executable, "-c", "from e5ref.cli import main; main()"]


def run(
    *arguments: object, stdin: bytes = b"", code: int = 0, own_process: bool = False
) -> subprocess.CompletedProcess:
    """Run the command line in this process, which is quicker, or in one of its own, where it sets what stays set."""
    words = [*map(str, arguments)]
    if own_process:
        result = subprocess.run([*COMMAND, *words], input=stdin, capture_output=True, check=False)
    else:
        result = run_here(words, stdin)
    assert result.returncode == code, result.stderr.decode()
    return result


def run_here(words: list[str], stdin: bytes) -> subprocess.CompletedProcess:
    """Run the command line in this process; its standard streams are files, as they are to a shell."""
    with TemporaryDirectory() as folder:
        files = Path(folder, "output"), Path(folder, "errors")
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(sys, "argv", ["e5ref", *words])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            patch.setattr(sys, "stdout", stack.enter_context(files[0].open("w")))
            patch.setattr(sys, "stderr", stack.enter_context(files[1].open("w")))
            with pytest.raises(SystemExit) as exited:
                main()
        return subprocess.CompletedProcess(words, exited.value.code or 0, *(file.read_bytes() for file in files))


def fails(*arguments: object, stdin: bytes = b"", own_process: bool = False) -> str:
    """Run what must fail: exit code 2, a sentence on standard error nothing on standard output. Return the former."""
    result = run(*arguments, stdin=stdin, code=2, own_process=own_process)
    message = result.stderr.decode()
    assert result.stdout == b""
    assert "Traceback" not in message
    assert message.splitlines()[-1].startswith("Error: ")
    return message


def shell(command: str, stdin: bytes) -> subprocess.CompletedProcess:
    """Run `e5ref embed` in a shell line, with Python's ordinary buffers."""
    line = command.replace("e5ref", f"{sys.executable} -c 'from e5ref.cli import main; main()'")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(line, shell=True, input=stdin, env=environment, capture_output=True, check=False)


def in_another_blas(core: str, code: str) -> str:
    """Run code with OpenBLAS made to use the kernels of another processor."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the kernels named here are those of x86-64")
    show = "import numpy; print(numpy.show_config('dicts')['Build Dependencies']['blas']['name'])"
    blas = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout
    if "openblas" not in blas:
        pytest.skip(f"NumPy is built with {blas.strip()}, and OPENBLAS_CORETYPE chooses kernels of OpenBLAS only")
    environment = os.environ | {"OPENBLAS_CORETYPE": core}
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
