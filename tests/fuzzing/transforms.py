"""Transforms of all tools: ITK (text, .mat, .h5, warps), FSL, AFNI, FreeSurfer, MINC, elastix, Learn2Reg."""

from __future__ import annotations

import functools
import io as streams
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from scipy.io import savemat

from fuzzing.case import NUMBERS, WORDS, Case, Rng, chance, count, number, perhaps_damaged, pick, text_of
from fuzzing.images import stored, vectors_file
from rdmm import Grid, io
from rdmm.io.tools.itk.maps import CLASSES
from rdmm.io.transforms import READERS, read_transform_as, write_transform
from rdmm.io.vectors import Space
from rdmm.spatial.grid import is_invertible
from rdmm.spatial.transform import Affine, Transform, flat
from rdmm.types import OutputError
from rdmm.workflows import inspect

KINDS = [*CLASSES, "DisplacementFieldTransform", "BSplineTransform", "CompositeTransform", ""]
NAMES = ('"a.elastix.txt"', '"\x01"', '"."', f'"{"x" * 300}"', '"\x00"')
GRIDS = {2: Grid.unit((6, 5)), 3: Grid.unit((5, 4, 6))}


def require_laws(transform: Transform, folder: Path) -> None:
    """A transform takes points near its images to finite ones, and is the same map after it was written and read again."""
    d = transform.ndim
    assert d in (2, 3), "no dimension"
    rng = np.random.default_rng(0)
    points = torch.as_tensor(rng.uniform(-1, 8, (1, d, 7)))
    ends = transform(points)
    assert bool(torch.isfinite(ends).all()), "points that are not finite"
    maps = flat(transform)
    for m in maps:
        if isinstance(m, Affine):
            matrix = m.matrix.numpy()
            assert is_invertible(matrix) and np.isfinite(m.inverse().matrix.numpy()).all(), "a singular affine"
    path = folder / ("again.txt" if all(isinstance(m, Affine) for m in maps) else "again.h5")
    try:
        write_transform(path, transform, "itk", Space(GRIDS[d]))
    except OutputError as error:
        if "sheared" in str(error) or "not finite" in str(error):
            return
        raise
    again = io.read_transform(str(path))(points)
    scale = float(ends.abs().max()) + max(float(m.matrix.abs().max()) for m in [Affine(torch.eye(d + 1)), *maps] if isinstance(m, Affine))
    assert bool(((again - ends).abs() <= 1e-5 * scale).all()), "another map after writing and reading"


def numbers_text(rng: Rng, values: Sequence[float], hostile: float) -> str:
    """Numbers as text, a few of them replaced."""
    return " ".join(text_of(rng, pick(rng, NUMBERS) if chance(rng, hostile) else float(x), hostile / 10) for x in values)


def matrix_of(rng: Rng, rows: int, columns: int) -> np.ndarray:
    """A matrix near the identity; now and then singular, or of other lengths."""
    out = np.eye(rows, columns) + 0.1 * rng.normal(size=(rows, columns))
    if rows == columns:
        out[-1] = np.eye(rows)[-1]
    if chance(rng, 0.1):
        out[0] = pick(rng, (0.0, 1e-30, 1e30)) * out[-1]
    return out * (pick(rng, (1e-12, 1e12)) if chance(rng, 0.05) else 1)


def entry_of(rng: Rng, d: int) -> tuple[str, np.ndarray, np.ndarray]:
    """Type, parameters and fixed parameters of one of ITK's transforms."""
    name = pick(rng, KINDS)
    sizes = {"angle": 1, "scale": 1, "quaternion": 4, "matrix": d * d, "skew": 6}
    parameters = 0.3 * rng.normal(size=sum(sizes.get(block, d) for block in CLASSES.get(name, ())))
    fixed = rng.normal(size=d) if chance(rng, 0.8) else np.zeros(pick(rng, (0, 1, 4)))
    if name == "DisplacementFieldTransform":
        shape = GRIDS[d].shape
        parameters = 0.1 * rng.normal(size=d * int(np.prod(shape)))
        fixed = np.concatenate([shape, np.zeros(d), np.ones(d), np.eye(d).ravel()])
    dimensions = f"{d}_{d}" if chance(rng, 0.95) else pick(rng, ("2_3", "4_4", "3", "-1_-1", "x_y"))
    return f"{name}_double_{dimensions}", parameters, fixed


def itk_text(rng: Rng) -> tuple[str, bytes]:
    d, lines = pick(rng, (2, 3, 3)), ["#Insight Transform File V1.0"]
    parts = pick(rng, (1, 1, 1, 1, 1, 1, 1, 2, 2, 0))
    if parts == 2 and chance(rng, 0.7):
        lines += ["#Transform 0", f"Transform: CompositeTransform_double_{d}_{d}"]
    for k in range(parts):
        kind, parameters, fixed = entry_of(rng, d if chance(rng, 0.95) else 5 - d)
        lines += [f"#Transform {k}", f"Transform: {kind}", f"Parameters: {numbers_text(rng, parameters, 0.02)}"]
        lines += [f"FixedParameters: {numbers_text(rng, fixed, 0.03)}"]
    if chance(rng, 0.1):
        lines.insert(int(rng.integers(len(lines) + 1)), str(pick(rng, WORDS)))
    return pick(rng, ("a.txt", "a.tfm", "a.TXT")), "\n".join(lines).encode("utf-8", "backslashreplace") + b"\n"


def hostile_array(rng: Rng, values: np.ndarray) -> np.ndarray:
    """Numbers with a hostile one among them, of another type or shape, in some cases."""
    out = np.array(values, dtype=np.float64)
    if out.size and chance(rng, 0.2):
        out[int(rng.integers(out.size))] = pick(rng, NUMBERS)
    with np.errstate(all="ignore"):
        out = out.astype(pick(rng, ("f8",) * 12 + ("f4", "i4", "u1", "c16", "?")))
    return out[: max(0, count(rng, out.size, 0.05))] if chance(rng, 0.1) else out


def itk_mat(rng: Rng) -> tuple[str, bytes]:
    kind, parameters, fixed = entry_of(rng, pick(rng, (2, 3)))
    if kind.startswith("Displacement"):
        kind = "AffineTransform_double_3_3"
    content: dict[str, Any] = {kind: hostile_array(rng, parameters)[:, None], "fixed": hostile_array(rng, fixed)[:, None]}
    if chance(rng, 0.1):
        content[pick(rng, ("more", "a" * 31))] = pick(rng, (np.eye(3), "text", np.zeros((0, 0))))
    if chance(rng, 0.05):
        del content["fixed"]
    buffer = streams.BytesIO()
    savemat(buffer, content, format=pick(rng, ("4",) * 9 + ("5",)))
    return "a.mat", buffer.getvalue()


def itk_h5(rng: Rng) -> tuple[str, bytes]:
    d, buffer = pick(rng, (2, 3)), streams.BytesIO()
    with h5py.File(buffer, "w") as file:
        names = [str(k) for k in range(pick(rng, (0, 1, 2, 2, 2, 2, 3)))]
        for k, name in enumerate([*names[:-1], "x"] if names and chance(rng, 0.03) else names):
            kind, parameters, fixed = entry_of(rng, d)
            kind = f"CompositeTransform_double_{d}_{d}" if k == 0 and chance(rng, 0.8) else kind
            group = file.create_group(f"TransformGroup/{name}")
            kinds = [kind] * pick(rng, (1,) * 18 + (0, 2))
            group.create_dataset("TransformType", data=kinds, dtype=h5py.string_dtype(pick(rng, ("ascii", "utf-8"))))
            if k or chance(rng, 0.1):
                for part, values in (("TransformParameters", parameters), ("TransformFixedParameters", fixed)):
                    _dataset(rng, group, part, hostile_array(rng, values))
    return "c.h5", buffer.getvalue()


def _dataset(rng: Rng, group: Any, name: str, values: np.ndarray) -> None:
    """A data set of the values; in some cases a link, a group, text, or one that promises terabytes."""
    match int(rng.integers(0, 25)):
        case 0:
            group[name] = h5py.SoftLink("/TransformGroup")
        case 1:
            group.create_group(name)
        case 2:
            group.create_dataset(name, shape=(2**40,), dtype="f8", chunks=(1024,))
        case 3:
            group.create_dataset(name, data="text")
        case 4:
            group.create_dataset(name, data=h5py.Empty("f8"))
        case 5:
            group[name] = h5py.ExternalLink("/etc/hostname", "/")
        case 6:
            group.create_dataset(name, data=np.zeros(10**7), compression="gzip")
        case _:
            group.create_dataset(name, data=values)


def plain_matrix(rng: Rng) -> tuple[str, bytes]:
    rows, columns = pick(rng, ((4, 4), (4, 4), (3, 4), (3, 3), (1, 12)))
    text = "\n".join(numbers_text(rng, row, 0.02) for row in matrix_of(rng, rows, columns))
    banner = "# 3dvolreg matrices (DICOM-to-DICOM, row-by-row):\n" if chance(rng, 0.3) else ""
    return pick(rng, ("a.mat", "a.txt", "a.aff12.1D")), f"{banner}{text}\n".encode("utf-8", "backslashreplace")


def freesurfer(rng: Rng) -> tuple[str, bytes]:
    rows = [numbers_text(rng, row, 0.02) for row in matrix_of(rng, 4, 4)]
    lines = [f"type      = {count(rng, pick(rng, (0, 1)))}", f"nxforms   = {count(rng, 1)}", "mean      = 0 0 0", "sigma     = 1"]
    lines += ["1 4 4", *rows]
    for side in ("src", "dst"):
        lines += [f"{side} volume info", f"valid = {count(rng, 1)}  # volume info valid", "filename = x.mgz"]
        volume = {"volume": (5, 4, 6), "voxelsize": (1, 1, 2), "cras": (3, -2, 1)}
        volume |= {"xras": (-1, 0, 0), "yras": (0, 0, -1), "zras": (0, 1, 0)}
        lines += [f"{key} = {numbers_text(rng, values, 0.02)}" for key, values in volume.items()]
    if chance(rng, 0.1):
        del lines[int(rng.integers(len(lines)))]
    return "a.lta", "\n".join(lines).encode("utf-8", "backslashreplace") + b"\n"


def minc(rng: Rng) -> tuple[str, bytes]:
    lines = ["MNI Transform File", "% made by a test"]
    for _ in range(pick(rng, (1, 1, 2, 0))):
        rows = "\n".join(numbers_text(rng, row, 0.02) for row in matrix_of(rng, 4, 4)[:3])
        lines += [f"Transform_Type = {pick(rng, ('Linear',) * 9 + ('Grid_Transform',))};", f"Linear_Transform =\n{rows};"]
    if chance(rng, 0.1):
        del lines[int(rng.integers(len(lines)))]
    return "a.xfm", "\n".join(lines).encode("utf-8", "backslashreplace") + b"\n"


def elastix(rng: Rng) -> tuple[str, bytes]:
    d = pick(rng, (2, 3))
    sizes = {"EulerTransform": 3 * d - 3, "AffineTransform": d * d + d, "TranslationTransform": d, "SimilarityTransform": 3 * d - 2}
    name, size = pick(rng, tuple(sizes.items()))
    values = 0.3 * rng.normal(size=size)
    fields = {
        "Transform": f'"{name}"',
        "NumberOfParameters": str(count(rng, size)),
        "TransformParameters": numbers_text(rng, values, 0.03),
        "InitialTransformParametersFileName": pick(rng, ('"NoInitialTransform"',) * 12 + NAMES),
        "HowToCombineTransforms": pick(rng, ('"Compose"', '"Compose"', '"Add"')),
        "FixedImageDimension": str(count(rng, d)),
        "MovingImageDimension": str(count(rng, d)),
        "CenterOfRotationPoint": numbers_text(rng, rng.normal(size=d), 0.03),
        "ComputeZYX": '"false"',
    }
    lines = [f"({key} {value})" for key, value in fields.items() if chance(rng, 0.98)]
    return "a.elastix.txt", "\n".join(lines).encode("utf-8", "backslashreplace") + b"\n"


def learn2reg(rng: Rng) -> tuple[str, bytes]:
    grid = GRIDS[pick(rng, (2, 3))]
    values = rng.normal(size=(grid.ndim, *grid.shape) if chance(rng, 0.5) else (*grid.shape, grid.ndim))
    if chance(rng, 0.2):
        values.ravel()[int(rng.integers(values.size))] = number(rng, 1.0)
    with np.errstate(all="ignore"):
        array: Any = values.astype(pick(rng, ("f8", "f4", "f2", "i2", "c16", "?")))
    arrays = [array] * pick(rng, (1, 1, 1, 1, 2, 0))
    if chance(rng, 0.05):
        arrays = [np.zeros((200, 200, 300), np.float32)]
    if chance(rng, 0.03):
        arrays = [np.array([{}], dtype=object)]
    buffer = streams.BytesIO()
    np.savez_compressed(buffer, *arrays)
    return "disp.npz", buffer.getvalue()


def warp(rng: Rng) -> tuple[str, bytes]:
    shape = pick(rng, ((5, 4, 6, 1, 3),) * 3 + ((6, 5, 1, 1, 2), (5, 4, 6, 3), (6, 5, 2), (5, 4, 6, 1, 2), (5, 4, 6), (1, 4, 6, 1, 2)))
    name = pick(rng, ("w.nii.gz", "w.nii", "disp_1_2.nii.gz", "W.NII.GZ"))
    return name, stored(rng, name, vectors_file(rng, shape, 0.3))


def _case(make: Callable[[Rng], tuple[str, bytes]], rng: Rng) -> Case:
    name, data = make(rng)
    data = data if make is warp else perhaps_damaged(rng, data, 0.2)
    form, d, way = _form(rng, make.__name__), pick(rng, (2, 3, 3, 3)), int(rng.integers(8))
    space = Space(GRIDS[d], Grid(GRIDS[d].shape, GRIDS[d].affine)) if chance(rng, 0.95) else Space()

    def run(folder: Path) -> None:
        if way == 0:
            inspect.info(str(folder / name))
        if way == 1:
            require_laws(io.read_transform(str(folder / name)), folder)
        require_laws(read_transform_as(str(folder / name), form, space), folder)

    return Case(run, {name: data}, f"{name} {form} {d}D")


def _form(rng: Rng, maker: str) -> str | None:
    """The tool that is named: most often the right one or none."""
    own = {"plain_matrix": pick(rng, ("fsl", "ras", "afni")), "warp": pick(rng, ("itk", "spm", "learn2reg", "fsl", "afni", "niftyreg"))}
    return pick(rng, tuple(READERS)) if chance(rng, 0.05) else own.get(maker, maker if maker in READERS else None)


MAKERS = (itk_text, itk_mat, itk_h5, plain_matrix, freesurfer, minc, elastix, learn2reg, warp)
GENERATORS = {f"transform_{make.__name__}": functools.partial(_case, make) for make in MAKERS}
