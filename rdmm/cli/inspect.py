"""``rdmm info`` and ``rdmm report``."""

from __future__ import annotations

from typing import Any

import click

from rdmm.cli.terminal import allow_option, common_options, printing_options, prints_result


@click.command(no_args_is_help=True)
@click.argument("file")
@allow_option
@printing_options
@prints_result
def info(file: str, allow: tuple[str, ...]) -> dict[str, Any]:
    """Describe a file: image, transform of any tool, mesh, list of points or pairs, initial conditions, trained model or run; or the
    folder of a run. With --allow, the classes that a model needs from outside rdmm are looked up.

    \b
    Examples:
      rdmm info fixed.nii.gz
      rdmm info out/1Warp.nii.gz
      rdmm info out/ --json
    """
    from rdmm.config.plugins import allowing
    from rdmm.workflows.inspect import info as describe

    with allowing(allow):
        return describe(file)


@click.command(no_args_is_help=True)
@click.argument("run")
@allow_option
@common_options
@prints_result
def report(run: str, overwrite: bool, allow: tuple[str, ...]) -> dict[str, Any]:
    """Write report.html of a run again (give its folder, prefix or run.json), or index.html of a batch (give its folder).

    \b
    Examples:
      rdmm report out/ --overwrite
      rdmm report out/run1_ --overwrite
      rdmm report study/ --overwrite
    """
    from rdmm.config.plugins import allowing
    from rdmm.workflows.reports import reported_facts, write_report

    with allowing(allow):
        page = write_report(run, overwrite=overwrite)
    return {"written": str(page), **reported_facts(page)}
