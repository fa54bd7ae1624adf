"""``rdmm register``."""

from __future__ import annotations

import os
from typing import Any

import click

from rdmm.cli.terminal import common_options, optional_file_options, progress_bar, set_log, show, split_arguments
from rdmm.data.given import COMMAND_LINE_INPUTS, READING_OPTIONS
from rdmm.types import InputError, nearest


@click.command(no_args_is_help=True)
@click.argument("arguments", nargs=-1, metavar="[FIXED MOVING] [KEY=VALUE]...")
@click.option("-f", "--fixed", help="Fixed image, instead of the first argument.")
@click.option("-m", "--moving", help="Moving image, instead of the second.")
@click.option("-o", "--out", required=True, help="Prefix of the results, or a folder (ends in /).")
@optional_file_options
@click.option("--weights", help="Model that train.py wrote: its prediction, refined with optimizer=refine.")
@click.option("--init", type=click.Choice(["auto", "header", "com", "axes"]), help="Start of the affine search.")
@click.option("--nan", type=click.Choice(["error", "zero", "mask"]), help="What to do with NaN and Inf: an error without it.")
@click.option("--volume", type=int, help="Volume of a 4D file.")
@click.option("--strict", is_flag=True, help="Refuse images without s-form and q-form.")
@click.option("--max-folding", type=float, help="Exit 5 if more than this percentage of cells folds.")
@click.option("--device", default="cpu", help="cpu or cuda.")
@click.option("--threads", type=int, help="Threads on CPU.")
@click.option("--seed", type=int, default=0)
@click.option("--dry-run", is_flag=True, help="Check everything, compute nothing.")
@common_options
def register(arguments: tuple[str, ...], fixed: str | None, moving: str | None, out: str, **options: Any) -> int:
    """Register MOVING to FIXED: two images, or two shapes (.vtk, .ply: points, curves, surfaces).

    \b
    Examples:
      rdmm register fixed.nii.gz moving.nii.gz -o out/
      rdmm register fixed.vtk moving.vtk -o out/ similarity.reach=0.1
      rdmm register -f fixed.nii.gz -m moving.nii.gz -o out/run1_ --weights model.safetensors --threads 2
    """
    files, overrides = split_arguments(arguments)
    files = [*([fixed] if fixed else []), *([moving] if moving else []), *files] if not (moving and not fixed) else [*files, moving]
    if len(files) != 2:
        raise click.UsageError(f"two images are wanted, FIXED and MOVING; got {len(files)}: {' '.join(files)}")
    return _register(files[0], files[1], out, overrides, **options)


FURTHER = (*(g.name for g in COMMAND_LINE_INPUTS), *READING_OPTIONS)


def _register(fixed: str, moving: str, out: str, overrides: list[str], **o: Any) -> int:
    set_log(o["quiet"], o["debug"])
    from rdmm.runtime.interrupt import interruptible
    from rdmm.workflows.job import Job

    inputs = {k: o[k] for k in FURTHER}
    options = {k: o[k] for k in ("init", "weights", "device", "threads", "seed", "max_folding")}
    job = Job(fixed, moving, out, overrides, inputs, **options)
    settings = job.settings()
    read = job.read()
    if o["dry_run"]:
        need = job.memory() / 2**30
        show({"fixed": fixed, "moving": moving, "memory_gib": round(need, 2), "config": settings.config}, o["as_json"])
        return 0
    with job.reserve_outputs(settings, overwrite=o["overwrite"]), interruptible() as seen, progress_bar(o["quiet"]):
        result, written, summary = job.run(read, settings)
    shown = {k: v for k, v in result.metrics.items() if isinstance(v, float | int)}
    listed = {"seconds": result.result.seconds["total"], "files": [str(p) for p in written]}
    show(summary if o["as_json"] else {**shown, **listed}, o["as_json"])
    if seen:
        return 128 + seen["signal"]
    job.check_folding(result.metrics)
    return 0


@click.command()
@click.argument("name", required=False, default="shapes")
@click.option("-o", "--out", default="rdmm_demo/", show_default=True)
@click.option("--seed", type=int, default=2, show_default=True, help="Of the pair of shapes.")
@common_options
def demo(name: str, out: str, seed: int, **o: Any) -> int:
    """Make the paper's synthetic shapes, register them with RDMM, write a report.

    \b
    Examples:
      rdmm demo
      rdmm demo --seed 3 -o demo3/
      rdmm demo shapes --overwrite
    """
    if name != "shapes":
        raise InputError(f"there is no demo {name!r}{nearest(name, ['shapes'])}; there is: shapes")
    set_log(o["quiet"], o["debug"])
    from rdmm.workflows import demo as commands

    files = commands.make_demo(out, seed, overwrite=o["overwrite"])
    options = {"fixed_labels": files["fixed_labels"], "moving_labels": files["moving_labels"], "regions": files["regions"]}
    rest = dict.fromkeys((*FURTHER, "weights", "init", "threads", "max_folding"))
    given = {**o, **rest, **options, "device": "cpu", "seed": 0, "dry_run": False, "overwrite": True}
    code = _register(files["fixed"], files["moving"], out, ["experiment=synthetic_predefined"], **given)
    click.echo(f"report: {os.path.join(out, 'report.html')}")
    return code
