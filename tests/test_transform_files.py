"""Transforms of every tool are read as that tool means them, or refused by name. SimpleITK, nitransforms, closed forms judge."""

from __future__ import annotations

import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import oblique
from scipy.io import loadmat, savemat

from rdmm import Grid, io
from rdmm.io.tools.itk.maps import CLASSES
from rdmm.io.transforms import read_transform_as, write_transform
from rdmm.io.vectors import Space
from rdmm.spatial.ops import sample
from rdmm.spatial.transform import Affine, Placed
from rdmm.types import ConfigError, InputError

FLIP = {2: np.array([-1.0, -1.0]), 3: np.array([-1.0, -1.0, 1.0])}
SIZES = {"angle": 1, "scale": 1, "quaternion": 4, "skew": 6}


def points(d: int) -> np.ndarray:
    return np.random.default_rng(3).uniform(-40, 40, (5, d))


def mapped(name, x: np.ndarray) -> np.ndarray:
    """World points (n, d) through the transform of a file."""
    return io.read_transform(str(name))(torch.as_tensor(x.T[None]))[0].numpy().T


def by_sitk(name, x: np.ndarray) -> np.ndarray:
    """The same by SimpleITK, which counts in LPS."""
    sitk = pytest.importorskip("SimpleITK")
    transform, flip = sitk.ReadTransform(str(name)), FLIP[x.shape[1]]
    return np.array([transform.TransformPoint((p * flip).tolist()) for p in x]) * flip


def parameters(name: str, d: int, seed: int) -> np.ndarray:
    """Random parameters of one of ITK's linear classes, near the identity."""
    rng, out = np.random.default_rng(seed), []
    for block in CLASSES[name]:
        if block == "matrix":
            angle = 0.4
            m = np.eye(d)
            m[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            out.append((m if "Rigid" in name else m + 0.1 * rng.normal(size=(d, d))).ravel())
        elif block == "quaternion":
            q = rng.normal(size=4)
            out.append(q / np.linalg.norm(q))
        elif "scale" in block:
            out.append(rng.uniform(0.6, 1.5, SIZES.get(block, d)))
        else:
            out.append(rng.uniform(-0.4, 0.4, SIZES.get(block, d)) * (20 if block in ("center", "translation") else 1))
    return np.concatenate(out) if out else np.zeros(0)


def block(name: str, d: int, seed: int, kind: str = "double") -> str:
    fixed = np.random.default_rng(seed + 1).uniform(-9, 9, d)
    if name in ("TranslationTransform", "IdentityTransform"):
        fixed = fixed[:0]
    if "Euler3D" in name:
        fixed = np.append(fixed, float(seed % 2))  # ComputeZYX
    numbers = (" ".join(repr(float(v)) for v in x) for x in (parameters(name, d, seed), fixed))
    return "Transform: {}_{}_{}_{}\nParameters: {}\nFixedParameters: {}\n".format(name, kind, d, d, *numbers)


def dimensions(name: str) -> list[int]:
    if "2D" in name:
        return [2]
    return [3] if any(k in name for k in ("3D", "Versor", "Quaternion")) else [2, 3]


LINEAR = [(name, d) for name in CLASSES for d in dimensions(name)]
UNKNOWN_TO_ITK = [("Rigid3DTransform", 3), ("ScaleLogarithmicTransform", 2)]  # of this build
HEAD = "#Insight Transform File V1.0\n#Transform 0\n"


@pytest.mark.fault(92)
@pytest.mark.parametrize(("name", "d"), LINEAR)
def test_linear_transforms_of_itk(name, d, tmp_path):
    x = points(d)
    for seed in (0, 1):
        text = block(name, d, seed)
        (tmp_path / "t.txt").write_text(HEAD + text)
        (tmp_path / "whole.txt").write_text(
            f"{HEAD}Transform: CompositeTransform_double_{d}_{d}\n{text}"
        )  # SimpleITK reads every class in it
        ours = mapped(tmp_path / "t.txt", x)
        assert np.allclose(ours, mapped(tmp_path / "whole.txt", x), atol=1e-9)
        if (name, d) in UNKNOWN_TO_ITK:
            p, center = parameters(name, d, seed), np.random.default_rng(seed + 1).uniform(-9, 9, d)
            linear, shift = (np.diag(np.exp(p)), 0) if "Scale" in name else (p[: d * d].reshape(d, d), p[-d:])
            assert np.allclose(ours, ((x * FLIP[d] - center) @ linear.T + center + shift) * FLIP[d], atol=1e-9)
        else:
            assert np.allclose(ours, by_sitk(tmp_path / "whole.txt", x), atol=1e-9)


@pytest.mark.fault(92)
@pytest.mark.parametrize("ending", [".mat", ".h5", ".tfm"])
def test_linear_transforms_in_every_file_of_itk(ending, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    written = []
    for k, (name, d) in enumerate(LINEAR):
        (tmp_path / "t.txt").write_text(HEAD + block(name, d, k))
        try:
            transform = sitk.ReadTransform(str(tmp_path / "t.txt"))
        except (RuntimeError, KeyError):  # this class is read in a composite only
            continue
        if not isinstance(transform, sitk.CompositeTransform):
            sitk.WriteTransform(transform, str(tmp_path / f"{k}{ending}"))
            assert np.allclose(mapped(tmp_path / f"{k}{ending}", points(d)), by_sitk(tmp_path / "t.txt", points(d)), atol=1e-9), name
            written.append(name)
    assert len(written) > 12


@pytest.mark.fault(92)
@pytest.mark.parametrize("ending", [".h5", ".tfm"])
@pytest.mark.parametrize("d", [2, 3])
def test_composites(ending, d, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    euler, scale = (sitk.Euler2DTransform(), sitk.ScaleTransform(2)) if d == 2 else (sitk.Euler3DTransform(), sitk.ScaleTransform(3))
    euler.SetParameters([0.3] * len(euler.GetParameters()))
    scale.SetParameters([1.5] * d)
    whole = sitk.CompositeTransform([euler, scale, sitk.TranslationTransform(d, [4.0] * d)])
    sitk.WriteTransform(whole, str(tmp_path / f"c{ending}"))
    assert np.allclose(mapped(tmp_path / f"c{ending}", points(d)), by_sitk(tmp_path / f"c{ending}", points(d)), atol=1e-9)
    sitk.WriteTransform(whole, str(tmp_path / "c.mat"))
    with pytest.raises(InputError, match="does not hold the parts"):
        io.read_transform(str(tmp_path / "c.mat"))


@pytest.mark.fault(92)
@pytest.mark.parametrize("count", [0, 2, 3])
def test_several_transforms_without_a_composite(count, tmp_path):
    (tmp_path / "t.txt").write_text("#Insight Transform File V1.0\n" + "".join(block("Euler3DTransform", 3, k) for k in range(count)))
    with pytest.raises(InputError, match=f"{count} transforms"):
        io.read_transform(str(tmp_path / "t.txt"))


COMPOSITE = "Transform: CompositeTransform_double_3_3\n"
REFUSED = {
    "unknown class": "Transform: BSplineTransform_double_3_3\nParameters: 1 2\nFixedParameters: 3\n",
    "other dimensions": "Transform: AffineTransform_double_3_2\nParameters: 1 0 0 0 1 0 0 0 1 0 0 0\nFixedParameters: 0 0 0\n",
    "a 2D class in 3D": "Transform: Euler2DTransform_double_3_3\nParameters: 1 0 0 0\nFixedParameters: 0 0 0\n",
    "too few numbers": "Transform: Euler3DTransform_double_3_3\nParameters: 1 0 0\nFixedParameters: 0 0 0\n",
    "no numbers": "Transform: Euler3DTransform_double_3_3\n",
    "a wrong center": "Transform: Euler3DTransform_double_3_3\nParameters: 0 0 0 0 0 0\nFixedParameters: 0 0\n",
    "no rotation": "Transform: VersorTransform_double_3_3\nParameters: 1 1 1\nFixedParameters: 0 0 0\n",
    "NaN": "Transform: TranslationTransform_double_3_3\nParameters: nan 1 1\nFixedParameters:\n",
    "singular": "Transform: ScaleTransform_double_3_3\nParameters: 0 1 1\nFixedParameters: 0 0 0\n",
    "beyond all lengths": "Transform: ScaleTransform_double_3_3\nParameters: 1e308 1e308 1e308\nFixedParameters: 0 0 0\n",
    "words": "Transform: ScaleTransform_double_3_3\nParameters: one 1 1\nFixedParameters: 0 0 0\n",
    "a key twice": "Transform: ScaleTransform_double_3_3\nParameters: 2 1 1\nParameters: 1 1 1\nFixedParameters: 0 0 0\n",
    "an unknown key": "Transform: ScaleTransform_double_3_3\nParameters: 2 1 1\nFixedParameters: 0 0 0\nCenter: 1 1 1\n",
    "2D and 3D": COMPOSITE + block("Euler3DTransform", 3, 0) + block("Euler2DTransform", 2, 0),
    "a composite inside": "Transform: CompositeTransform_double_3_3\n"
    + block("Euler3DTransform", 3, 0)
    + "Transform: CompositeTransform_double_3_3\n",
}


@pytest.mark.fault(92)
@pytest.mark.parametrize("what", REFUSED)
def test_other_text_of_itk_is_refused(what, tmp_path):
    (tmp_path / "t.tfm").write_text("#Insight Transform File V1.0\n" + REFUSED[what])
    with pytest.raises(InputError, match=r"t\.tfm"):
        io.read_transform(str(tmp_path / "t.tfm"))


def field(shape: tuple[int, ...], d: int, seed: int = 0) -> tuple[np.ndarray, Grid]:
    """Smooth displacements (*s, d) in RAS millimeters, and their grid."""
    grid = oblique(shape, (1.0, 1.5, 2.0)[:d])
    x = np.moveaxis(np.indices(shape), 0, -1) / 4
    return np.stack([np.sin(x[..., i] + i + seed) for i in range(d)], -1), grid


def save_field(path, values: np.ndarray, grid: Grid, intent: int, name: str = "", p1: float = 0) -> str:
    d, affine = grid.ndim, np.eye(4)
    affine[np.ix_([*range(d), 3], [*range(d), 3])] = np.asarray(grid.affine)
    image = nib.Nifti1Image(values.reshape(*grid.shape, *(1,) * (4 - d), d).astype(np.float32), affine)
    image.header.set_intent(intent, name=name)
    image.header["intent_p1"] = p1
    nib.save(image, path)
    return str(path)


@pytest.mark.fault(92)
@pytest.mark.parametrize("d", [2, 3])
def test_fields_of_spm_and_niftyreg(d, tmp_path):
    values, grid = field((7, 6, 5)[:d], d)
    x = grid.voxel_to_world(np.moveaxis(np.indices(grid.shape), 0, -1).astype(float))
    same = {
        "itk": save_field(tmp_path / "itk.nii.gz", values * FLIP[d], grid, 1007),
        "spm": save_field(tmp_path / "y.nii", x + values, grid, 1007, "Mapping"),
        "def": save_field(tmp_path / "def.nii.gz", x + values, grid, 1007, "NREG_TRANS", 0),
        "disp": save_field(tmp_path / "disp_1.nii.gz", values, grid, 1007, "NREG_TRANS", 1),
    }
    for name in same.values():
        assert np.allclose(mapped(name, x.reshape(-1, d)), (x + values).reshape(-1, d), atol=1e-4)
    for kind, words in ((2, "cubic spline"), (3, "velocity"), (4, "velocity"), (5, "velocity"), (6, "linear spline"), (9, "unknown kind")):
        with pytest.raises(InputError, match=f"{words}.*reg_transform"):
            io.read_transform(save_field(tmp_path / "other.nii.gz", values, grid, 1007, "NREG_TRANS", kind))
    save_field(tmp_path / "nan.nii.gz", x * np.nan, grid, 1007, "Mapping")
    with pytest.raises(InputError, match="NaN"):
        io.read_transform(str(tmp_path / "nan.nii.gz"))


@pytest.mark.fault(92)
@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("axes", ["RAS", "LPS"])
def test_positions_are_no_displacements(axes, d, tmp_path):
    values, grid = field((16, 14, 12)[:d], d)
    x = grid.voxel_to_world(np.moveaxis(np.indices(grid.shape), 0, -1).astype(float))
    path = save_field(tmp_path / "w.nii.gz", (x + values) * (FLIP[d] if axes == "LPS" else 1), grid, 1007)
    with pytest.raises(InputError, match="nearly the positions"):
        io.read_transform(path)
    assert isinstance(read_transform_as(path, "itk", Space()), Placed)  # on request
    for ordinary in (values, values + 300, 0.5 * x, -0.5 * x, x @ np.diag([0.2, 0.7, 0.1][:d]), 0 * x):
        io.read_transform(save_field(tmp_path / "v.nii.gz", ordinary, grid, 1007))


@pytest.mark.fault(92)
@pytest.mark.parametrize("layout", [(4, 4, 4, 3), (4, 4, 4, 1, 3)])
@pytest.mark.parametrize("intent", [0, 1006, 1007, 2006])
def test_vectors_of_no_named_tool(layout, intent, tmp_path):
    image = nib.Nifti1Image(np.zeros(layout, np.float32), np.eye(4))
    image.header["intent_code"] = intent
    nib.save(image, tmp_path / "v.nii")
    if len(layout) == 4 and intent == 1007:
        with pytest.raises(InputError, match="not a transform of a known tool"):
            io.read_transform(str(tmp_path / "v.nii"))
        return
    if len(layout) == 5 and intent in (0, 1007):
        assert isinstance(io.read_transform(str(tmp_path / "v.nii")), Placed)
        return
    with pytest.raises(InputError, match="rdmm convert"):
        io.read_transform(str(tmp_path / "v.nii"))


GEOMETRY = """valid = {}  # volume info valid
filename = some/where.mgz
volume = {} {} {}
voxelsize = {!r} {!r} {!r}
xras   = {!r} {!r} {!r}
yras   = {!r} {!r} {!r}
zras   = {!r} {!r} {!r}
cras   = {!r} {!r} {!r}
"""


def lta(matrix: np.ndarray, source: Grid, target: Grid, kind: int = 0, valid: int = 1, count: int = 1) -> str:
    def geometry(g: Grid) -> str:
        middle = g.voxel_to_world(np.array(g.shape) / 2)
        return GEOMETRY.format(valid, *g.shape, *g.voxel, *np.asarray(g.directions).T.ravel().tolist(), *middle.tolist())

    head = f"# transform\ntype      = {kind} # LINEAR\nnxforms   = {count}\nmean      = 0.0 0.0 0.0\nsigma     = 10000.0\n1 4 4\n"
    rows = "".join(" ".join(repr(float(v)) for v in row) + " \n" for row in matrix)
    return f"{head}{rows}src volume info\n{geometry(source)}dst volume info\n{geometry(target)}subject fsaverage\nfscale 0.15\n"


def affine(seed: int = 0) -> np.ndarray:
    m = np.eye(4)
    m[:3] += 0.1 * np.random.default_rng(seed).normal(size=(3, 4))
    m[:3, 3] *= 50
    return m


@pytest.mark.fault(92)
@pytest.mark.parametrize("kind", [0, 1])
def test_lta_of_freesurfer(kind, tmp_path):
    """The file maps source points to destination points: rdmm's direction is the other one."""
    source, target = oblique((20, 18, 16), (1.0, 1.5, 2.0)), oblique((24, 20, 22), (1.0, 1.0, 1.2), angle=-0.2, flip=True)
    world, x = affine(), points(3)
    stored = world if kind == 1 else np.linalg.inv(np.asarray(target.affine)) @ world @ np.asarray(source.affine)
    (tmp_path / "a.lta").write_text(lta(stored, source, target, kind))
    assert np.allclose(mapped(tmp_path / "a.lta", x @ world[:3, :3].T + world[:3, 3]), x, atol=1e-8)
    nt = pytest.importorskip("nitransforms")
    theirs = nt.linear.load(tmp_path / "a.lta", fmt="fs").matrix  # float32
    assert np.allclose(io.read_transform(str(tmp_path / "a.lta")).matrix.numpy(), theirs, atol=1e-3)


@pytest.mark.fault(92)
@pytest.mark.parametrize("change", [{"kind": 14}, {"kind": 2}, {"count": 2}, {"valid": 0}])
def test_other_lta_are_refused(change, tmp_path):
    grid = oblique((20, 18, 16), (1.0, 1.5, 2.0))
    (tmp_path / "a.lta").write_text(lta(np.eye(4), grid, grid, **change))
    with pytest.raises(InputError, match=r"a\.lta"):
        io.read_transform(str(tmp_path / "a.lta"))


def xfm(*matrices: np.ndarray, kind: str = "Linear") -> str:
    parts = []
    for m in matrices:
        rows = "\n".join(" " + " ".join(repr(float(v)) for v in row) for row in m[:3])
        parts.append(f"Transform_Type = {kind};\nLinear_Transform =\n{rows};\n")
    return "MNI Transform File\n%VIO_Volume: made by a test; not = a statement\n\n" + "".join(parts)


@pytest.mark.fault(92)
def test_xfm_of_minc(tmp_path):
    """The file maps source points to target points, as talairach.xfm takes an image to MNI: rdmm's direction is the other one."""
    a, b, x = affine(1), affine(2), points(3)
    (tmp_path / "a.xfm").write_text(xfm(a))
    assert np.allclose(mapped(tmp_path / "a.xfm", x @ a[:3, :3].T + a[:3, 3]), x, atol=1e-8)
    (tmp_path / "ab.xfm").write_text(xfm(a, b))
    whole = b @ a
    assert np.allclose(mapped(tmp_path / "ab.xfm", x @ whole[:3, :3].T + whole[:3, 3]), x, atol=1e-8)
    for wrong in (xfm(a, kind="Grid_Transform"), xfm(), xfm(a)[:-20], xfm(a).replace("Linear;", "Linear;\nInvert_Flag = True;")):
        (tmp_path / "wrong.xfm").write_text(wrong)
        with pytest.raises(InputError, match=r"wrong\.xfm"):
            io.read_transform(str(tmp_path / "wrong.xfm"))


@pytest.mark.fault(92)
@pytest.mark.parametrize("text", ["{}", "\n# a comment\n{}\n\n"])
def test_a_bare_matrix_names_no_tool(text, tmp_path):
    rows = "\n".join(" ".join(f"{v:.12g}" for v in row) for row in affine())
    for name in ("m.mat", "m.txt", "m.xfm"):
        (tmp_path / name).write_text(text.format(rows))
        with pytest.raises(InputError, match=r"--from fsl\|ras"):
            io.read_transform(str(tmp_path / name))
        with pytest.raises(ConfigError, match=r"pass from_=\"fsl\|ras"):
            read_transform_as(str(tmp_path / name), None, Space())
        x = points(3)
        read = read_transform_as(str(tmp_path / name), "ras", Space())(torch.as_tensor(x.T[None]))[0].numpy().T
        assert np.allclose(read, x @ affine()[:3, :3].T + affine()[:3, 3], atol=1e-6)


@pytest.mark.fault(92)
@pytest.mark.parametrize("d", [2, 3])
def test_greedy_reads_ras_and_itk_text(d, tmp_path):
    greedy = pytest.importorskip("picsl_greedy")
    grids = [oblique((20, 18, 16)[:d], (1.0, 1.5, 2.0)[:d]), oblique((24, 20, 22)[:d], (1.0, 1.0, 1.2)[:d], angle=-0.2)]
    x = grids[1].identity(torch.zeros(1))
    io.write_image(tmp_path / "m.nii.gz", torch.sin(7 * x).prod(1, keepdim=True), grids[1])
    io.write_image(tmp_path / "f.nii.gz", torch.zeros(1, 1, *grids[0].shape), grids[0])
    matrix = np.eye(d + 1)
    matrix[:2, :2] = [[0.95, -0.2], [0.2, 1.05]]
    matrix[:d, d] = 1.5
    moving, transform = io.read_image(tmp_path / "m.nii.gz"), Affine(torch.as_tensor(matrix))
    fixed = grids[0].to_world(grids[0].identity(torch.zeros(1, dtype=torch.float64)))
    at = moving.grid.from_world(transform(fixed))
    ours = sample(moving.data.double(), at, moving.grid)[0, 0].numpy()
    far = torch.tensor(moving.grid.extent).view(1, -1, *(1,) * d)
    inside = ((at > 0.02) & (at < far - 0.02)).all(1)[0].numpy()
    for name, form in (("a.mat", "ras"), ("a.txt", "ras"), *([("b.txt", "itk")] if d == 3 else [])):  # greedy misreads ITK's text in 2D
        write_transform(tmp_path / name, transform, form, Space())
        run = greedy.Greedy2D() if d == 2 else greedy.Greedy3D()
        run.execute(f"-d {d} -rf {tmp_path / 'f.nii.gz'} -rm {tmp_path / 'm.nii.gz'} {tmp_path / 'o.nii.gz'} -r {tmp_path / name}")
        assert np.abs(io.read_image(tmp_path / "o.nii.gz").data[0, 0].numpy() - ours)[inside].max() < 1e-4, name
    assert np.allclose(read_transform_as(str(tmp_path / "a.mat"), "ras", Space()).matrix.numpy(), matrix, atol=1e-8)


@pytest.mark.parametrize("d", [2, 3])
def test_affine_files_have_the_bytes_of_scipy(d, tmp_path, monkeypatch):
    """MATLAB-4 is written and read without scipy, which takes .15 s to load."""
    matrix = np.eye(d + 1) + np.vstack([np.random.default_rng(0).normal(size=(d, d + 1)), np.zeros(d + 1)])
    io.write_affine(tmp_path / "a.mat", matrix)
    content = {k: v for k, v in loadmat(tmp_path / "a.mat").items() if not k.startswith("__")}
    savemat(tmp_path / "b.mat", content, format="4")
    assert (tmp_path / "a.mat").read_bytes() == (tmp_path / "b.mat").read_bytes()
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    np.testing.assert_allclose(mapped(tmp_path / "a.mat", points(d)), points(d) @ matrix[:d, :d].T + matrix[:d, d])
