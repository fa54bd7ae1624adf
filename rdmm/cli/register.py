"""``rdmm register`` and ``rdmm demo``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from rdmm.cli.images import WithWeights, also_option, guide_option
from rdmm.cli.numbers import PERCENT, SEED, THREADS, VOLUME
from rdmm.cli.terminal import (
    allow_option,
    common_options,
    is_debugging,
    optional_file_options,
    print_result,
    progress,
    report_option,
    set_log,
    spaced_setting,
    split_arguments,
)
from rdmm.data.given import AFFINE_STARTS, COMMAND_LINE_INPUTS, READING_OPTIONS, TRANSFORM_HELP, TRANSFORMS, Also
from rdmm.types import DivergenceError, InputError, nearest

if TYPE_CHECKING:
    from rdmm.workflows.job import Job

INPUT_OPTIONS = ("also", *(g.name for g in COMMAND_LINE_INPUTS), *READING_OPTIONS)
JOB_OPTIONS = ("transform", "guide_labels", "init", "weights", "device", "threads", "seed", "features", "max_folding", "report", "allow")


@click.command(cls=WithWeights, no_args_is_help=True)
@click.argument("arguments", nargs=-1, metavar="[FIXED MOVING] [KEY=VALUE]...")
@click.option("-f", "--fixed", help="Fixed image, instead of the first argument.")
@click.option("-m", "--moving", help="Moving image, instead of the second argument.")
@click.option("-o", "--out", required=True, help="Prefix of the result files, or a folder (ends in /).")
@also_option
@optional_file_options
@guide_option
@click.option("--weights", help="Model that train.py wrote. Its prediction is the result; optimizer=refine improves it.")
@click.option("--transform", type=click.Choice(TRANSFORMS), help=TRANSFORM_HELP)
@click.option("--init", type=click.Choice(AFFINE_STARTS), help="Start of the affine search.")
@click.option("--nan", type=click.Choice(["error", "zero", "mask"]), help="How to treat NaN and Inf; by default they are an error.")
@click.option("--volume", type=VOLUME, help="Which volume of a 4D file to use.")
@click.option("--strict", is_flag=True, help="Refuse images without s-form and q-form.")
@click.option("--features", help="Point data of two shapes that similarity.cost=features compares, by name.")
@click.option("--max-folding", type=PERCENT, help="Exit with code 5 if more than this percentage of cells folds.")
@click.option("--device", default="cpu", help="cpu or cuda.")
@click.option("--threads", type=THREADS, help="Number of CPU threads.")
@click.option("--seed", type=SEED, default=0)
@click.option(
    "--dry-run", is_flag=True, help="Check everything, compute nothing; show the settings that differ from the defaults (--json: all)."
)
@allow_option
@report_option
@common_options
def register(arguments: tuple[str, ...], fixed: str | None, moving: str | None, out: str, **options: Any) -> int:
    """Register MOVING to FIXED: two images, or two shapes (points, curves, fibers, surfaces: .vtk, .vtp, .ply, .stl, .obj, .gii,
    .trk, .tck).

    \b
    Examples:
      rdmm register fixed.nii.gz moving.nii.gz -o out/
      rdmm register fixed.nii.gz moving.nii.gz -o out/ --transform rigid
      rdmm register fixed.vtk moving.vtk -o out/ similarity.reach=0.1
      rdmm register -f fixed.nii.gz -m moving.nii.gz -o out/run1_ --weights model.safetensors --threads 2
    """
    files, overrides = split_arguments(arguments)
    if fixed:
        files.insert(0, fixed)
    if moving:
        files.insert(1, moving)
    if len(files) != 2:
        spaced = spaced_setting(arguments)
        cure = f"; settings have no spaces around =: write {spaced}" if spaced else "; settings are KEY=VALUE"
        raise click.UsageError(f"give two images, FIXED and MOVING; got {len(files)}: {' '.join(files)}{cure}")
    set_log(options["quiet"], options["debug"])
    from rdmm.workflows.job import Job

    inputs = {k: options[k] for k in INPUT_OPTIONS}
    inputs["also"] = [Also(*given) for given in options["also"]]
    job = Job(files[0], files[1], out, overrides, inputs, **{k: options[k] for k in JOB_OPTIONS})
    return run(job, **{k: options[k] for k in ("dry_run", "overwrite", "quiet", "as_json")})


def run(job: Job, *, overwrite: bool, quiet: bool, as_json: bool, dry_run: bool = False) -> int:
    """Run a registration, or only check it, and print its result. Returns the exit code; 128 + the signal's number if the search was
    interrupted. A signal that comes later, while files are written, changes nothing."""
    from rdmm.runtime.interrupt import interruptible
    from rdmm.workflows.compilation import compile_ahead

    if dry_run:
        settings = job.check(overwrite=overwrite)
        print_result(job.checked_facts(settings, whole=as_json or is_debugging()), as_json)
        if not as_json:
            click.echo("nothing was computed or written: inputs, settings and places of the results are fine")
        return 0
    settings = job.settings()
    inputs = job.read()
    if not job.for_shapes:
        compile_ahead()
    with job.reserve_outputs(settings, overwrite=overwrite), interruptible() as seen, progress(quiet):
        finished, written, summary = job.run(inputs, settings)
    if as_json:
        print_result(summary, as_json)
    else:
        numbers = {k: v for k, v in finished.metrics.items() if isinstance(v, float | int)}
        files = [str(p) for p in written]
        print_result({**numbers, "seconds": finished.result.seconds["total"], "files": files}, as_json)
        click.echo(f"verdict: {finished.verdict}")
    if finished.status == "interrupted":
        return 128 + seen["signal"]
    if seen:
        click.echo("rdmm: the search had ended before the interruption: the result is complete", err=True)
    job.check_folding(finished.metrics)
    return DivergenceError.exit_code if finished.verdict.grade == "failed" else 0


@click.command()
@click.argument("name", required=False, default="shapes")
@click.option("-o", "--out", default="rdmm_demo/", show_default=True)
@click.option("--seed", type=SEED, default=2, show_default=True, help="Seed of the random shapes.")
@common_options
def demo(name: str, out: str, seed: int, overwrite: bool, as_json: bool, quiet: bool, debug: bool) -> int:
    """Make the paper's synthetic shapes, register them with RDMM, write a report.

    \b
    Examples:
      rdmm demo
      rdmm demo --seed 3 -o demo3/
      rdmm demo shapes --overwrite
    """
    if name != "shapes":
        raise InputError(f"unknown demo {name!r}{nearest(name, ['shapes'])}; the only one is: shapes")
    set_log(quiet, debug)
    from rdmm.workflows.demo import make_demo
    from rdmm.workflows.job import Job

    files = make_demo(out, seed, overwrite=overwrite)
    labels = {k: files[k] for k in ("fixed_labels", "moving_labels", "regions")}
    job = Job(files["fixed"], files["moving"], out, ["experiment=synthetic_predefined"], labels)
    page = os.path.join(out, "report.html")
    click.echo(f"the registration takes about half a minute; its report will be {page}", err=as_json)
    return run(job, overwrite=True, quiet=quiet, as_json=as_json)
