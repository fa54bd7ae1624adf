"""The command line. Heavy modules are imported where they are used: ``rdmm --help`` answers at once."""

from __future__ import annotations

import os
from typing import Any

import click

from rdmm.terminal import Program, common, progress, set_log, show, split_arguments
from rdmm.tools import COMMANDS
from rdmm.types import BESIDE, InputError
from rdmm.version import __version__


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.version_option(__version__)
def main() -> None:
    """Diffeomorphic registration of images with regularizers that differ from region to region (RDMM, LDDMM, SVF).

    \b
    Examples:
      rdmm demo
      rdmm register fixed.nii.gz moving.nii.gz -o out/
      rdmm apply moving.nii.gz -t out/1Warp.nii.gz -t out/0GenericAffine.mat -r fixed.nii.gz -o warped.nii.gz
    """


@main.command(no_args_is_help=True)
@click.argument("arguments", nargs=-1, metavar="[FIXED MOVING] [KEY=VALUE]...")
@click.option("-f", "--fixed", help="Fixed image, instead of the first argument.")
@click.option("-m", "--moving", help="Moving image, instead of the second.")
@click.option("-o", "--out", required=True, help="Prefix of the results, or a folder (ends in /).")
@click.option("--fixed-labels", help="Label map of FIXED, for Dice.")
@click.option("--moving-labels", help="Label map of MOVING: warped, and for Dice.")
@click.option("--fixed-mask", help="Where FIXED counts (> 0).")
@click.option("--moving-mask", help="Where MOVING counts (> 0).")
@click.option("--landmarks", help="CSV of fixed_x..z, moving_x..z in world millimetres (RAS+), for TRE.")
@click.option("--fixed-keypoints", help="CSV without header, voxels of FIXED (Learn2Reg), for TRE.")
@click.option("--moving-keypoints", help="The same points in voxels of MOVING.")
@click.option("--regions", help="Label map of MOVING for a pre-defined regularizer (with initializer=regions).")
@click.option("--weights", help="Model that train.py wrote: its prediction, refined with optimizer=refine.")
@click.option("--initial", help="Transform to start from: warp or affine, fixed -> moving.")
@click.option("--init", type=click.Choice(["auto", "header", "com", "axes"]), help="Start of the affine search.")
@click.option("--nan", type=click.Choice(["error", "zero", "mask"]), help="What to do with NaN and Inf: an error without it.")
@click.option("--volume", type=int, help="Volume of a 4D file.")
@click.option("--strict", is_flag=True, help="Refuse images without s-form and q-form.")
@click.option("--max-folding", type=float, help="Exit 5 if more than this percentage of cells folds.")
@click.option("--device", default="cpu", help="cpu or cuda.")
@click.option("--threads", type=int, help="Threads on CPU.")
@click.option("--seed", type=int, default=0)
@click.option("--dry-run", is_flag=True, help="Check everything, compute nothing.")
@common
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


FURTHER = (*BESIDE, "landmarks", "regions", "initial", "nan", "volume", "strict")


def _register(fixed: str, moving: str, out: str, overrides: list[str], **o: Any) -> int:
    set_log(o["quiet"], o["debug"])
    from rdmm.interruption import interruptible
    from rdmm.jobs import Job

    inputs = {k: o[k] for k in FURTHER}
    settings = {k: o[k] for k in ("init", "weights", "device", "threads", "seed", "max_folding")}
    job = Job(fixed, moving, out, overrides, inputs, **settings)
    config = job.config()
    read = job.read()
    if o["dry_run"]:
        need = job.memory() / 2**30
        show({"fixed": fixed, "moving": moving, "memory_gib": round(need, 2), "config": config}, o["as_json"])
        return 0
    with job.writing(config, overwrite=o["overwrite"]), interruptible() as seen, progress(o["quiet"]):
        result, written = job.run(read, config)
    shown = {k: v for k, v in result.metrics.items() if isinstance(v, float | int)}
    listed = {"seconds": result.result.seconds["total"], "files": [str(p) for p in written]}
    show(result.summary() if o["as_json"] else {**shown, **listed}, o["as_json"])
    if seen:
        return 128 + seen["signal"]
    job.require_unfolded(result.metrics)
    return 0


@main.command(no_args_is_help=True)
@click.argument("pairs")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("-o", "--out", required=True, help="Folder: one folder of results for each pair, a table, failures.json, index.html.")
@click.option("--root", help="Folder that the paths of PAIRS are below; by default its own.")
@click.option("--resume", is_flag=True, help="Skip pairs whose results are there: same settings, inputs and files by checksum.")
@click.option("--shard", metavar="I/N", help="Every N-th pair from the I-th, for N machines that share the folder.")
@click.option("--jobs", type=int, help="Pairs at a time; by default as many as cores and memory allow.")
@click.option("--launcher", type=click.Choice(["local", "submitit"]), default="local", show_default=True)
@click.option("--slurm", multiple=True, metavar="NAME=VALUE", help="Option of sbatch, with --launcher submitit; repeat it.")
@click.option("--weights", help="Model that train.py wrote.")
@click.option("--init", type=click.Choice(["auto", "header", "com", "axes"]), help="Start of the affine search.")
@click.option("--nan", type=click.Choice(["error", "zero", "mask"]), help="What to do with NaN and Inf: an error without it.")
@click.option("--strict", is_flag=True, help="Refuse images without s-form and q-form.")
@click.option("--max-folding", type=float, help="A pair of which more than this percentage of cells folds has failed.")
@click.option("--device", default="cpu", help="cpu or cuda.")
@click.option("--threads", type=int, default=1, show_default=True, help="Of each pair.")
@click.option("--seed", type=int, default=0)
@click.option("--dry-run", is_flag=True, help="Check the list and the settings, estimate the memory, compute nothing.")
@common
def batch(pairs: str, overrides: tuple[str, ...], out: str, **options: Any) -> int:
    """Register the pairs of a CSV (columns fixed, moving[, id, fixed_labels, ...]) or of a Learn2Reg JSON.

    Each pair runs on its own: one that fails is listed in failures.json, and the exit code is 4.

    \b
    Examples:
      rdmm batch pairs.csv -o out/ --jobs 2
      rdmm batch pairs.csv -o out/ --resume dynamics=lddmm
      rdmm batch dataset.json -o out/ --shard 1/4 --launcher submitit --slurm partition=cpu
    """
    wrong = [a for a in overrides if "=" not in a]
    if wrong:
        raise click.UsageError(f"settings are KEY=VALUE; got {wrong[0]!r}")
    set_log(options["quiet"], options["debug"])
    return _batch(pairs, out, list(overrides), **options)


def _batch(pairs: str, out: str, overrides: list[str], **o: Any) -> int:
    from rdmm import batch as batches
    from rdmm.interruption import interruptible
    from rdmm.jobs import Job
    from rdmm.launchers import Launcher

    settings = {k: o[k] for k in ("init", "weights", "device", "threads", "seed", "max_folding")}
    job = Job("", "", "", overrides, {"nan": o["nan"], "strict": o["strict"]}, **settings)
    whole = batches.Batch(pairs, out, job, o["root"], batches.parse_shard(o["shard"]))
    jobs = whole.jobs()
    launcher: Launcher = batches.launcher(o["launcher"], jobs, o["jobs"], o["slurm"])
    if o["dry_run"]:
        whole.check(jobs)
        show({"pairs": len(jobs), "launcher": str(launcher)}, o["as_json"])
        return 0
    with interruptible("no more pairs are begun, those that run write their best result (once more: quit at once)") as seen:
        rows = {}
        for id, row in whole.run(launcher, resume=o["resume"], overwrite=o["overwrite"]):
            rows[id] = row
            if not o["quiet"]:
                click.echo(f"[{len(rows)}/{len(jobs)}] {batches.brief(id, row)}", err=True)
    failed = [id for id, row in rows.items() if batches.failed(row)]
    listed = [{"id": id, **rows[id]} for id in jobs]
    if o["as_json"]:
        show({"pairs": len(jobs), "done": len(rows) - len(failed), "failed": failed, "rows": listed}, True)
    else:
        click.echo(batches.table(listed))
        click.echo(f"{len(rows) - len(failed)} of {len(jobs)} pairs done; {whole.path('table.csv')}")
    if seen:
        return 128 + seen["signal"]
    return 4 if failed else 0


@main.command()
@click.argument("name", required=False, default="shapes")
@click.option("-o", "--out", default="rdmm_demo/", show_default=True)
@click.option("--seed", type=int, default=2, show_default=True, help="Of the pair of shapes.")
@common
def demo(name: str, out: str, seed: int, **o: Any) -> int:
    """Make the paper's synthetic shapes, register them with RDMM, write a report.

    \b
    Examples:
      rdmm demo
      rdmm demo --seed 3 -o demo3/
      rdmm demo shapes --overwrite
    """
    if name != "shapes":
        from rdmm.types import nearest

        raise InputError(f"there is no demo {name!r}{nearest(name, ['shapes'])}; there is: shapes")
    set_log(o["quiet"], o["debug"])
    from rdmm import commands

    files = commands.make_demo(out, seed, overwrite=o["overwrite"])
    options = {"fixed_labels": files["fixed_labels"], "moving_labels": files["moving_labels"], "regions": files["regions"]}
    rest = dict.fromkeys((*FURTHER, "weights", "init", "threads", "max_folding"))
    given = {**o, **rest, **options, "device": "cpu", "seed": 0, "dry_run": False, "overwrite": True}
    code = _register(files["fixed"], files["moving"], out, ["experiment=synthetic_predefined"], **given)
    click.echo(f"report: {os.path.join(out, 'report.html')}")
    return code


for command in COMMANDS:
    main.add_command(command)
