"""``rdmm barycenter`` and ``rdmm transfer``: optimal transport."""

from __future__ import annotations

import math
from typing import Any

import click

from rdmm.cli.numbers import LENGTH
from rdmm.cli.terminal import common_options, prints_result
from rdmm.types import ConfigError


@click.command(no_args_is_help=True)
@click.argument("images", nargs=-1)
@click.option("-o", "--out", required=True, help="Barycenter, on the grid of the first image.")
@click.option("--weights", help="One number per image, separated by commas; by default all equal.")
@click.option("--labels", is_flag=True, help="The images are label maps: each voxel gets the label whose barycenter is largest there.")
@click.option("--blur", type=LENGTH, default=0.01, show_default=True, help="sqrt(eps), in units of the longest edge.")
@common_options
@prints_result
def barycenter(images: tuple[str, ...], out: str, weights: str | None, labels: bool, blur: float, overwrite: bool) -> dict[str, Any]:
    """Wasserstein barycenter of density images (intensities >= 0), or of label maps.

    \b
    Examples:
      rdmm barycenter a.nii.gz b.nii.gz c.nii.gz -o mean.nii.gz
      rdmm barycenter a.nii.gz b.nii.gz -o quarter.nii.gz --weights .75,.25
      rdmm barycenter labels_1.nii.gz labels_2.nii.gz -o mean_labels.nii.gz --labels
    """
    numbers = parse_weights(weights, len(images))
    from rdmm.workflows import transport

    return transport.barycenter(list(images), out, weights=numbers, labels=labels, blur=blur, overwrite=overwrite)


def parse_weights(text: str | None, count: int) -> list[float]:
    """The numbers of --weights, one for each of ``count`` images; [] if there are none.

    Raises:
        ConfigError: it is not a list of finite numbers >= 0, or not one per image.
    """
    if text is None:
        return []
    try:
        weights = [float(w) for w in text.split(",")]
    except ValueError:
        raise ConfigError(f"--weights must be numbers separated by commas, e.g. .5,.5; got {text!r}") from None
    if not all(0 <= w < math.inf for w in weights) or sum(weights) == 0:
        raise ConfigError(f"--weights must be finite numbers >= 0, not all 0, e.g. .5,.5; got {text!r}")
    if len(weights) != count:
        raise ConfigError(f"{count} images but {len(weights)} weights; give one weight per image")
    return weights


@click.command(no_args_is_help=True)
@click.argument("fixed")
@click.argument("moving")
@click.argument("labels")
@click.option("-o", "--out", required=True, help="Labels on the grid of FIXED, at voxels where FIXED is above 0.")
@click.option("--blur", type=LENGTH, default=0.01, show_default=True, help="sqrt(eps), in units of the longest edge.")
@click.option(
    "--reach", type=LENGTH, help="sqrt(rho): mass farther apart is created or destroyed, not moved. By default all mass is moved."
)
@common_options
@prints_result
def transfer(fixed: str, moving: str, labels: str, out: str, blur: float, reach: float | None, overwrite: bool) -> dict[str, Any]:
    """Transfer LABELS from the density MOVING to the density FIXED along the transport plan between them.

    \b
    Examples:
      rdmm transfer fixed_mask.nii.gz moving_mask.nii.gz moving_labels.nii.gz -o labels.nii.gz
      rdmm transfer fixed.nii.gz moving.nii.gz moving_labels.nii.gz -o labels.nii.gz --blur .02
      rdmm transfer fixed.nii.gz moving.nii.gz moving_labels.nii.gz -o labels.nii.gz --reach .1
    """
    from rdmm.workflows import transport

    return transport.transfer(fixed, moving, labels, out, blur=blur, reach=reach, overwrite=overwrite)
