"""The command line. Heavy modules are imported where they are used: ``rdmm --help`` answers at once."""

from __future__ import annotations

import os
from typing import Any

import click

from rdmm.terminal import Program, common, interruptible, progress, set_log, show, split_arguments, transforms
from rdmm.types import ConfigError, DivergenceError, InputError
from rdmm.version import __version__

DIRECTION = "Warps pull back: they take a fixed point to the moving point that belongs there, y = A(x + u(x)), RAS+ world millimetres."


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
@click.option("--regions", help="Label map of MOVING for a pre-defined regularizer (with initializer=regions).")
@click.option("--weights", help="Model that train.py wrote: its prediction, refined with optimizer=refine.")
@click.option("--initial", help="Transform to start from: warp or affine, fixed -> moving.")
@click.option("--init", type=click.Choice(["auto", "header", "com", "axes"]), help="Start of the affine search.")
@click.option("--nan", type=click.Choice(["error", "zero", "mask"]), default="error", help="What to do with NaN and Inf.")
@click.option("--volume", type=int, help="Volume of a 4D file.")
@click.option("--strict", is_flag=True, help="Refuse images without s-form and q-form.")
@click.option("--max-folding", type=float, help="Exit 5 if more than this percentage of cells folds.")
@click.option("--device", default="cpu", help="cpu or cuda.")
@click.option("--threads", type=int, help="Threads on CPU.")
@click.option("--seed", type=int, default=0)
@click.option("--dry-run", is_flag=True, help="Check everything, compute nothing.")
@common
def register(arguments: tuple[str, ...], fixed: str | None, moving: str | None, out: str, max_folding: float | None, **options: Any) -> int:
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
    if any(name.lower().endswith((".vtk", ".ply")) for name in files):
        return _register_shapes(files[0], files[1], out, overrides, max_folding, **options)
    return _register(files[0], files[1], out, overrides, max_folding, **options)


OF_IMAGES = ("fixed_labels", "moving_labels", "fixed_mask", "moving_mask", "regions", "weights", "initial", "volume", "strict")


def _register_shapes(fixed: str, moving: str, out: str, overrides: list[str], max_folding: float | None, **o: Any) -> int:
    set_log(o["quiet"], o["debug"])
    given = [k for k in OF_IMAGES if o[k]] + (["max_folding"] if max_folding is not None else [])
    if given:
        raise ConfigError(f"--{given[0].replace('_', '-')} is for images; {fixed} and {moving} are registered as shapes")
    from rdmm import resources, shapes
    from rdmm.config import build, compose
    from rdmm.io.files import Outputs

    if o["init"] is not None:
        overrides = [*overrides, f"affine.init={o['init']}"]
    config = compose(overrides, "shapes")
    build(config["stages"], "stages")
    resources.chosen_device(o["device"])
    resources.set_threads(o["threads"])
    inputs = shapes.read_shapes(fixed, moving, o["landmarks"])
    if o["dry_run"]:
        show({"fixed": fixed, "moving": moving, "config": config}, o["as_json"])
        return 0
    Outputs.prepare(out, [*shapes.RESULTS, *shapes.OPTIONAL], overwrite=o["overwrite"])
    with interruptible() as seen, progress(o["quiet"]):
        result = shapes.run(inputs, config, device=o["device"], seed=o["seed"])
        written = result.save(out, overwrite=True)
    listed = {"seconds": result.result.seconds["total"], "files": [str(p) for p in written]}
    show(result.summary() if o["as_json"] else {**result.metrics, **listed}, o["as_json"])
    return 128 + seen["signal"] if seen else 0


def _register(fixed: str, moving: str, out: str, overrides: list[str], max_folding: float | None, **o: Any) -> int:
    set_log(o["quiet"], o["debug"])
    from rdmm import registration, resources
    from rdmm.config import build, compose, quoted
    from rdmm.io.files import Outputs

    if o["init"] is not None:
        overrides = [*overrides, f"affine.init={o['init']}"]
    if o["weights"] is not None:
        overrides = [*overrides, f"weights={quoted(o['weights'])}"]
    config = compose(overrides)
    build(config["stages"], "stages")
    build(config["intensity"], "intensity")
    output = build(config["output"], "output")
    resources.chosen_device(o["device"])
    resources.set_threads(o["threads"])
    names = ("fixed_labels", "moving_labels", "fixed_mask", "moving_mask", "landmarks", "regions", "initial", "nan", "volume", "strict")
    inputs = registration.read_inputs(fixed, moving, **{n: o[n] for n in names}, require_overlap=o["init"] != "com")
    if o["dry_run"]:
        need = resources.check_memory([fixed, moving]) / 2**30
        show({"fixed": fixed, "moving": moving, "memory_gib": round(need, 2), "config": config}, o["as_json"])
        return 0
    Outputs.prepare(out, registration.file_names(output), overwrite=o["overwrite"])
    with interruptible() as seen, progress(o["quiet"]):
        result = registration.run(inputs, config, device=o["device"], seed=o["seed"])
        written = result.save(out, overwrite=True)
    shown = {k: v for k, v in result.metrics.items() if isinstance(v, float | int)}
    show(
        result.summary() if o["as_json"] else {**shown, "seconds": result.result.seconds["total"], "files": [str(p) for p in written]},
        o["as_json"],
    )
    if seen:
        return 128 + seen["signal"]
    folded = result.metrics["folded_cells_percent"]
    if max_folding is not None and folded > max_folding:
        raise DivergenceError(f"{folded:.3g} % of the cells fold, more than --max-folding {max_folding:g}; the result is written")
    return 0


@main.command(no_args_is_help=True, epilog=DIRECTION)
@click.argument("image")
@transforms
@click.option("-r", "--reference", required=True, help="Image whose grid the result gets.")
@click.option("-o", "--out", required=True)
@click.option("--labels", is_flag=True, help="Nearest neighbour, whole numbers.")
@click.option("--invert", is_flag=True, help="Apply the inverse of the whole list, found by iteration where it holds a warp.")
@common
def apply(image: str, names: tuple[str, ...], reference: str, out: str, labels: bool, invert: bool, overwrite: bool, **o: Any) -> None:
    """Resample IMAGE onto the grid of a reference through transforms.

    \b
    Examples:
      rdmm apply moving.nii.gz -t out/1Warp.nii.gz -t out/0GenericAffine.mat -r fixed.nii.gz -o warped.nii.gz
      rdmm apply labels.nii.gz --labels -t out/1Warp.nii.gz -t out/0GenericAffine.mat -r fixed.nii.gz -o warped_labels.nii.gz
      rdmm apply fixed.nii.gz -t [out/0GenericAffine.mat,1] -t out/1InverseWarp.nii.gz -r moving.nii.gz -o inverse_warped.nii.gz
    """
    set_log(o["quiet"], o["debug"])
    from rdmm import commands

    show(commands.apply(image, list(names), reference, out, labels=labels, invert=invert, overwrite=overwrite), o["as_json"])


@main.command(no_args_is_help=True, epilog=DIRECTION)
@click.argument("csv")
@transforms
@click.option("-o", "--out", required=True)
@common
def points(csv: str, names: tuple[str, ...], out: str, overwrite: bool, **o: Any) -> None:
    """Map points (columns x, y[, z]) of the fixed image into the moving one; they go through the first -t first.

    \b
    Examples:
      rdmm points fixed_points.csv -t out/1Warp.nii.gz -t out/0GenericAffine.mat -o moving_points.csv
      rdmm points moving_points.csv -t [out/0GenericAffine.mat,1] -t out/1InverseWarp.nii.gz -o fixed_points.csv
      rdmm points p.csv -t affine.mat -o q.csv
    """
    set_log(o["quiet"], o["debug"])
    from rdmm import commands

    show(commands.points(csv, list(names), out, overwrite=overwrite), o["as_json"])


@main.command(no_args_is_help=True, epilog=DIRECTION)
@click.argument("warp")
@click.option("-o", "--out", required=True)
@common
def invert(warp: str, out: str, overwrite: bool, **o: Any) -> None:
    """Invert a warp on its own grid, by iteration.

    \b
    Examples:
      rdmm invert out/1Warp.nii.gz -o inverse.nii.gz
      rdmm invert warp.nii.gz -o inverse.nii.gz --overwrite
      rdmm invert warp.nii.gz -o inverse.nii.gz --json
    """
    set_log(o["quiet"], o["debug"])
    from rdmm import commands

    show(commands.invert_warp(warp, out, overwrite=overwrite), o["as_json"])


@main.command(no_args_is_help=True, epilog=DIRECTION)
@click.argument("warp")
@click.option("-o", "--out", required=True)
@click.option("--log", "take_log", is_flag=True, help="The logarithm, with determinants clamped at 0.001.")
@common
def jacobian(warp: str, out: str, take_log: bool, overwrite: bool, **o: Any) -> None:
    """Jacobian determinant of a warp, by central differences; folds on stdout.

    \b
    Examples:
      rdmm jacobian out/1Warp.nii.gz -o jacobian.nii.gz
      rdmm jacobian out/1Warp.nii.gz -o log_jacobian.nii.gz --log
      rdmm jacobian warp.nii.gz -o jacobian.nii.gz --json
    """
    set_log(o["quiet"], o["debug"])
    from rdmm import commands

    show(commands.jacobian(warp, out, take_log=take_log, overwrite=overwrite), o["as_json"])


@main.command(no_args_is_help=True)
@click.argument("images", nargs=-1)
@click.option("-o", "--out", required=True, help="Barycenter, on the grid of the first image.")
@click.option("--weights", help="One number an image, with commas between; the same for all where it is not given.")
@click.option("--labels", is_flag=True, help="Label maps: the barycenter of each label; a voxel gets the largest.")
@click.option("--blur", type=float, default=0.01, show_default=True, help="sqrt(eps), in units of the longest edge.")
@common
def barycenter(images: tuple[str, ...], out: str, weights: str | None, labels: bool, blur: float, overwrite: bool, **o: Any) -> None:
    """Wasserstein barycenter of density images (intensities >= 0), or of label maps.

    \b
    Examples:
      rdmm barycenter a.nii.gz b.nii.gz c.nii.gz -o mean.nii.gz
      rdmm barycenter a.nii.gz b.nii.gz -o quarter.nii.gz --weights .75,.25
      rdmm barycenter labels_1.nii.gz labels_2.nii.gz -o mean_labels.nii.gz --labels
    """
    set_log(o["quiet"], o["debug"])
    try:
        shares = [float(w) for w in weights.split(",")] if weights else []
    except ValueError:
        raise ConfigError(f"--weights is a list of numbers with commas between, e.g. .5,.5; not {weights!r}") from None
    if shares and len(shares) != len(images):
        raise ConfigError(f"{len(images)} images but {len(shares)} weights; give one weight an image")
    from rdmm import commands

    show(commands.barycenter(list(images), out, weights=shares, labels=labels, blur=blur, overwrite=overwrite), o["as_json"])


@main.command(no_args_is_help=True)
@click.argument("fixed")
@click.argument("moving")
@click.argument("labels")
@click.option("-o", "--out", required=True, help="Labels on the grid of FIXED, where it is above 0.")
@click.option("--blur", type=float, default=0.01, show_default=True, help="sqrt(eps), in units of the longest edge.")
@click.option("--reach", type=float, help="sqrt(rho): how far mass is moved rather than created; all of it where it is not given.")
@common
def transfer(fixed: str, moving: str, labels: str, out: str, blur: float, reach: float | None, overwrite: bool, **o: Any) -> None:
    """Carry LABELS of the density MOVING to the density FIXED by the transport plan between them.

    \b
    Examples:
      rdmm transfer fixed_mask.nii.gz moving_mask.nii.gz moving_labels.nii.gz -o labels.nii.gz
      rdmm transfer fixed.nii.gz moving.nii.gz moving_labels.nii.gz -o labels.nii.gz --blur .02
      rdmm transfer fixed.nii.gz moving.nii.gz moving_labels.nii.gz -o labels.nii.gz --reach .1
    """
    set_log(o["quiet"], o["debug"])
    from rdmm import commands

    show(commands.transfer(fixed, moving, labels, out, blur=blur, reach=reach, overwrite=overwrite), o["as_json"])


@main.command(no_args_is_help=True)
@click.option("--fixed-labels", help="Label map of the fixed image.")
@click.option("--moving-labels", help="Label map of the moving image.")
@transforms
@click.option("--landmarks", help="CSV of fixed_x..z, moving_x..z in world millimetres (RAS+).")
@common
def evaluate(fixed_labels: str | None, moving_labels: str | None, names: tuple[str, ...], landmarks: str | None, **o: Any) -> None:
    """Dice, landmark error, folds of transforms made by any tool.

    \b
    Examples:
      rdmm evaluate --fixed-labels f.nii.gz --moving-labels m.nii.gz -t out/1Warp.nii.gz -t out/0GenericAffine.mat
      rdmm evaluate -t out/1Warp.nii.gz -t out/0GenericAffine.mat --landmarks points.csv
      rdmm evaluate -t out/1Warp.nii.gz --json
    """
    set_log(o["quiet"], o["debug"])
    if (fixed_labels is None) != (moving_labels is None):
        raise ConfigError("give both --fixed-labels and --moving-labels, or neither")
    from rdmm import commands

    show(commands.evaluate(list(names), fixed_labels, moving_labels, landmarks), o["as_json"])


@main.command(no_args_is_help=True)
@click.argument("file")
@common
def info(file: str, **o: Any) -> None:
    """What a file holds: image, warp, affine, initial conditions, trained model, run.

    \b
    Examples:
      rdmm info fixed.nii.gz
      rdmm info out/1Warp.nii.gz
      rdmm info out/0GenericAffine.mat --json
    """
    set_log(o["quiet"], o["debug"])
    from rdmm import commands

    show(commands.info(file), o["as_json"])


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
    rest = dict.fromkeys(("fixed_mask", "moving_mask", "landmarks", "weights", "initial", "volume", "init", "threads"))
    given = {**o, **options, **rest, "nan": "error", "strict": False, "device": "cpu", "seed": 0, "dry_run": False, "overwrite": True}
    code = _register(files["fixed"], files["moving"], out, ["experiment=synthetic_predefined"], None, **given)
    click.echo(f"report: {os.path.join(out, 'report.html')}")
    return code
