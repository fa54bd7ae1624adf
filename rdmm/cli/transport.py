"""Commands of optimal transport."""

from __future__ import annotations

from typing import Any

import click

from rdmm.cli.terminal import common_options, set_log, show
from rdmm.types import ConfigError


@click.command(no_args_is_help=True)
@click.argument("images", nargs=-1)
@click.option("-o", "--out", required=True, help="Barycenter, on the grid of the first image.")
@click.option("--weights", help="One number an image, with commas between; the same for all where it is not given.")
@click.option("--labels", is_flag=True, help="Label maps: the barycenter of each label; a voxel gets the largest.")
@click.option("--blur", type=float, default=0.01, show_default=True, help="sqrt(eps), in units of the longest edge.")
@common_options
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
    from rdmm.workflows import transport as commands

    show(commands.barycenter(list(images), out, weights=shares, labels=labels, blur=blur, overwrite=overwrite), o["as_json"])


@click.command(no_args_is_help=True)
@click.argument("fixed")
@click.argument("moving")
@click.argument("labels")
@click.option("-o", "--out", required=True, help="Labels on the grid of FIXED, where it is above 0.")
@click.option("--blur", type=float, default=0.01, show_default=True, help="sqrt(eps), in units of the longest edge.")
@click.option("--reach", type=float, help="sqrt(rho): how far mass is moved rather than created; all of it where it is not given.")
@common_options
def transfer(fixed: str, moving: str, labels: str, out: str, blur: float, reach: float | None, overwrite: bool, **o: Any) -> None:
    """Carry LABELS of the density MOVING to the density FIXED by the transport plan between them.

    \b
    Examples:
      rdmm transfer fixed_mask.nii.gz moving_mask.nii.gz moving_labels.nii.gz -o labels.nii.gz
      rdmm transfer fixed.nii.gz moving.nii.gz moving_labels.nii.gz -o labels.nii.gz --blur .02
      rdmm transfer fixed.nii.gz moving.nii.gz moving_labels.nii.gz -o labels.nii.gz --reach .1
    """
    set_log(o["quiet"], o["debug"])
    from rdmm.workflows import transport as commands

    show(commands.transfer(fixed, moving, labels, out, blur=blur, reach=reach, overwrite=overwrite), o["as_json"])
