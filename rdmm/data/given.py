"""The table of optional inputs of a registration. It does not import torch, because the command line reads it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rdmm.types import ConfigError


@dataclass(frozen=True)
class OptionalInput:
    """One optional input.

    Args:
        name: name of the argument of ``read_inputs``, of the command's option, and of the column in a list of pairs.
        help: help text of the option.
        typed: whether the command line and lists of pairs accept it; otherwise only Python does.
        for_shapes: whether registrations of shapes accept it too.
        reread: whether ``rdmm report`` reads it again.
        several: whether several files can be given.
    """

    name: str
    help: str
    typed: bool = True
    for_shapes: bool = False
    reread: bool = True
    several: bool = False

    @property
    def option(self) -> str:
        """Name of the option on the command line."""
        return f"--{self.name.replace('_', '-')}"


OPTIONAL_INPUTS = (
    OptionalInput("fixed_labels", "Label map of FIXED, for Dice and the smoothness inside it."),
    OptionalInput("moving_labels", "Label map of MOVING: it is warped and written, and used for Dice."),
    OptionalInput("fixed_mask", "Mask of FIXED: only voxels above 0 are compared."),
    OptionalInput("moving_mask", "Mask of MOVING: only voxels above 0 are compared."),
    OptionalInput("fixed_exclude", "What FIXED must not be compared in, such as a lesion: voxels above 0 are left out."),
    OptionalInput("moving_exclude", "What MOVING must not be compared in, such as a lesion: voxels above 0 are left out."),
    OptionalInput("fixed_keypoints", "CSV without a header, in voxels of FIXED (Learn2Reg), to measure the error."),
    OptionalInput("moving_keypoints", "The same points in voxels of MOVING."),
    OptionalInput(
        "landmarks", "CSV with columns fixed_x..z, moving_x..z in world millimeters (RAS+), to measure the error.", for_shapes=True
    ),
    OptionalInput("regions", "Label map of MOVING: regions of a pre-defined regularizer (needs initializer=regions)."),
    OptionalInput("fixed_regions", "The same regions in FIXED: the map is evaluated inside and outside them.", typed=False),
    OptionalInput(
        "initial",
        "Transform to start from, fixed -> moving, of any tool; [AFFINE,1] is an inverse. Repeat it for several, in the order of -t.",
        reread=False,
        several=True,
    ),
)
"""All optional inputs, in the order of the recorded command line."""


@dataclass(frozen=True)
class Also:
    """A further image of each subject (``--also``): what ``rdmm.register`` takes as an image, and the weight of their comparison."""

    fixed: Any
    moving: Any
    weight: float = 1.0

    def typed(self) -> list[str]:
        """The words of ``--also``."""
        return [os.fspath(self.fixed), os.fspath(self.moving), *([] if self.weight == 1 else [str(self.weight)])]


MAX_IMAGES = 9
"""Most images of a subject."""

ALSO_COLUMNS = tuple(f"{role}_{k}" for k in range(2, MAX_IMAGES + 1) for role in ("fixed", "moving", "weight"))
"""Columns of a list of pairs for further images of the subjects."""

COMMAND_LINE_INPUTS = tuple(g for g in OPTIONAL_INPUTS if g.typed)
INPUT_NAMES = ("fixed", "moving", "also", *(g.name for g in OPTIONAL_INPUTS))
PAIR_FILES = ("fixed", "moving", *(g.name for g in COMMAND_LINE_INPUTS))
"""Columns of a list of pairs that name files."""

READING_OPTIONS = ("nan", "volume", "strict")
"""Options for reading the two images. run.json records those that differ from the defaults."""

REPORT_INPUTS = tuple(g.name for g in OPTIONAL_INPUTS if g.reread)
"""Inputs that ``rdmm report`` reads again."""

AFFINE_STARTS = ("auto", "header", "com", "axes")
"""Starts of the affine search (``--init``)."""

LINEAR_MODELS = ("translation", "rigid", "similarity", "affine")
"""Models of the affine search, from small to large."""

DEFORMATIONS = ("svf", "lddmm", "rdmm")
"""Dynamics of images."""

TRANSFORMS = (*LINEAR_MODELS, *DEFORMATIONS)
"""Kinds of transforms (``--transform``)."""

TRANSFORM_HELP = "Kind of transform. The first four write a matrix, without a warp; default: affine and a deformation (dynamics=svf)."


def values_of(value: Any) -> Sequence[Any]:
    """What was given for one input, as a list: several values, one, or none."""
    if isinstance(value, list | tuple):
        return value
    return [] if value is None or value is False else [value]


def file_of(value: str | os.PathLike[str]) -> str:
    """The file of an input: the value itself, or of ``[FILE,1]`` the file inside."""
    text = os.fspath(value)
    return text[1:-1].rpartition(",")[0].strip() if text.startswith("[") and text.endswith("]") else text


def files_of(given: Mapping[str, Any]) -> dict[str, str]:
    """The files of inputs by their names in run.json: of several files of an input, the second one is NAME_2."""
    found: dict[str, str] = {}
    for name, value in given.items():
        for k, one in enumerate(values_of(value), 1):
            if isinstance(one, Also):
                found |= files_of({f"fixed_{k + 1}": one.fixed, f"moving_{k + 1}": one.moving})
            elif isinstance(one, str | os.PathLike):
                found[name if k == 1 else f"{name}_{k}"] = file_of(one)
    return found


def read_also(value: Any) -> list[Also]:
    """The argument ``also``: (fixed, moving) or (fixed, moving, weight), or a list of such.

    Raises:
        ConfigError: it is nothing of this, or a weight is not a number > 0.
    """
    if value is None:
        return []
    is_list = isinstance(value, list | tuple) and all(isinstance(x, list | tuple | Also) for x in value)
    if is_list and len(value) >= MAX_IMAGES:
        raise ConfigError(f"also: at most {MAX_IMAGES - 1} further images of each subject; got {len(value)}")
    found = []
    for one in value if is_list else [value]:
        if not isinstance(one, Also):
            if not isinstance(one, list | tuple) or len(one) not in (2, 3):
                raise ConfigError("also is a list of (fixed, moving) or (fixed, moving, weight), e.g. also=[(f2, m2), (f3, m3, 0.5)]")
            one = Also(*one)
        is_number = isinstance(one.weight, int | float) and not isinstance(one.weight, bool)
        if not is_number or not 0 < one.weight < math.inf:
            raise ConfigError(f"also: the weight of two images is a number > 0; got {one.weight!r}")
        found.append(replace(one, weight=float(one.weight)))
    return found
