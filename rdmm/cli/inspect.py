"""Commands that look at files and runs."""

from __future__ import annotations

from typing import Any

import click

from rdmm.cli.terminal import common_options, set_log, show


@click.command(no_args_is_help=True)
@click.argument("file")
@common_options
def info(file: str, **o: Any) -> None:
    """What a file holds: image, warp, affine, initial conditions, trained model, run.

    \b
    Examples:
      rdmm info fixed.nii.gz
      rdmm info out/1Warp.nii.gz
      rdmm info out/0GenericAffine.mat --json
    """
    set_log(o["quiet"], o["debug"])
    from rdmm.workflows import inspect as commands

    show(commands.info(file), o["as_json"])


@click.command(no_args_is_help=True)
@click.argument("run")
@common_options
def report(run: str, overwrite: bool, **o: Any) -> None:
    """Make report.html of a run (its folder, prefix or run.json) anew, or index.html of a batch's folder.

    \b
    Examples:
      rdmm report out/ --overwrite
      rdmm report out/run1_ --overwrite
      rdmm report study/ --overwrite
    """
    set_log(o["quiet"], o["debug"])
    from rdmm.workflows import reports as runs

    show({"written": str(runs.write_report(run, overwrite=overwrite))}, o["as_json"])
