"""Transforms of every tool, and lists of -t arguments. Only this module chooses a reader or writer, by a file's content."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rdmm.io.files import require_ending
from rdmm.io.tools.afni import AFNI
from rdmm.io.tools.elastix import Elastix
from rdmm.io.tools.freesurfer import FreeSurfer
from rdmm.io.tools.fsl import FSL
from rdmm.io.tools.itk import ITK
from rdmm.io.tools.learn2reg import Learn2Reg
from rdmm.io.tools.minc import MINC
from rdmm.io.tools.niftyreg import NiftyReg
from rdmm.io.tools.ras import RAS
from rdmm.io.tools.spm import SPM
from rdmm.io.tools.start import Start
from rdmm.io.tools.unreadable import describe_unreadable
from rdmm.io.vectors import Space, is_like_positions
from rdmm.spatial.grid import require_one_dimension
from rdmm.spatial.inverse import inverse
from rdmm.spatial.transform import Dense, Placed, Transform, compose_all, flat
from rdmm.types import LENGTHS, ConfigError, InputError, nearest, option


class TransformReader(Protocol):
    """One tool's files of transforms. Transforms map world millimeters (RAS+), fixed -> moving."""

    @property
    def needs_images(self) -> bool:
        """Whether the files depend on the grids of both images."""

    def recognises(self, start: Start) -> bool:
        """Whether a file that starts like this may be of this tool."""

    def read(self, path: Path, space: Space) -> Transform: ...


class TransformFormat(TransformReader, Protocol):
    """A tool's files that are written as well; their names end in ``endings``, in lower case."""

    @property
    def endings(self) -> tuple[str, ...]: ...

    def write(self, path: Path, transform: Transform, space: Space) -> None: ...


FORMATS: dict[str, TransformFormat] = {"itk": ITK(), "fsl": FSL(), "ras": RAS(), "afni": AFNI(), "learn2reg": Learn2Reg()}
READERS: dict[str, TransformReader] = {
    **FORMATS,
    "spm": SPM(),
    "niftyreg": NiftyReg(),
    "elastix": Elastix(),
    "freesurfer": FreeSurfer(),
    "minc": MINC(),
}

AMBIGUOUS = {
    "fsl": "FLIRT, FNIRT: FSL's millimeters",
    "ras": "greedy, c3d, NiftyReg: RAS millimeters",
    "afni": "AFNI: LPS millimeters",
    "learn2reg": "voxels",
}
"""The tools whose files can look the same, and their coordinates."""


def recognise(path: Path) -> list[str]:
    """The tools, as keys of READERS, whose files begin like this one.

    Raises:
        InputError: there is none, or the file is missing.
    """
    start = Start.of(path)
    if kind := describe_unreadable(start):
        raise InputError(f"{path}: {kind}")
    forms = [form for form, reader in READERS.items() if reader.recognises(start)]
    named = [form for form in forms if form in ("spm", "niftyreg")]  # they fill in the intent's name, which ITK leaves empty
    if start.shape and not start.has_vectors:
        raise InputError(
            f"{path}: an image of shape {start.shape} is no displacement field, (X, Y, Z, 1, 3) or (X, Y, 1, 1, 2); give the transform"
            " of a run: its folder, or 1Warp.nii.gz and 0GenericAffine.mat"
        )
    if not forms:
        raise InputError(f"{path}: not a transform of a known tool ({', '.join(READERS)}); docs/formats.md lists the files of each")
    if path.name.startswith("disp_") and "learn2reg" in forms:
        return ["learn2reg"]
    return named or forms


def _ambiguity(path: str, forms: list[str]) -> str:
    tools = " or ".join(f"{form} ({AMBIGUOUS[form]})" for form in forms)
    return f"{path}: the file does not tell which tool wrote it: {tools} differ by their coordinates"


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused
def read_transform_as(name: str, form: str | None, space: Space) -> Transform:
    """Read the transform of any tool as a map of world millimeters, fixed -> moving.

    Args:
        name: a file.
        form: a key of READERS; None: as the file's content tells.
        space: the images' grids; FSL, Learn2Reg and oblique AFNI affines need them.

    Raises:
        InputError: the file cannot be used.
        ConfigError: the format or a grid is missing.
    """
    if form is not None and form not in READERS:
        raise ConfigError(f"there is no format {form!r}{nearest(form, READERS)}; there are {', '.join(READERS)}")
    if form is None and (_is_bracketed(name) or expand(name) != [name]):
        return read_transform(name)
    path = Path(name)
    if form is not None:
        return _require_lengths(path, READERS[form].read(path, space))
    forms = recognise(path)
    if len(forms) > 1:
        raise ConfigError(f"{_ambiguity(name, forms)}; pass {option('from_', '|'.join(forms))}")
    return _require_displacement(path, _require_lengths(path, READERS[forms[0]].read(path, space)), forms[0])


def _require_lengths(path: Path, transform: Transform) -> Transform:
    """Raise InputError for displacements beyond LENGTHS: computing with them gives NaN."""
    for warp in (m for m in flat(transform) if isinstance(m, Placed) and isinstance(m.transform, Dense)):
        longest = float(warp.transform.displacement.abs().max()) * warp.grid.length  # type: ignore[attr-defined]
        if not longest <= LENGTHS[1]:
            raise InputError(f"{path}: its displacements reach {longest:.2g} mm, more than {LENGTHS[1]:g}; write it again with its tool")
    return transform


def _require_displacement(path: Path, transform: Transform, form: str) -> Transform:
    """Raise InputError for a field that the header calls vectors of ITK, but that holds points like those of SPM."""
    if form == "itk" and is_like_positions(transform):
        raise InputError(
            f"{path}: its vectors are nearly the positions of their voxels, as of a tool that stores points instead of displacements;"
            f" convert them first: rdmm convert {path} OUT.h5 --from spm (points, RAS mm) or --from itk (displacements)"
        )
    return transform


def choose_writer(name: str | os.PathLike[str], form: str | None) -> TransformFormat:
    """The format in which a transform is written: ``form``, or what the name's ending says. Call it before anything is computed.

    Raises:
        ConfigError: there is no such format, it is only read, or its files have other endings.
    """
    path = Path(name)
    if form is not None and form not in FORMATS:
        read_only = " is only read" if form in READERS else f" does not exist{nearest(form, FORMATS)}"
        raise ConfigError(f"{option('to', str(form))}: this format{read_only}; transforms are written as {', '.join(FORMATS)}")
    if form is None:
        is_learn2reg = path.suffix.lower() == ".npz" or path.name.startswith("disp_")
        form = "afni" if path.suffix.lower() == ".1d" else "learn2reg" if is_learn2reg else "itk"
    require_ending(path, FORMATS[form].endings, f"a transform for {form}")
    return FORMATS[form]


def write_transform(name: str | os.PathLike[str], transform: Transform, form: str | None, space: Space) -> None:
    """Write a map of world millimeters, fixed -> moving, for a tool; arguments and errors as for ``choose_writer``."""
    with np.errstate(over="ignore", invalid="ignore"):  # the writers refuse what is not finite
        choose_writer(name, form).write(Path(name), transform, space)


def read_transform(name: str) -> Transform:
    """Read one -t argument: a transform of any tool whose content tells its tool, a whole run (``expand``), or ``[ONE,1]``: its inverse.

    Returns:
        a map of world millimeters (RAS+), fixed -> moving.

    Raises:
        InputError: the file cannot be used, does not tell its tool, or depends on the grids of the images.
        DivergenceError: a warp that is to be inverted folds.
    """
    parts = expand(name)
    if parts != [name]:
        return compose_all(read_transform(part) for part in parts)
    if _is_bracketed(name):
        return inverse(read_transform(_inside(name)), _inside(name))
    forms = recognise(Path(name))
    if len(forms) > 1:
        raise InputError(f"{_ambiguity(name, forms)}; convert it first: rdmm convert {name} OUT --from {'|'.join(forms)}")
    if READERS[forms[0]].needs_images:
        raise InputError(
            f"{name}: a transform of {forms[0]} depends on the grids of both images; convert it first: "
            f"rdmm convert {name} OUT --from {forms[0]} --fixed IMAGE --moving IMAGE"
        )
    return read_transform_as(name, None, Space())


def _is_bracketed(name: str) -> bool:
    return name.startswith("[") and name.endswith("]")


def _inside(name: str) -> str:
    """The FILE of ``[FILE,1]``."""
    return name[1:-1].rpartition(",")[0].strip()


PART = re.compile(r"(\d+)(Inverse)?(Warp\.nii(?:\.gz)?|[A-Z][A-Za-z]*\.mat)")
"""The name of a numbered transform of a run, as ANTs writes it: a point goes through the highest number first."""


def expand(name: str) -> list[str]:
    """The -t arguments, in the order in which a point goes through them, that one argument stands for.

    A whole run is given by its folder, its prefix or its run.json: its warp and its affine, as rdmm and ANTs name them, or its
    Composite.h5. ``[RUN,1]`` is its inverse, by its InverseWarp if there is one. ``[FILE,0]`` is FILE; all else stands for itself.

    Raises:
        InputError: a folder without transforms, or brackets of another form.
    """
    if not _is_bracketed(name):
        return _files_of_run(name, inverted=False) or [name]
    flag = name[1:-1].rpartition(",")[2].strip()
    if flag not in ("0", "1"):
        raise InputError(f"{name}: write [FILE,1] for the inverse of a transform, or [RUN,1] for that of a whole run")
    return expand(_inside(name)) if flag == "0" else _files_of_run(_inside(name), inverted=True) or [name]


def is_run(name: Any) -> bool:
    """Whether a -t argument is a whole run, or anything else that stands for other arguments."""
    return isinstance(name, str | os.PathLike) and expand(os.fspath(name)) != [os.fspath(name)]


def _files_of_run(name: str, *, inverted: bool) -> list[str]:
    """The transforms of a whole run, or of its inverse, as -t arguments; [] if the name is not that of a run."""
    if not name or (os.path.isfile(name) and os.path.basename(name) != "run.json"):
        return []
    is_folder = os.path.isdir(name)
    prefix = os.path.join(name, "") if is_folder else name.removesuffix("run.json")
    folder, start = os.path.split(prefix)
    names = sorted(n.removeprefix(start) for n in os.listdir(folder or ".") if n.startswith(start)) if os.path.isdir(folder or ".") else []
    numbered = sorted((int(m[1]), bool(m[2]), n) for n in names if (m := PART.fullmatch(n)))
    forward = [n for _, is_inverse, n in reversed(numbered) if not is_inverse]
    whole = "InverseComposite.h5" if inverted and "InverseComposite.h5" in names else "Composite.h5"
    if not forward and whole in names:
        return [prefix + whole if whole.startswith("Inverse") or not inverted else f"[{prefix}{whole},1]"]
    if not forward and (is_folder or name != prefix):
        raise InputError(
            f"{name}: no transform of a run is there (1Warp.nii.gz, 0GenericAffine.mat, Composite.h5); give its files, or its folder"
        )
    if not inverted:
        return [prefix + n for n in forward]
    backward = {n: n.replace("Warp", "InverseWarp", 1) for n in forward if n.endswith(WARPS)}
    return [prefix + backward[n] if backward.get(n) in names else f"[{prefix}{n},1]" for n in reversed(forward)]


WARPS = ("Warp.nii.gz", "Warp.nii")


def read_transforms(names: list[str]) -> Transform:
    """Read a list of -t arguments as one map.

    A point goes through the first transform first. Seen from the moving image, the last one is therefore applied first.

    Raises:
        InputError: as for ``read_transform``; or two transforms are of different dimensions.
    """
    transforms = [read_transform(name) for name in names]
    require_one_dimension({name: t.ndim for name, t in zip(names, transforms, strict=True)})
    return compose_all(transforms)
