"""Transforms of other tools: what they make of ours is what we make of them, and the way there and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import oblique

from rdmm import Grid, Image, io
from rdmm.cli import main
from rdmm.io.transforms import read_transform_as, write_transform
from rdmm.io.vectors import Space
from rdmm.spatial.transform import Affine, Composed, framed
from rdmm.types import ConfigError, InputError, OutputError


def smooth(grid: Grid, seed: int, amplitude: float) -> torch.Tensor:
    """Waves (1, d, *s) that vanish at the edges."""
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    bubble = torch.stack([torch.sin(np.pi * x[0, i] / grid.extent[i]) for i in range(grid.ndim)]).prod(0)
    phase = torch.rand(grid.ndim, grid.ndim, generator=torch.Generator().manual_seed(seed)).double() * 6
    waves = [sum(torch.cos(5 * x[0, j] + phase[i, j]) for j in range(grid.ndim)) for i in range(grid.ndim)]
    return amplitude * (torch.stack(waves) * bubble)[None]


class Case:
    """Two images on grids of their own, and a warp and an affine between them, as files."""

    def __init__(self, folder, fixed: Grid, moving: Grid) -> None:
        self.space, d = Space(fixed, moving), fixed.ndim
        self.names = {k: str(folder / f"{k}.nii.gz") for k in ("fixed", "moving", "warp")} | {"affine": str(folder / "affine.mat")}
        x = moving.identity(torch.zeros(1, dtype=torch.float64))
        picture = sum(torch.sin((7 + 2 * j) * x[:, j : j + 1] + j) for j in range(d)) / d
        self.moving = Image(picture.float(), moving)
        io.write_image(self.names["moving"], self.moving.data, moving)
        io.write_image(self.names["fixed"], torch.zeros(1, 1, *fixed.shape), fixed)
        io.write_warp(self.names["warp"], smooth(fixed, 1, 0.02), fixed)
        center = np.asarray(moving.to_world(torch.tensor(moving.extent).double().view(1, d, 1) / 2))[0, :, 0]
        start = np.asarray(fixed.to_world(torch.tensor(fixed.extent).double().view(1, d, 1) / 2))[0, :, 0]
        matrix = np.eye(d + 1)
        matrix[:d, :d] += 0.05 * np.random.default_rng(2).normal(size=(d, d))
        matrix[:d, d] = center - matrix[:d, :d] @ start
        io.write_affine(self.names["affine"], matrix)
        self.transform = io.read_transforms([self.names["warp"], self.names["affine"]])
        self.warped = self.moving.moved_by(framed(self.transform, fixed), fixed).data[0, 0].numpy()
        y = self.moving.locate(framed(self.transform, fixed)(fixed.identity(torch.zeros(1))), fixed)
        far = torch.tensor(moving.extent).view(1, -1, *(1,) * d)
        self.inside = ((y > 0.02) & (y < far - 0.02)).all(1)[0].numpy()
        assert self.inside.mean() > 0.5

    def points(self) -> torch.Tensor:
        """World points (1, d, n) inside the fixed image."""
        grid = self.space.fixed
        x = torch.rand(1, grid.ndim, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        return grid.to_world((0.1 + 0.8 * x) * torch.tensor(grid.extent).view(1, -1, 1))


CASES = {
    "oblique": (oblique((22, 20, 18), (1.0, 1.5, 2.0), flip=True), oblique((26, 24, 20), (1.0, 1.2, 1.8), angle=-0.2)),
    "straight": (oblique((22, 20, 18), (1.0, 1.5, 2.0), angle=0.0), oblique((26, 24, 20), (1.0, 1.2, 1.8), angle=0.0, flip=True)),
    "2d": (oblique((30, 26), (1.0, 1.4)), oblique((34, 30), (1.1, 1.2), angle=-0.2)),
}


@pytest.fixture(params=["oblique", "straight"])
def case(request, tmp_path):
    return Case(tmp_path, *CASES[request.param])


@pytest.fixture
def straight(tmp_path):
    return Case(tmp_path, *CASES["straight"])


def assert_agrees(case: Case, other: np.ndarray) -> None:
    assert np.abs(np.asarray(other) - case.warped)[case.inside].max() < 1e-4


def test_ants_warps_as_we_do(case, tmp_path):
    ants = pytest.importorskip("ants")
    fixed, moving = (ants.image_read(case.names[k]) for k in ("fixed", "moving"))
    assert_agrees(case, ants.apply_transforms(fixed, moving, [case.names["warp"], case.names["affine"]]).numpy())
    whole = str(tmp_path / "Composite.h5")
    write_transform(whole, case.transform, None, case.space)
    assert_agrees(case, ants.apply_transforms(fixed, moving, [whole]).numpy())
    text = str(tmp_path / "affine.txt")
    write_transform(text, io.read_transform(case.names["affine"]), None, case.space)
    assert_agrees(case, ants.apply_transforms(fixed, moving, [case.names["warp"], text]).numpy())


@pytest.mark.parametrize("name", CASES)
def test_simpleitk_warps_as_we_do(name, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    case = Case(tmp_path, *CASES[name])
    path = str(tmp_path / "c.h5")
    write_transform(path, case.transform, None, case.space)
    fixed, moving = (sitk.ReadImage(case.names[k], sitk.sitkFloat32) for k in ("fixed", "moving"))
    assert_agrees(case, sitk.GetArrayFromImage(sitk.Resample(moving, fixed, sitk.ReadTransform(path), sitk.sitkLinear)).T)


def test_greedy_warps_as_we_do(case, tmp_path):
    greedy = pytest.importorskip("picsl_greedy")
    path, out = str(tmp_path / "whole.nii.gz"), str(tmp_path / "out.nii.gz")
    write_transform(path, case.transform, None, case.space)
    greedy.Greedy3D().execute(f"-rf {case.names['fixed']} -rm {case.names['moving']} {out} -r {path}")
    assert_agrees(case, io.read_image(out).data[0, 0].numpy())


def test_fsl_reads_ours(case, tmp_path):
    """By fslpy, its own library."""
    pytest.importorskip("fsl.transform")
    from fsl.data.image import Image as FslImage
    from fsl.transform import fnirt, nonlinear
    from fsl.transform.flirt import fromFlirt, readFlirt

    src, ref = FslImage(case.names["moving"]), FslImage(case.names["fixed"])
    affine = io.read_transform(case.names["affine"])
    write_transform(tmp_path / "flirt.mat", affine, "fsl", case.space)
    matrix = fromFlirt(readFlirt(str(tmp_path / "flirt.mat")), src, ref, "world", "world")  # moving -> fixed
    assert np.allclose(np.linalg.inv(matrix), affine.matrix.numpy(), atol=1e-5)
    write_transform(tmp_path / "fnirt.nii.gz", case.transform, "fsl", case.space)
    field = nonlinear.DeformationField(str(tmp_path / "fnirt.nii.gz"), src, ref=ref, defType="relative")
    there = fnirt.fromFnirt(field, "world", "world")
    warped = nonlinear.applyDeformation(src, there, order=1, mode="nearest")
    assert_agrees(case, warped)


def test_afni_reads_ours(straight, tmp_path):
    """By nitransforms."""
    nt = pytest.importorskip("nitransforms")
    case = straight
    write_transform(tmp_path / "warp.nii.gz", case.transform, "afni", case.space)
    field = nt.nonlinear.DenseFieldTransform.from_filename(tmp_path / "warp.nii.gz", fmt="afni")
    x = case.space.fixed.to_world(case.space.fixed.identity(torch.zeros(1, dtype=torch.float64)))[0].reshape(3, -1)
    assert np.allclose(field.map(x.numpy().T), case.transform(x[None])[0].numpy().T, atol=1e-4)


def test_an_oblique_afni_affine_is_that_of_nitransforms(tmp_path):
    nt = pytest.importorskip("nitransforms")
    case = Case(tmp_path, *CASES["oblique"])
    affine = io.read_transform(case.names["affine"])
    write_transform(tmp_path / "a.aff12.1D", affine, None, case.space)
    read = nt.linear.load(tmp_path / "a.aff12.1D", fmt="afni", reference=case.names["fixed"], moving=case.names["moving"])
    assert np.allclose(read.matrix, affine.matrix.numpy(), atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_learn2reg_counts_in_voxels(name, tmp_path):
    """moving(x + u(x)), as its evaluation warps."""
    from scipy.ndimage import map_coordinates

    case = Case(tmp_path, *CASES[name])
    write_transform(tmp_path / "disp_0001_0002.npz", case.transform, None, case.space)
    field = np.load(tmp_path / "disp_0001_0002.npz")["arr_0"]
    assert field.shape == (*case.space.fixed.shape, case.space.fixed.ndim) and field.dtype == np.float32
    ends = np.moveaxis(field, -1, 0) + np.indices(case.space.fixed.shape)
    assert_agrees(case, map_coordinates(case.moving.data[0, 0].numpy(), ends, order=1, mode="nearest"))


WARPS = {"itk": "w.nii.gz", "h5": "w.h5", "fsl": "w.nii.gz", "afni": "w.nii.gz", "learn2reg": "w.npz", "disp": "disp_1_2.nii.gz"}
AFFINES = {"itk": "a.mat", "text": "a.tfm", "h5": "a.h5", "fsl": "a.mat", "afni": "a.aff12.1D"}
NAMED = {"h5": "itk", "text": "itk", "disp": "learn2reg"}


@pytest.mark.parametrize("form", WARPS)
def test_warps_there_and_back(straight, tmp_path, form):
    case, path, named = straight, tmp_path / WARPS[form], NAMED.get(form, form)
    write_transform(path, case.transform, named, case.space)
    x = case.points()
    assert torch.allclose(read_transform_as(str(path), named, case.space)(x), case.transform(x), atol=0.02)  # between voxels: linear
    on_voxels = case.space.fixed.to_world(case.space.fixed.identity(torch.zeros(1, dtype=torch.float64)))
    assert torch.allclose(read_transform_as(str(path), named, case.space)(on_voxels), case.transform(on_voxels), atol=2e-4)
    if form != "afni":  # the file's name or header tells
        assert torch.equal(read_transform_as(str(path), None, case.space)(x), read_transform_as(str(path), named, case.space)(x))


@pytest.mark.parametrize("form", AFFINES)
def test_affines_there_and_back(case, tmp_path, form):
    affine, path = io.read_transform(case.names["affine"]), tmp_path / AFFINES[form]
    write_transform(path, affine, NAMED.get(form, form), case.space)
    back = read_transform_as(str(path), "fsl" if form == "fsl" else None, case.space)  # a bare matrix does not name its tool
    assert isinstance(back, Affine) and np.allclose(back.matrix.numpy(), affine.matrix.numpy(), atol=1e-5)


def test_absolute_fields_of_fsl(straight, tmp_path):
    """FSL keeps either where a point goes or by how much; a file does not say which."""
    import nibabel as nib

    case, path = straight, tmp_path / "fnirt.nii.gz"
    write_transform(path, case.transform, "fsl", case.space)
    relative = nib.load(path)
    fixed = case.space.fixed
    x = np.moveaxis(np.indices(fixed.shape), 0, -1) * fixed.voxel
    x[..., 0] = (fixed.shape[0] - 1) * fixed.voxel[0] - x[..., 0]  # right-handed
    nib.save(nib.Nifti1Image((relative.get_fdata() + x).astype(np.float32), relative.affine), tmp_path / "absolute.nii.gz")
    a, b = (read_transform_as(str(p), "fsl", case.space) for p in (path, tmp_path / "absolute.nii.gz"))
    assert torch.allclose(a(case.points()), b(case.points()), atol=1e-3)


def test_the_commands(case, tmp_path, capsys):
    n, out = case.names, tmp_path
    images = ["--fixed", n["fixed"], "--moving", n["moving"]]

    def run(*words) -> int:
        with pytest.raises(SystemExit) as ended:
            main([str(w) for w in words])
        return int(ended.value.code or 0)

    assert run("compose", "-t", n["warp"], "-t", n["affine"], "-o", out / "c.h5") == 0
    assert run("convert", out / "c.h5", out / "whole.nii.gz") == 0
    assert run("convert", out / "whole.nii.gz", out / "f.nii.gz", "--to", "fsl", *images) == 0
    assert run("convert", out / "f.nii.gz", out / "again.nii.gz", *images) == 0
    assert run("invert", out / "whole.nii.gz", "-o", out / "back.nii.gz", "--moving", n["moving"]) == 0
    assert run("invert", n["affine"], "-o", out / "back.mat") == 0
    assert run("invert", n["affine"], "-o", out / "back.fsl.mat", "--to", "fsl", *images) == 0
    assert run("apply", n["moving"], "-t", out / "c.h5", "-r", n["fixed"], "-o", out / "w.nii.gz") == 0
    assert_agrees(case, io.read_image(out / "w.nii.gz").data[0, 0].numpy())
    there, back = (read_transform_as(str(out / k), None, Space()) for k in ("again.nii.gz", "back.nii.gz"))
    x = case.points()
    assert torch.allclose(there(x), case.transform(x), atol=0.05)
    middle = x[..., :20] * 0.3 + x.mean(2, keepdim=True) * 0.7
    assert float((there(back(there(middle))) - there(middle)).norm(dim=1).max()) < 0.1
    turned = read_transform_as(str(out / "back.fsl.mat"), "fsl", Space(case.space.moving, case.space.fixed))
    assert np.allclose(turned.matrix.numpy(), np.linalg.inv(io.read_transform(n["affine"]).matrix.numpy()), atol=1e-5)
    assert run("convert", out / "c.h5", out / "whole.nii.gz") == 3 and "--overwrite" in capsys.readouterr().err


def test_what_cannot_be_is_said(straight, tmp_path):
    import nibabel as nib

    case, oblique_case = straight, Space(*CASES["oblique"])
    warp, affine = io.read_transform(case.names["warp"]), io.read_transform(case.names["affine"])
    with pytest.raises(ConfigError, match="did you mean 'fsl'"):
        read_transform_as(case.names["warp"], "fls", case.space)
    with pytest.raises(ConfigError, match="pass moving=IMAGE"):
        write_transform(tmp_path / "x.npz", warp, None, Space(case.space.fixed))
    with pytest.raises(ConfigError, match="pass fixed=IMAGE"):
        write_transform(tmp_path / "x.nii.gz", affine, "itk", Space())
    with pytest.raises(OutputError, match="cannot hold a warp"):
        write_transform(tmp_path / "x.mat", Composed(warp, affine), "itk", case.space)
    with pytest.raises(InputError, match="oblique"):
        write_transform(tmp_path / "x.nii.gz", warp, "afni", oblique_case)
    with pytest.raises(ConfigError, match="3D images only"):
        write_transform(tmp_path / "x.mat", affine, "fsl", Space(*CASES["2d"]))
    with pytest.raises(ConfigError, match=r"ends in \.nii"):
        write_transform(tmp_path / "x.xfm", affine, None, case.space)
    field = np.zeros((*case.space.fixed.shape, 3), np.float32)
    nib.save(nib.Nifti1Image(field, np.eye(4)), tmp_path / "plain.nii.gz")
    with pytest.raises(ConfigError, match="from_="):
        read_transform_as(str(tmp_path / "plain.nii.gz"), None, case.space)
    coefficients = nib.Nifti1Image(field, np.eye(4))
    coefficients.header["intent_code"] = 2007
    nib.save(coefficients, tmp_path / "coef.nii.gz")
    with pytest.raises(InputError, match="fnirtfileutils"):
        read_transform_as(str(tmp_path / "coef.nii.gz"), None, case.space)
    np.savez(tmp_path / "small.npz", np.zeros((2, 2, 2, 3)))
    with pytest.raises(InputError, match="are expected"):
        read_transform_as(str(tmp_path / "small.npz"), None, case.space)
    for name, content in (("x.h5", b"\x89HDF\r\n"), ("y.npz", b"PK"), ("z.aff12.1D", b"1 2 3"), ("f.mat", b"1 0 0 0\n" * 4)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            read_transform_as(str(tmp_path / name), "fsl" if name == "f.mat" else None, case.space)
