"""Commands on transforms."""

from __future__ import annotations

from typing import Any

import click

from rdmm.cli.terminal import common_options, conversion_options, set_log, show, source_format_option, transform_option
from rdmm.types import ConfigError

DIRECTION = "Warps pull back: they take a fixed point to the moving point that belongs there, y = A(x + u(x)), RAS+ world millimetres."


@click.command(no_args_is_help=True, epilog=DIRECTION)
@click.argument("image")
@transform_option
@click.option("-r", "--reference", required=True, help="Image whose grid the result gets.")
@click.option("-o", "--out", required=True)
@click.option("--labels", is_flag=True, help="Nearest neighbour, whole numbers.")
@click.option("--invert", is_flag=True, help="Apply the inverse of the whole list, found by iteration where it holds a warp.")
@common_options
def apply(image: str, names: tuple[str, ...], reference: str, out: str, labels: bool, invert: bool, overwrite: bool, **o: Any) -> None:
    """Resample IMAGE onto the grid of a reference through transforms.

    \b
    Examples:
      rdmm apply moving.nii.gz -t out/1Warp.nii.gz -t out/0GenericAffine.mat -r fixed.nii.gz -o warped.nii.gz
      rdmm apply labels.nii.gz --labels -t out/1Warp.nii.gz -t out/0GenericAffine.mat -r fixed.nii.gz -o warped_labels.nii.gz
      rdmm apply fixed.nii.gz -t [out/0GenericAffine.mat,1] -t out/1InverseWarp.nii.gz -r moving.nii.gz -o inverse_warped.nii.gz
    """
    set_log(o["quiet"], o["debug"])
    from rdmm.workflows import transforms as commands

    show(commands.apply(image, list(names), reference, out, labels=labels, invert=invert, overwrite=overwrite), o["as_json"])


@click.command(no_args_is_help=True, epilog=DIRECTION)
@click.argument("csv")
@transform_option
@click.option("-o", "--out", required=True)
@common_options
def points(csv: str, names: tuple[str, ...], out: str, overwrite: bool, **o: Any) -> None:
    """Map points (columns x, y[, z]) of the fixed image into the moving one; they go through the first -t first.

    \b
    Examples:
      rdmm points fixed_points.csv -t out/1Warp.nii.gz -t out/0GenericAffine.mat -o moving_points.csv
      rdmm points moving_points.csv -t [out/0GenericAffine.mat,1] -t out/1InverseWarp.nii.gz -o fixed_points.csv
      rdmm points p.csv -t affine.mat -o q.csv
    """
    set_log(o["quiet"], o["debug"])
    from rdmm.workflows import transforms as commands

    show(commands.points(csv, list(names), out, overwrite=overwrite), o["as_json"])


@click.command(no_args_is_help=True, epilog=DIRECTION)
@click.argument("transform")
@click.option("-o", "--out", required=True)
@source_format_option
@conversion_options
@common_options
def invert(transform: str, out: str, as_json: bool, quiet: bool, debug: bool, **options: Any) -> None:
    """Invert a transform: an affine exactly, a warp on its own grid by iteration.

    \b
    Examples:
      rdmm invert out/1Warp.nii.gz -o inverse.nii.gz
      rdmm invert Composite.h5 -o inverse.nii.gz --fixed fixed.nii.gz
      rdmm invert flirt.mat -o inverse.mat --fixed fixed.nii.gz --moving moving.nii.gz --to fsl
    """
    set_log(quiet, debug)
    from rdmm.workflows import transforms as commands

    show(commands.invert_transform(transform, out, **options), as_json)


@click.command(no_args_is_help=True, epilog=DIRECTION)
@click.argument("source")
@click.argument("out")
@source_format_option
@conversion_options
@common_options
def convert(source: str, out: str, as_json: bool, quiet: bool, debug: bool, **options: Any) -> None:
    """Convert a transform between ITK/ANTs (.nii.gz, .mat, .txt, .tfm, .h5), FSL (.mat, .nii.gz), AFNI (.aff12.1D, .nii.gz) and
    Learn2Reg (.npz, disp_*.nii.gz).

    \b
    Examples:
      rdmm convert Composite.h5 warp.nii.gz --fixed fixed.nii.gz
      rdmm convert out/1Warp.nii.gz fnirt.nii.gz --to fsl --fixed fixed.nii.gz --moving moving.nii.gz
      rdmm convert out/CompositeWarp.nii.gz disp_0001_0002.npz --fixed fixed.nii.gz --moving moving.nii.gz
    """
    set_log(quiet, debug)
    from rdmm.workflows import transforms as commands

    show(commands.convert(source, out, **options), as_json)


@click.command(no_args_is_help=True, epilog=DIRECTION)
@transform_option
@click.option("-o", "--out", required=True)
@conversion_options
@common_options
def compose(names: tuple[str, ...], out: str, as_json: bool, quiet: bool, debug: bool, **options: Any) -> None:
    """Make one transform of several: affines stay one affine, a .h5 keeps its parts, anything else becomes a warp on the fixed grid.

    \b
    Examples:
      rdmm compose -t out/1Warp.nii.gz -t out/0GenericAffine.mat -o whole.nii.gz
      rdmm compose -t out/1Warp.nii.gz -t out/0GenericAffine.mat -o Composite.h5
      rdmm compose -t [a.mat,1] -t b.mat -o c.mat
    """
    set_log(quiet, debug)
    from rdmm.workflows import transforms as commands

    show(commands.compose(list(names), out, **options), as_json)


@click.command(no_args_is_help=True, epilog=DIRECTION)
@click.argument("warp")
@click.option("-o", "--out", required=True)
@click.option("--log", "take_log", is_flag=True, help="The logarithm, with determinants clamped at 0.001.")
@common_options
def jacobian(warp: str, out: str, take_log: bool, overwrite: bool, **o: Any) -> None:
    """Jacobian determinant of a warp, by central differences; folds on stdout.

    \b
    Examples:
      rdmm jacobian out/1Warp.nii.gz -o jacobian.nii.gz
      rdmm jacobian out/1Warp.nii.gz -o log_jacobian.nii.gz --log
      rdmm jacobian warp.nii.gz -o jacobian.nii.gz --json
    """
    set_log(o["quiet"], o["debug"])
    from rdmm.workflows import transforms as commands

    show(commands.jacobian(warp, out, take_log=take_log, overwrite=overwrite), o["as_json"])


@click.command(no_args_is_help=True)
@click.option("--fixed-labels", help="Label map of the fixed image.")
@click.option("--moving-labels", help="Label map of the moving image.")
@transform_option
@click.option("--landmarks", help="CSV of fixed_x..z, moving_x..z in world millimetres (RAS+).")
@common_options
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
    from rdmm.workflows import transforms as commands

    show(commands.evaluate(list(names), fixed_labels, moving_labels, landmarks), o["as_json"])
