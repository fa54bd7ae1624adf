"""Commands on transforms: apply, points, invert, convert, compose, jacobian, evaluate."""

from __future__ import annotations

from typing import Any

import click

from rdmm.cli.numbers import VALUE, VOLUME
from rdmm.cli.terminal import (
    common_options,
    conversion_options,
    optional_transform_option,
    printing_options,
    prints_result,
    source_format_option,
    transform_option,
)
from rdmm.types import ConfigError

DIRECTION = "A transform maps points of the fixed image to the moving image, as in ANTs: y = A(x + u(x)), RAS+ world millimeters."


@click.command(no_args_is_help=True, epilog=DIRECTION)
@click.argument("image")
@transform_option
@click.option("-r", "--reference", required=True, help="The result has the grid of this image.")
@click.option("-o", "--out", required=True)
@click.option("--labels", is_flag=True, help="IMAGE is a label map: nearest neighbor, exact integers.")
@click.option("--interpolation", metavar="NAME", help="linear (default), nearest, bspline, sinc or generic-label (smooth labels).")
@click.option("--dtype", metavar="TYPE", help="Type of the voxels, such as int16 or float32; by default that of IMAGE.")
@click.option("--reorient", is_flag=True, help="Turn the vectors or tensors in IMAGE with the anatomy (finite strain; docs/formats.md).")
@click.option("--invert", is_flag=True, help="Apply the inverse of all transforms together; of a run by its InverseWarp.")
@click.option("--default-value", type=VALUE, default=0, show_default=True, help="Value outside the field of view of IMAGE.")
@click.option("--volume", type=VOLUME, help="Volume of a 4D IMAGE, from 0; by default all, one after the other.")
@common_options
@prints_result
def apply(image: str, names: tuple[str, ...], reference: str, out: str, **options: Any) -> dict[str, Any]:
    """Resample IMAGE through transforms onto the grid of a reference, of which nothing else is used. NaN in IMAGE stays NaN.

    \b
    Examples:
      rdmm apply moving.nii.gz -t out/ -r fixed.nii.gz -o warped.nii.gz
      rdmm apply labels.nii.gz --labels -t out/1Warp.nii.gz -t out/0GenericAffine.mat -r fixed.nii.gz -o warped_labels.nii.gz
      rdmm apply fixed.nii.gz -t [out/,1] -r moving.nii.gz -o inverse_warped.nii.gz
    """
    from rdmm.workflows import transforms

    return transforms.apply(image, list(names), reference, out, **options)


@click.command(no_args_is_help=True, epilog=DIRECTION)
@click.argument("file")
@transform_option
@click.option("-o", "--out", required=True, help="A file of any of the formats.")
@click.option("--lps", is_flag=True, help="FILE, and the result, are in LPS+ millimeters, as ANTs and ITK write points; else in RAS+.")
@common_options
@prints_result
def points(file: str, names: tuple[str, ...], out: str, lps: bool, overwrite: bool) -> dict[str, Any]:
    """Map points of the fixed image to the moving image. FILE is a table with the columns x, y[, z] (.csv, .tsv, .txt), of which all other
    columns are kept; Slicer's markups (.fcsv, .mrk.json); a mesh (.vtk, .vtp, .ply, .stl, .obj, .gii); or streamlines (.trk, .tck). The
    ending of OUT says what is written. For points, the first -t is applied first.

    \b
    Examples:
      rdmm points fixed_points.csv -t out/1Warp.nii.gz -t out/0GenericAffine.mat -o moving_points.csv
      rdmm points moving_points.csv -t [out/0GenericAffine.mat,1] -t out/1InverseWarp.nii.gz -o fixed_points.csv
      rdmm points surface.vtk -t affine.mat -o moved.ply
    """
    from rdmm.workflows import transforms

    return transforms.points(file, list(names), out, lps=lps, overwrite=overwrite)


@click.command(no_args_is_help=True, epilog=DIRECTION)
@click.argument("transform")
@click.option("-o", "--out", required=True)
@source_format_option
@conversion_options
@common_options
@prints_result
def invert(transform: str, out: str, **options: Any) -> dict[str, Any]:
    """Invert a transform: an affine exactly, a warp point by point, to 1e-4 voxels.

    \b
    Examples:
      rdmm invert out/1Warp.nii.gz -o inverse.nii.gz
      rdmm invert Composite.h5 -o inverse.nii.gz --fixed fixed.nii.gz
      rdmm invert flirt.mat -o inverse.mat --fixed fixed.nii.gz --moving moving.nii.gz --to fsl
    """
    from rdmm.workflows import transforms

    return transforms.invert_transform(transform, out, **options)


@click.command(no_args_is_help=True, epilog=DIRECTION)
@click.argument("source")
@click.argument("out")
@source_format_option
@conversion_options
@common_options
@prints_result
def convert(source: str, out: str, **options: Any) -> dict[str, Any]:
    """Convert a transform between ITK/ANTs (.nii.gz, .mat, .txt, .tfm, .h5), FSL (.mat, .nii.gz), greedy (.txt), AFNI (.aff12.1D, .nii.gz)
    and Learn2Reg (.npz, disp_*.nii.gz). Those of SPM, NiftyReg, elastix, FreeSurfer (.lta) and MINC (.xfm) are read.

    \b
    Examples:
      rdmm convert Composite.h5 warp.nii.gz --fixed fixed.nii.gz
      rdmm convert out/0GenericAffine.mat for_greedy.txt
      rdmm convert out/1Warp.nii.gz fnirt.nii.gz --to fsl --fixed fixed.nii.gz --moving moving.nii.gz
      rdmm convert out/CompositeWarp.nii.gz disp_0001_0002.npz --fixed fixed.nii.gz --moving moving.nii.gz
    """
    from rdmm.workflows import transforms

    return transforms.convert(source, out, **options)


@click.command(no_args_is_help=True, epilog=DIRECTION)
@transform_option
@click.option("-o", "--out", required=True)
@conversion_options
@common_options
@prints_result
def compose(names: tuple[str, ...], out: str, **options: Any) -> dict[str, Any]:
    """Compose several transforms into one: affines give an affine, a .h5 keeps the parts, anything else gives a warp on the fixed grid.

    \b
    Examples:
      rdmm compose -t out/1Warp.nii.gz -t out/0GenericAffine.mat -o whole.nii.gz
      rdmm compose -t out/1Warp.nii.gz -t out/0GenericAffine.mat -o Composite.h5
      rdmm compose -t [a.mat,1] -t b.mat -o c.mat
    """
    from rdmm.workflows import transforms

    return transforms.compose(list(names), out, **options)


@click.command(no_args_is_help=True, epilog=DIRECTION)
@click.argument("warp", required=False)
@optional_transform_option
@click.option("-r", "--reference", metavar="IMAGE", help="The result has the grid of this image; by default that of the first warp.")
@click.option("-o", "--out", required=True)
@click.option(
    "--with-affine/--without-affine", "with_affine", help="Also of the affine maps around the warps. By default without, as in ANTs."
)
@click.option("--log", "take_log", is_flag=True, help="Write the logarithm; determinants below 0.001 are set to 0.001 first.")
@common_options
@prints_result
def jacobian(warp: str | None, names: tuple[str, ...], out: str, **options: Any) -> dict[str, Any]:
    """Jacobian determinant of WARP, or of the transforms of -t together, by central differences. Above 1, the moving image is larger there.
    Counts of folds are printed, and whether an affine is included.

    \b
    Examples:
      rdmm jacobian out/1Warp.nii.gz -o jacobian.nii.gz
      rdmm jacobian -t out/ -o log_jacobian.nii.gz --log
      rdmm jacobian -t out/ --with-affine -r fixed.nii.gz -o jacobian.nii.gz --json
    """
    from rdmm.workflows import transforms

    return transforms.jacobian(warp, list(names), out, **options)


@click.command(no_args_is_help=True)
@click.option("--fixed-labels", help="Label map of the fixed image.")
@click.option("--moving-labels", help="Label map of the moving image.")
@transform_option
@click.option("--landmarks", help="CSV of fixed_x..z, moving_x..z in world millimeters (RAS+).")
@click.option("--fixed", help="The fixed image: SDlogJ is also measured in its foreground.")
@click.option("--fixed-mask", help="Mask of the subject in the fixed image: SDlogJ is also measured inside it.")
@printing_options
@prints_result
def evaluate(fixed_labels: str | None, moving_labels: str | None, names: tuple[str, ...], **given: str | None) -> dict[str, Any]:
    """Dice, landmark error, folds and SDlogJ of transforms, made by any tool. SDlogJ inside the subject is that in --fixed-mask, else in
    --fixed-labels, else in the foreground of --fixed (Otsu's threshold).

    \b
    Examples:
      rdmm evaluate --fixed-labels f.nii.gz --moving-labels m.nii.gz -t out/1Warp.nii.gz -t out/0GenericAffine.mat
      rdmm evaluate -t out/1Warp.nii.gz -t out/0GenericAffine.mat --landmarks points.csv
      rdmm evaluate -t out/1Warp.nii.gz --fixed fixed.nii.gz --json
    """
    if (fixed_labels is None) != (moving_labels is None):
        raise ConfigError("give both --fixed-labels and --moving-labels, or neither")
    from rdmm.workflows import transforms

    return transforms.evaluate(list(names), fixed_labels=fixed_labels, moving_labels=moving_labels, **given)
