"""What a registration may be given besides its two images: one table. No torch here: the command line reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OptionalInput:
    """One further input.

    Args:
        name: of the argument of ``read_inputs``, of the option and of the column in a list of pairs.
        help: what the command line says of it.
        typed: whether the command line and lists of pairs take it; else Python alone.
        for_shapes: whether shapes take it too.
        reread: whether ``rdmm report`` reads it again.
    """

    name: str
    help: str
    typed: bool = True
    for_shapes: bool = False
    reread: bool = True

    @property
    def option(self) -> str:
        return f"--{self.name.replace('_', '-')}"


OPTIONAL_INPUTS = (
    OptionalInput("fixed_labels", "Label map of FIXED, for Dice."),
    OptionalInput("moving_labels", "Label map of MOVING: it is warped, and used for Dice."),
    OptionalInput("fixed_mask", "Mask of FIXED: only voxels above 0 are compared."),
    OptionalInput("moving_mask", "Mask of MOVING: only voxels above 0 are compared."),
    OptionalInput("fixed_keypoints", "CSV without a header, in voxels of FIXED (Learn2Reg), for the landmark error."),
    OptionalInput("moving_keypoints", "The same points in voxels of MOVING."),
    OptionalInput(
        "landmarks", "CSV with columns fixed_x..z, moving_x..z in world millimetres (RAS+), for the landmark error.", for_shapes=True
    ),
    OptionalInput("regions", "Label map of MOVING for a pre-defined regularizer (with initializer=regions)."),
    OptionalInput("fixed_regions", "The same regions in FIXED: the map is evaluated inside and outside of them.", typed=False),
    OptionalInput("initial", "Transform to start from: a warp or an affine, fixed -> moving.", reread=False),
)
"""Files that may be given, in the order in which a recorded command names them."""

COMMAND_LINE_INPUTS = tuple(g for g in OPTIONAL_INPUTS if g.typed)
INPUT_NAMES = ("fixed", "moving", *(g.name for g in OPTIONAL_INPUTS))
PAIR_FILES = ("fixed", "moving", *(g.name for g in COMMAND_LINE_INPUTS))
"""Columns of a list of pairs that name files."""

READING_OPTIONS = ("nan", "volume", "strict")
"""How the two images are read; run.json records what differs from the defaults."""

REPORT_INPUTS = tuple(g.name for g in OPTIONAL_INPUTS if g.reread)
"""Files that ``rdmm report`` reads again."""
