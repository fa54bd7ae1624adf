"""What all commands share: error messages, common options, logging, Ctrl-C, the progress bar, printing of results."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from textwrap import indent
from typing import Any

import click

from rdmm.data.given import COMMAND_LINE_INPUTS
from rdmm.runtime.interrupt import quit_at_once
from rdmm.runtime.memory import memory_errors
from rdmm.runtime.progress import progress_bar
from rdmm.types import RdmmError, options_are_typed


class Program(click.Group):
    """A group of commands that reports an error as one line on stderr and as an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        debug = "--debug" in sys.argv
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, _quit)
        try:
            with options_are_typed(), memory_errors():
                sys.exit(super().main(*args, **{**kwargs, "standalone_mode": False}) or 0)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.ctx.get_help() if error.ctx else "", err=True)
            sys.exit(2)
        except click.ClickException as error:
            click.echo(f"rdmm: {_usage_text(error, list(args[0] if args else kwargs.get('args') or sys.argv[1:]))}", err=True)
            sys.exit(2)
        except (click.Abort, KeyboardInterrupt):
            sys.exit(130)
        except RdmmError as error:
            if debug:
                raise
            click.echo(f"rdmm: {type(error).__name__}: {error}", err=True)
            sys.exit(error.exit_code)
        except Exception as error:
            if debug:
                raise
            text = " ".join(str(error).split())
            click.echo(f"rdmm: unexpected {type(error).__name__}: {text} (--debug shows where)", err=True)
            sys.exit(1)


def _quit(number: int, _: Any) -> None:
    """Ctrl-C outside of a search: there is nothing to keep."""
    with contextlib.suppress(OSError):  # nobody may be reading any more
        os.write(2, b"rdmm: interrupted\n")
    quit_at_once(128 + number)


def _usage_text(error: click.ClickException, words: list[str]) -> str:
    """A usage error as one line; an option that is a setting is shown as one.

    Args:
        words: what was typed.
    """
    text = " ".join(error.format_message().split()).removesuffix(".")
    if isinstance(error, click.NoSuchOption):
        key, _, value = error.option_name.lstrip("-").replace("-", "_").partition("=")
        from rdmm.config.compose import is_setting

        if is_setting(key):
            place = next((k for k, word in enumerate(words) if word.partition("=")[0] == error.option_name), len(words))
            after = [word for word in words[place + 1 : place + 2] if not word.startswith("-")]
            value = words[place].partition("=")[2] if "=" in "".join(words[place : place + 1]) else (after or ["VALUE"])[0]
            return f"{error.option_name} is a setting and no option: write {key}={value}, without dashes"
    context = getattr(error, "ctx", None)
    return f"{text}{'' if text.endswith('?') else ';'} {context.command_path if context else 'rdmm'} --help shows what can be typed"


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of every command that writes files."""
    return click.option("--overwrite", is_flag=True, help="Replace existing files.")(printing_options(command))


def report_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --no-report."""
    text = "Make no report.html and draw no pictures, which saves a few tenths of a second; rdmm report makes them later."
    return click.option("--no-report", "report", is_flag=True, flag_value=False, default=True, help=text)(command)


def allow_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the repeatable option --allow."""
    text = "Package outside rdmm whose classes settings, models and runs may name (docs/extending.md). Repeat it for several."
    return click.option("--allow", multiple=True, metavar="PACKAGE", help=text)(command)


def printing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that every command has."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."),
        click.option("--quiet", is_flag=True, help="Log only warnings on stderr."),
        click.option("--debug", is_flag=True, help="Full log, and the traceback of an error."),
    ):
        command = option(command)
    return command


def prints_result(command: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """Handle --quiet, --debug and --json for a command that returns its result as a dictionary: set up the log, print the result."""

    @functools.wraps(command)
    def run_and_print(*, as_json: bool, quiet: bool, debug: bool, **options: Any) -> None:
        set_log(quiet, debug)
        print_result(command(**options), as_json)

    return run_and_print


def optional_file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add one option for each optional input file of a registration."""
    for given in reversed(COMMAND_LINE_INPUTS):
        command = click.option(given.option, help=given.help, multiple=given.several)(command)
    return command


def transform_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the repeatable option -t."""
    return _transform_option(required=True)(command)


def optional_transform_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the repeatable option -t of a command that can do without."""
    return _transform_option(required=False)(command)


def _transform_option(*, required: bool) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    text = (
        "Transform of any tool whose file tells the tool (docs/formats.md), or a whole run: its folder or prefix. [X,1] is the inverse of"
        " X: of an affine, a warp or a run. Repeat -t for several. For images, the last -t is applied first, as in ANTs."
    )
    return click.option("-t", "--transform", "names", multiple=True, required=required, metavar="FILE", help=text)


def conversion_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the format to write, and the two images, whose grids some formats need."""
    for option in (
        click.option("--fixed", metavar="IMAGE", help="Fixed image: its grid is used for a written warp, and for FSL and Learn2Reg."),
        click.option("--moving", metavar="IMAGE", help="Moving image; FSL, AFNI and Learn2Reg need it."),
        click.option("--to", "form", metavar="FORM", help="itk, fsl, ras (greedy), afni or learn2reg; by default as OUT is named."),
    ):
        command = option(command)
    return command


def source_format_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the format of the transform that is read."""
    text = "itk, fsl, ras (greedy, NiftyReg), afni, learn2reg, spm, niftyreg, elastix, freesurfer or minc; by default found from the file."
    return click.option("--from", "source_form", metavar="FORM", help=text)(command)


def set_log(quiet: bool, debug: bool) -> None:
    """Log rdmm's messages to stderr: info and above, or as --quiet or --debug asks."""
    level = logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s", force=True)
    logging.getLogger("rdmm").setLevel(level)


def progress(quiet: bool) -> contextlib.AbstractContextManager[None]:
    """Show a progress bar if stderr is a terminal; otherwise the log has one line per level."""
    return contextlib.nullcontext() if quiet or not sys.stderr.isatty() else progress_bar()


def _numbers(values: list[Any], between: str = ", ") -> str:
    return between.join(f"{x:.6g}" if isinstance(x, float) else str(x) for x in values)


def _yaml(settings: Mapping[str, Any]) -> str:
    """Settings as YAML, with lists and the innermost settings on one line."""
    from yaml import safe_dump

    styles = ((k, v, None if isinstance(v, Mapping | list) else False) for k, v in settings.items())
    return "".join(safe_dump({k: v}, sort_keys=False, allow_unicode=True, default_flow_style=style) for k, v, style in styles)


def is_debugging() -> bool:
    """Whether --debug was given."""
    return logging.getLogger("rdmm").isEnabledFor(logging.DEBUG)


def split_arguments(arguments: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Split arguments into files and KEY=VALUE settings. An existing file whose name contains = counts as a file."""
    files = [a for a in arguments if "=" not in a or os.path.exists(a)]
    return files, [a for a in arguments if a not in files]


def spaced_setting(arguments: tuple[str, ...]) -> str:
    """The first KEY=VALUE that was typed with spaces around its =, without them; "" if there is none."""
    for before, word, after in zip(("", *arguments), arguments, (*arguments[1:], ""), strict=False):
        if word.startswith("="):
            return f"{before}{word}{after if word == '=' else ''}"
        if word.endswith("=") and after:
            return word + after
    return ""


def print_result(result: dict[str, Any], as_json: bool) -> None:
    """Print a result on stdout, as ``name: value`` lines (settings by name as YAML) or as JSON."""
    if as_json:
        from rdmm.registration.record import nan_to_null

        click.echo(json.dumps(nan_to_null(result), indent=1))
        return
    for key, value in result.items():
        if key == "warnings":  # they are on stderr, too
            continue
        if isinstance(value, list) and value and all(isinstance(x, int | float) for x in value):
            click.echo(f"{key}: {_numbers(value, ' x ' if key == 'shape' else ', ')}")
        elif isinstance(value, list):
            for item in value:
                click.echo(f"{key}: {_numbers(item) if isinstance(item, list) else item}")
        elif isinstance(value, Mapping) and value:
            click.echo(f"{key}:\n{indent(_yaml(value), '  ').rstrip()}")
        else:
            click.echo(f"{key}: {value:.5g}" if isinstance(value, float) else f"{key}: {value}")
