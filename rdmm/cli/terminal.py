"""What every command shares: faults in one line, options, the log, interruption, the progress bar."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import click

from rdmm.data.given import COMMAND_LINE_INPUTS
from rdmm.runtime.progress import progress_listener
from rdmm.types import RdmmError


class Program(click.Group):
    """Turns faults into one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        debug = "--debug" in sys.argv
        interrupted: list[int] = []

        def handler(number: int, frame: Any) -> None:
            """Ctrl-C where nothing is searched for yet; it may come up as any error of what it fell into (an import, say)."""
            interrupted.append(number)
            raise KeyboardInterrupt

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        try:
            sys.exit(super().main(*args, **{**kwargs, "standalone_mode": False}) or 0)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help() if error.ctx else "", err=True)
            sys.exit(2)
        except click.ClickException as error:
            error.show()
            sys.exit(2)
        except (click.Abort, KeyboardInterrupt):
            sys.exit(130)
        except RdmmError as error:
            if debug:
                raise
            click.echo(f"rdmm: {type(error).__name__}: {error}", err=True)
            sys.exit(error.exit_code)
        except Exception as error:
            if interrupted:
                sys.exit(130)
            if debug:
                raise
            click.echo(f"rdmm: unexpected {type(error).__name__}: {error} (--debug shows where)", err=True)
            sys.exit(1)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of every command."""
    for option in (
        click.option("--overwrite", is_flag=True, help="Replace files that are there."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
        click.option("--quiet", is_flag=True, help="No log on stderr but warnings."),
        click.option("--debug", is_flag=True, help="Full log, and the traceback of an error."),
    ):
        command = option(command)
    return command


def optional_file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the files that a registration may be given besides its two images."""
    for given in reversed(COMMAND_LINE_INPUTS):
        command = click.option(given.option, help=given.help)(command)
    return command


def transform_option(command: Callable[..., Any]) -> Callable[..., Any]:
    text = "Warp or ITK affine, [AFFINE,1] for its inverse; repeat it. The last -t is applied first to an image, as in ANTs."
    return click.option("-t", "--transform", "names", multiple=True, required=True, metavar="FILE", help=text)(command)


def conversion_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The images that a transform is between, for forms that count in voxels, and the form that is written."""
    for option in (
        click.option("--fixed", metavar="IMAGE", help="Fixed image: the grid of a warp that is written, and of FSL's and Learn2Reg's."),
        click.option("--moving", metavar="IMAGE", help="Moving image, for FSL, AFNI and Learn2Reg."),
        click.option("--to", "form", metavar="FORM", help="itk, fsl, afni or learn2reg; without it, by the name of OUT."),
    ):
        command = option(command)
    return command


def source_format_option(command: Callable[..., Any]) -> Callable[..., Any]:
    text = "itk, fsl, afni or learn2reg; without it, what the file's name and header tell."
    return click.option("--from", "source_form", metavar="FORM", help=text)(command)


def set_log(quiet: bool, debug: bool) -> None:
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s", force=True)
    logging.getLogger("rdmm").setLevel(level)


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[None]:
    """A bar of the iterations on a terminal; elsewhere the log's one line per level."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[energy]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
    task = bar.add_task("affine", total=None, energy="")

    def show_iteration(level: int, iteration: int, total: int, energy: float) -> None:
        bar.update(task, description=f"level {level}", completed=iteration, total=total, energy=f"energy {energy:.5f}")

    with bar, progress_listener(show_iteration):
        yield


def split_arguments(arguments: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Files, and KEY=VALUE settings; a file whose name holds a = is still a file."""
    files = [a for a in arguments if "=" not in a or os.path.exists(a)]
    return files, [a for a in arguments if a not in files]


def show(result: dict[str, Any], as_json: bool) -> None:
    """The result on stdout."""
    if as_json:
        from rdmm.registration.record import nan_to_null

        click.echo(json.dumps(nan_to_null(result), indent=1))
        return
    for key, value in result.items():
        if isinstance(value, list):
            for item in value:
                click.echo(f"{key}: {item}")
        else:
            click.echo(f"{key}: {value:.5g}" if isinstance(value, float) else f"{key}: {value}")
