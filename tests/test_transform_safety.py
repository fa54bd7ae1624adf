"""Files of transforms take no numbers from elsewhere, and no more memory than they hold; elastix's chains end."""

from __future__ import annotations

import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from conftest import oblique

from rdmm import io
from rdmm.io.tools.itk.maps import decode_linear
from rdmm.io.transforms import read_transform_as, write_transform
from rdmm.io.vectors import Space
from rdmm.spatial.transform import Affine
from rdmm.types import InputError, RdmmError, ResourceError
from rdmm.workflows import transforms as commands

KIND = "AffineTransform_double_3_3"
NUMBERS = np.r_[np.eye(3).ravel(), np.zeros(3)]
MOST = 50 * 2**20
"""Bytes that reading a small file may take."""


def write_h5(path, parameters=NUMBERS, kind: str = KIND, change=None):
    """A transform file of ITK; ``change(file, group)`` makes it a hostile one."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        group = file.create_group("TransformGroup/0")
        group.create_dataset("TransformType", data=[kind], dtype=h5py.string_dtype("ascii"))
        if parameters is not None:
            group.create_dataset("TransformParameters", data=parameters)
        group.create_dataset("TransformFixedParameters", data=np.zeros(3))
        if change:
            change(h5py, file, group)
    return str(path)


def external_storage(h5py, file, group):
    secret = group.file.filename + ".secret"
    NUMBERS.tofile(secret)
    group.create_dataset("TransformParameters", shape=(12,), dtype="f8", external=[(secret, 0, 96)])


def external_link(h5py, file, group):
    write_h5(file.filename + ".other")
    group["TransformParameters"] = h5py.ExternalLink(file.filename + ".other", "/TransformGroup/0/TransformParameters")


def external_group(h5py, file, group):
    write_h5(file.filename + ".other")
    del file["TransformGroup/0"]
    file["TransformGroup/0"] = h5py.ExternalLink(file.filename + ".other", "/TransformGroup/0")


def soft_link(h5py, file, group):
    file.create_dataset("elsewhere", data=NUMBERS)
    group["TransformParameters"] = h5py.SoftLink("/elsewhere")


def virtual(h5py, file, group):
    write_h5(file.filename + ".other")
    layout = h5py.VirtualLayout((12,), "f8")
    layout[:] = h5py.VirtualSource(file.filename + ".other", "/TransformGroup/0/TransformParameters", (12,))
    group.create_virtual_dataset("TransformParameters", layout)


def unallocated(h5py, file, group):
    group.create_dataset("TransformParameters", shape=(5 * 10**8,), dtype="f8")


def huge(h5py, file, group):
    group.create_dataset("TransformParameters", shape=(10**12,), dtype="f8", chunks=(10**6,), compression="gzip")


def bomb(h5py, file, group):
    values = group.create_dataset("TransformParameters", shape=(10**8,), dtype="f8", chunks=(10**6,), compression="gzip")
    values[:1000] = 1.0


def compound(h5py, file, group):
    group.create_dataset("TransformParameters", data=np.zeros(12, [("a", "f8")]))


def text(h5py, file, group):
    group.create_dataset("TransformParameters", data=["one"] * 12)


def references(h5py, file, group):
    group.create_dataset("TransformParameters", data=[group.ref] * 12, dtype=h5py.ref_dtype)


HOSTILE = (external_storage, external_link, external_group, soft_link, virtual, unallocated, huge, bomb, compound, text, references)


@pytest.mark.fault(92, 8)
@pytest.mark.parametrize("change", HOSTILE, ids=[f.__name__ for f in HOSTILE])
def test_hostile_h5(change, tmp_path):
    path = write_h5(tmp_path / "x.h5", None, change=change)
    tracemalloc.start()
    with pytest.raises(RdmmError, match=r"x\.h5") as caught:
        io.read_transform(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(caught.value, InputError | ResourceError) and peak < MOST


@pytest.mark.fault(92)
def test_types_of_h5(tmp_path):
    assert io.read_transform(write_h5(tmp_path / "x.h5")).ndim == 3
    assert io.read_transform(write_h5(tmp_path / "x.h5", NUMBERS.astype("f4"))).ndim == 3
    for kind in ("", "nonsense", "AffineTransform_double_4_4", "BSplineTransform_double_3_3", "AffineTransform_double_2_2"):
        with pytest.raises(InputError, match=r"x\.h5"):
            io.read_transform(write_h5(tmp_path / "x.h5", kind=kind))

    def two(h5py, file, group):
        file.copy("TransformGroup/0", "TransformGroup/1")

    with pytest.raises(InputError, match="2 transforms"):
        io.read_transform(write_h5(tmp_path / "x.h5", change=two))


def write_npz(path, header: str | None = None, size: int = 0, name: str = "arr_0.npy", version: tuple[int, int] = (1, 0)) -> str:
    """A .npz whose array states ``header``, followed by ``size`` zero bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w", force_zip64=True) as stream:
        text = f"{header}\n".encode()
        stream.write(np.lib.format.magic(*version) + len(text).to_bytes(2 if version == (1, 0) else 4, "little") + text)
        for _ in range(0, size, 2**20):
            stream.write(bytes(min(size, 2**20)))
    return str(path)


GRID = oblique((6, 5, 4), (1.0, 1.5, 2.0))
HEADERS = {
    "huge": ("{'descr': '<f8', 'fortran_order': False, 'shape': (1000, 1000, 1000, 3), }", 2**26),
    "a bomb of another shape": ("{'descr': '<f4', 'fortran_order': False, 'shape': (16777216,), }", 2**26),
    "cut": ("{'descr': '<f8', 'fortran_order': False, 'shape': (6, 5, 4, 3), }", 100),
    "objects": ("{'descr': '|O', 'fortran_order': False, 'shape': (6, 5, 4, 3), }", 3000),
    "complex": ("{'descr': '<c16', 'fortran_order': False, 'shape': (6, 5, 4, 3), }", 6000),
    "long words": ("{'descr': '<U100000000', 'fortran_order': False, 'shape': (6, 5, 4, 3), }", 100),
    "negative": ("{'descr': '<f8', 'fortran_order': False, 'shape': (-6, 5, 4, 3), }", 3000),
    "no header": ("nonsense", 0),
    "a call": ("__import__('os').abort()", 0),
}


@pytest.mark.fault(92, 8)
@pytest.mark.parametrize("what", HEADERS)
def test_hostile_npz(what, tmp_path):
    path = write_npz(tmp_path / "x.npz", *HEADERS[what])
    tracemalloc.start()
    with pytest.raises(InputError, match=r"x\.npz"):
        read_transform_as(path, None, Space(GRID, GRID))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST


@pytest.mark.fault(92, 8)
def test_other_zips(tmp_path):
    np.savez(tmp_path / "two.npz", np.zeros((6, 5, 4, 3)), np.zeros(3))
    with zipfile.ZipFile(tmp_path / "none.npz", "w"):
        pass
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("a.npy", "text")
    np.savez(tmp_path / "nan.npz", np.full((6, 5, 4, 3), np.nan))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:200])
    for name in ("two", "none", "text", "nan", "cut"):
        with pytest.raises(InputError, match=name):
            read_transform_as(str(tmp_path / f"{name}.npz"), None, Space(GRID, GRID))
    values = np.random.default_rng(0).normal(size=(6, 5, 4, 3))
    for array in (values, values.astype("f2"), np.moveaxis(values, -1, 0), np.asfortranarray(values), values.astype(">f8")):
        np.savez_compressed(tmp_path / "good.npz", array)
        assert read_transform_as(str(tmp_path / "good.npz"), None, Space(GRID, GRID)).ndim == 3


@pytest.mark.fault(92, 8)
@pytest.mark.parametrize("what", ["huge", "negative", "cut", "words", "MATLAB 5", "two", "one", "empty name"])
def test_hostile_mat(what, tmp_path):
    from scipy.io import savemat

    def entry(name: str, count: int, stored: int = 12) -> bytes:
        head = np.array([0, count, 1, 0, len(name) + 1], "<i4").tobytes()
        return head + name.encode() + b"\0" + np.ones(stored).tobytes()

    good, fixed = entry(KIND, 12), entry("fixed", 3, 3)
    data = {
        "huge": entry(KIND, 2**31 - 1) + fixed,
        "negative": entry(KIND, -12) + fixed,
        "cut": good[:60],
        "two": good + fixed + good + fixed,
        "one": good,
        "empty name": entry("", 12) + fixed,
    }
    path = tmp_path / "x.mat"
    if what in data:
        path.write_bytes(data[what])
    elif what == "MATLAB 5":
        savemat(path, {KIND: NUMBERS[:, None], "fixed": np.zeros((3, 1))}, format="5", do_compression=True)
    else:
        savemat(path, {KIND: "words", "fixed": np.zeros((3, 1))}, format="4")
    tracemalloc.start()
    with pytest.raises(InputError, match=r"x\.mat"):
        io.read_transform(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST


@pytest.mark.fault(27, 89)
@pytest.mark.parametrize("scale", [5e-4, 1e-8, 1e6])
def test_scales_are_no_singular_matrices(scale, tmp_path):
    """Whatever the unit of lengths."""
    matrix = np.diag([scale, scale, scale, 1.0])
    for name, form in (("a.mat", None), ("a.txt", None), ("a.h5", None), ("r.txt", "ras")):
        write_transform(tmp_path / name, Affine(torch.as_tensor(matrix)), form, Space())
        assert np.allclose(read_transform_as(str(tmp_path / name), form, Space()).matrix.numpy(), matrix)


@pytest.mark.fault(27, 89)
@pytest.mark.parametrize("form", ["ras", "fsl", "afni"])
@pytest.mark.parametrize("bad", ["zero", "flat", "1e308", "-1e308", "inf", "nan", "1e-320", "parallel", "last row"])
def test_matrices_that_cannot_be_used(form, bad, tmp_path):
    m = np.eye(4)
    if bad in ("zero", "flat"):
        m[: 3 if bad == "zero" else 1, :3] = 0
    elif bad == "parallel":
        m[1, :3] = m[0, :3] = [1, 2, 3]
    elif bad == "last row":
        m[3, 0] = 0.5
    else:
        m[0, 0] = float(bad)
    if bad == "last row" and form == "afni":
        return
    path = tmp_path / ("m.aff12.1D" if form == "afni" else "m.mat")
    np.savetxt(path, m[:3].reshape(1, 12) if form == "afni" else m)
    io.write_image(tmp_path / "i.nii.gz", torch.zeros(1, 1, *GRID.shape), GRID)
    for out in ("o.txt", "o.nii.gz"):
        with pytest.raises(InputError, match=r"m\.(mat|aff12)"):
            commands.convert(
                str(path),
                str(tmp_path / out),
                source_form=form,
                form=None,
                fixed=str(tmp_path / "i.nii.gz"),
                moving=str(tmp_path / "i.nii.gz"),
                overwrite=False,
            )
        assert not (tmp_path / out).exists()


PARAMETERS = {
    ("TranslationTransform", 2): ("TranslationTransform", [3, -2]),
    ("TranslationTransform", 3): ("TranslationTransform", [3, -2, 1]),
    ("EulerTransform", 2): ("Euler2DTransform", [0.3, 3, -2]),
    ("EulerTransform", 3): ("Euler3DTransform", [0.1, -0.2, 0.3, 3, -2, 1]),
    ("SimilarityTransform", 2): ("Similarity2DTransform", [1.2, 0.3, 3, -2]),
    ("SimilarityTransform", 3): ("Similarity3DTransform", [0.1, -0.2, 0.3, 3, -2, 1, 1.2]),
    ("AffineTransform", 2): ("AffineTransform", [1, 0.1, -0.2, 1.1, 3, -2]),
    ("AffineTransform", 3): ("AffineTransform", [1, 0.1, 0, -0.2, 1.1, 0, 0.1, 0, 0.9, 3, -2, 1]),
}


def elastix(kind: str, d: int, start: str = "NoInitialTransform", zyx: str = "false", **changes: str) -> str:
    numbers = PARAMETERS.get((kind, d), ("", [0.0] * d))[1]
    fields = {
        "Transform": f'"{kind}"',
        "NumberOfParameters": str(len(numbers)),
        "TransformParameters": " ".join(map(str, numbers)),
        "InitialTransformParametersFileName": f'"{start}"',
        "HowToCombineTransforms": '"Compose"',
        "FixedImageDimension": str(d),
        "MovingImageDimension": str(d),
        "FixedInternalImagePixelType": '"float"',
        "Size": " ".join(["10"] * d),
        "UseDirectionCosines": '"true"',
    }
    if kind != "TranslationTransform":
        fields["CenterOfRotationPoint"] = " ".join(["5.5", "-4", "2"][:d])
    if kind == "EulerTransform" and d == 3:
        fields["ComputeZYX"] = f'"{zyx}"'
    fields |= changes
    return "// a comment\n" + "".join(f"({k} {v}) // of this line\n\n" for k, v in fields.items() if v)


@pytest.mark.fault(92)
@pytest.mark.parametrize(("kind", "d"), PARAMETERS)
@pytest.mark.parametrize("zyx", ["false", "true"])
def test_transforms_of_elastix(kind, d, zyx, tmp_path):
    (tmp_path / "TransformParameters.0.txt").write_text(elastix(kind, d, zyx=zyx))
    name, numbers = PARAMETERS[kind, d]
    center = np.zeros(d) if kind == "TranslationTransform" else np.array([5.5, -4, 2][:d])
    wanted = decode_linear(tmp_path, name, np.array(numbers), center, zyx=zyx == "true")
    read = io.read_transform(str(tmp_path / "TransformParameters.0.txt"))
    assert torch.equal(read.matrix, wanted.matrix) and not torch.equal(wanted.matrix, torch.eye(d + 1))


@pytest.mark.fault(92)
def test_chains_of_elastix(tmp_path):
    """The initial transform is applied to a point first; the name is a path as elastix saw it, and the folder may have moved."""
    (tmp_path / "a.txt").write_text(elastix("AffineTransform", 3))
    (tmp_path / "e.txt").write_text(elastix("EulerTransform", 3))
    first, second = (io.read_transform(str(tmp_path / n)) for n in ("a.txt", "e.txt"))
    x = torch.rand(1, 3, 6, dtype=torch.float64) * 20
    for start in ("a.txt", str(tmp_path / "a.txt"), "./a.txt", "/gone/elsewhere/a.txt"):
        (tmp_path / "chain.txt").write_text(elastix("EulerTransform", 3, start))
        assert torch.allclose(io.read_transform(str(tmp_path / "chain.txt"))(x), second(first(x)))
    (tmp_path / "flat.txt").write_text(elastix("EulerTransform", 2))
    (tmp_path / "loop.txt").write_text(elastix("EulerTransform", 3, "pool.txt"))
    (tmp_path / "pool.txt").write_text(elastix("EulerTransform", 3, "loop.txt"))
    for start in ("missing.txt", "flat.txt", "loop.txt"):
        (tmp_path / "chain.txt").write_text(elastix("EulerTransform", 3, start))
        with pytest.raises(InputError, match=r"missing|2D|loop|pool"):
            io.read_transform(str(tmp_path / "chain.txt"))


WRONG = {
    "a spline": {"Transform": '"BSplineTransform"'},
    "a stack": {"Transform": '"EulerStackTransform"'},
    "other dimensions": {"MovingImageDimension": "2"},
    "a wrong count": {"NumberOfParameters": "7"},
    "few numbers": {"TransformParameters": "1 2", "NumberOfParameters": "2"},
    "words": {"TransformParameters": "a b c d e f"},
    "not finite": {"TransformParameters": "nan 0 0 0 0 0"},
    "no center": {"CenterOfRotationPoint": ""},
    "no direction cosines": {"UseDirectionCosines": '"false"'},
    "added": {"InitialTransformParametersFileName": '"a.txt"', "HowToCombineTransforms": '"Add"'},
    "no brackets": {"Size": "10)\nSize 10"},
    "a key twice": {"Size": "10)\n(Size 10"},
}


@pytest.mark.fault(92)
@pytest.mark.parametrize("what", WRONG)
def test_other_files_of_elastix_are_refused(what, tmp_path):
    (tmp_path / "a.txt").write_text(elastix("EulerTransform", 3))
    (tmp_path / "t.txt").write_text(elastix("EulerTransform", 3, **WRONG[what]))
    with pytest.raises(InputError, match=r"t\.txt"):
        io.read_transform(str(tmp_path / "t.txt"))
