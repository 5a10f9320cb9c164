"""`e5ref …`: thin; every command is a few lines over the library."""

import errno
import os
import sys
import warnings

import click

import e5ref
from e5ref.commands import checkpoints, embed, judge, look, measure, search, serve
from e5ref.terminal.stopping import Stopped, end, stops_soon


def main() -> None:
    """Run the command line. What goes wrong is said in one sentence on standard error, with exit code 2."""
    _open_standard_streams()
    warnings.showwarning = lambda message, *_, **__: click.echo(f"Warning: {message}", err=True)
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", UserWarning)
    with stops_soon():
        try:
            status = commands(standalone_mode=False)  # of a command that ended in click's Exit, its code; else None
            sys.stdout.flush()
        except Stopped as stop:
            end(stop.code)
        except BrokenPipeError:  # whoever read our output has had enough, as `head` does
            _drop_output()
            status = 1
        except click.UsageError as error:
            error.show()
            status = 2
        except Exception as error:
            if "E5REF_TRACEBACK" in os.environ:
                raise
            click.echo(f"Error: {_sentence(error)}", err=True)
            _drop_output()
            status = 2
    sys.exit(status)


def _open_standard_streams() -> None:
    """Put something in the place of standard streams that the caller has closed, for which Python has None.

    Reading from standard input, or writing to standard output, then fails with EBADF. Warnings go nowhere.
    """
    for name, mode in (("stdin", os.O_WRONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, mode)
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", closefd=False))


def _drop_output() -> None:
    """Send what is left in the buffer of standard output nowhere; Python would try again at exit, and fail aloud."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error: Exception) -> str:
    """Say what went wrong. The errors that e5ref raises are sentences already."""
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, MemoryError):
        reason = f" ({error})" if str(error) else ""
        return f"out of memory{reason}; take a smaller --batch-size, or a machine with more"
    if isinstance(error, OSError) and error.errno == errno.EBADF:
        return "standard input or output is closed"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ValueError | TypeError | OSError | ModuleNotFoundError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error} (with E5REF_TRACEBACK=1 in the environment, Python shows where)"


# The commands by what people come for, as help lists them.
GROUPS = {
    "Use it": [
        *(checkpoints.demo, embed.embed, search.search, embed.rank, look.look, look.explain, serve.serve),
        *(checkpoints.models, checkpoints.inspect, checkpoints.warm_up),
    ],
    "Measure it": [measure.evaluate, measure.bench],
    "Judge a port": [judge.record, judge.compare, judge.golden, judge.check, judge.diagnose],
}


class Commands(click.Group):
    """All commands, in groups."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List each group under its title."""
        for title, commands in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(str(one.name), one.get_short_help_str(limit=70)) for one in commands])


@click.group(
    cls=Commands,
    commands=[command for group in GROUPS.values() for command in group],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(e5ref.__version__, prog_name="e5ref")
def commands() -> None:
    """E5 text embeddings without a framework."""
