"""The group of all commands. Commands import heavy modules only when they run, so ``rdmm --help`` is fast."""

from __future__ import annotations

import click

from rdmm.cli.batch import batch
from rdmm.cli.inspect import info, report
from rdmm.cli.register import demo, register
from rdmm.cli.terminal import Program
from rdmm.cli.transforms import apply, compose, convert, evaluate, invert, jacobian, points
from rdmm.cli.transport import barycenter, transfer
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


for command in (
    register,
    batch,
    demo,
    apply,
    points,
    invert,
    convert,
    compose,
    jacobian,
    barycenter,
    transfer,
    evaluate,
    info,
    report,
):
    main.add_command(command)
