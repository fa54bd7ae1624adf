"""The laws of images of other formats: the geometry is exact, voxels keep their values, and the gates are those of NIfTI."""

from __future__ import annotations

import locale
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import oblique

from rdmm import Grid, Image, io, mapping
from rdmm.cli.program import main
from rdmm.data.pair_list import image_stem
from rdmm.io.formats.simpleitk import from_sitk, is_sitk, to_sitk
from rdmm.types import ConfigError, InputError, OutputError, ResourceError

GRID = oblique((7, 6, 5), (1.0, 1.5, 2.0), flip=True)
RNG = np.random.default_rng(0)


def test_simpleitk_images_keep_voxels_and_geometry(tmp_path: Path) -> None:
    """As SimpleITK itself reads the NIfTI file of the same voxels, in both directions."""
    sitk = pytest.importorskip("SimpleITK")
    x = RNG.integers(-300, 300, GRID.shape).astype(np.int16)
    nib.save(nib.Nifti1Image(x, np.asarray(GRID.affine)), tmp_path / "x.nii")
    array, affine = from_sitk(sitk.ReadImage(str(tmp_path / "x.nii")))
    assert array.dtype == np.int16 and np.array_equal(array, x) and np.abs(affine - np.asarray(GRID.affine)).max() < 1e-5
    again = to_sitk(x, np.asarray(GRID.affine))
    assert is_sitk(again) and not is_sitk(x)
    there, back = sitk.ReadImage(str(tmp_path / "x.nii")), from_sitk(again)
    assert np.allclose(again.GetDirection(), there.GetDirection(), atol=1e-6)
    assert np.allclose(again.GetOrigin(), there.GetOrigin(), atol=1e-5)
    assert np.array_equal(back[0], x) and np.abs(back[1] - np.asarray(GRID.affine)).max() < 1e-12


def test_simpleitk_images_of_two_axes_of_volumes_and_of_components() -> None:
    pytest.importorskip("SimpleITK")
    flat = oblique((7, 6), (1.0, 1.5))
    x = RNG.random((7, 6, 3)).astype(np.float32)
    image = to_sitk(x, np.asarray(flat.affine), components=True)
    assert image.GetDimension() == 2 and image.GetNumberOfComponentsPerPixel() == 3
    array, affine = from_sitk(image)
    assert np.array_equal(array, x) and np.allclose(Grid((7, 6), affine[np.ix_([0, 1, 3], [0, 1, 3])]).affine, flat.affine)
    volumes = RNG.random((*GRID.shape, 4))
    image = to_sitk(volumes, np.asarray(GRID.affine))
    assert image.GetDimension() == 4 and np.array_equal(from_sitk(image)[0], volumes)
    assert np.allclose(from_sitk(image)[1], GRID.affine)
    sheared = np.asarray(GRID.affine) @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(OutputError, match="sheared"):
        to_sitk(x[:, :, :, None].repeat(2, 3)[..., 0], sheared)


SITK = (".nrrd", ".nhdr", ".mha", ".mhd")
GRIDS = {"2d": oblique((9, 8), (1.0, 1.5)), "3d": GRID}


def affine_4(grid: Grid) -> np.ndarray:
    affine = np.eye(4)
    affine[np.ix_([*range(grid.ndim), 3], [*range(grid.ndim), 3])] = np.asarray(grid.affine)
    return affine


def of_nifti(folder: Path, array: np.ndarray, grid: Grid, name: str = "x.nii") -> Path:
    nib.save(nib.Nifti1Image(array, affine_4(grid), dtype=array.dtype), folder / name)
    return folder / name


@pytest.fixture(params=GRIDS)
def grid(request: pytest.FixtureRequest) -> Grid:
    return GRIDS[request.param]


@pytest.mark.parametrize("ending", [*SITK, ".NRRD", ".mgz", ".mgh"])
def test_every_format_is_read_as_its_nifti_file(ending: str, grid: Grid, tmp_path: Path) -> None:
    """SimpleITK, or nibabel, writes the same image in both formats; voxels, place, and what is resampled onto it are the same."""
    x = RNG.integers(-300, 300, grid.shape).astype(np.int16)
    source, path = of_nifti(tmp_path, x, grid), tmp_path / f"y{ending}"
    if ending in (".mgz", ".mgh"):
        if grid.ndim == 2:
            pytest.skip("files of FreeSurfer have three axes")
        nib.save(nib.MGHImage(x, np.asarray(grid.affine)), path)
    else:
        sitk = pytest.importorskip("SimpleITK")
        sitk.WriteImage(sitk.ReadImage(str(source)), str(path))
    wanted, found = io.read_image(source), io.read_image(path)
    assert torch.equal(wanted.data, found.data) and np.allclose(wanted.grid.affine, found.grid.affine, atol=1e-5)
    assert wanted.grid.shape == io.read_grid(path).shape and np.array_equal(io.read_labels(path).data, x[None, None].astype(np.int64))


@pytest.mark.parametrize("ending", [*SITK, ".mgz", ".mgh"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "float32"])
def test_every_format_is_written_as_its_name_says(ending: str, dtype: str, grid: Grid, tmp_path: Path) -> None:
    """Another program reads the voxels and the place of the NIfTI file."""
    high = 2**40 if dtype == "int64" and ending in SITK else 200
    x = (RNG.random(grid.shape) * high).astype(dtype)
    path = tmp_path / f"x{ending}"
    image = Image(torch.from_numpy(x)[None, None], grid)
    image.save(path)
    if ending in SITK:
        sitk = pytest.importorskip("SimpleITK")
        array, affine = from_sitk(sitk.ReadImage(str(path)))
        nib.save(image.nibabel(), tmp_path / "x.nii")
        wanted = sitk.ReadImage(str(tmp_path / "x.nii"))
        assert np.allclose(affine, from_sitk(wanted)[1], atol=1e-5)
    else:
        loaded = nib.load(path)
        array, affine = np.asarray(loaded.dataobj), loaded.affine
        assert np.allclose(affine, image.nibabel().affine, atol=1e-4)
    assert np.array_equal(array.reshape(grid.shape), x)
    assert np.array_equal(io.read_image(path).data[0, 0].numpy(), x.astype(np.float32))
    with pytest.raises(OutputError, match="exists already"):
        image.save(path)
    image.save(path, overwrite=True)


def test_volumes_vectors_and_colors_of_other_formats(tmp_path: Path) -> None:
    """In each of them, moved by the identity and written as NIfTI: the same as from NIfTI; and from NIfTI into each."""
    pytest.importorskip("SimpleITK")
    volumes = RNG.random((*GRID.shape, 4)).astype(np.float32)
    image = nib.Nifti1Image(volumes, affine_4(GRID))
    image.header["pixdim"][4] = 2.5
    nib.save(image, tmp_path / "v.nii")
    nib.save(nib.Nifti1Image(volumes[..., None, :3], affine_4(GRID)), tmp_path / "u.nii")
    colors = np.ascontiguousarray((volumes[..., :3] * 255).astype(np.uint8)).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nib.save(nib.Nifti1Image(colors, affine_4(GRID)), tmp_path / "c.nii")
    for name in "vuc":
        source, there, back = tmp_path / f"{name}.nii", tmp_path / f"{name}.nrrd", tmp_path / f"{name}_back.nii"
        for a, b in ((source, there), (there, back)):
            mapping.apply(a, np.eye(4), source, b)
        a, b = nib.load(source), nib.load(back)
        assert a.shape == b.shape and np.allclose(np.asarray(a.dataobj).tolist(), np.asarray(b.dataobj).tolist(), atol=1e-4)
    assert nib.load(tmp_path / "v_back.nii").header["pixdim"][4] == 2.5
    with pytest.raises(InputError, match="colors"):
        io.read_image(tmp_path / "c.nrrd")
    with pytest.raises(OutputError, match="no vectors"):
        mapping.apply(tmp_path / "u.nii", np.eye(4), tmp_path / "u.nii", tmp_path / "u.mgz")


@pytest.mark.fault(123)
def test_damaged_files_of_other_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sitk = pytest.importorskip("SimpleITK")
    x = RNG.integers(0, 9, GRID.shape).astype(np.int16)
    for ending in (*SITK, ".mgz", ".mgh"):
        good = tmp_path / f"good{ending}"
        Image(torch.from_numpy(x)[None, None], GRID).save(good)
        (tmp_path / f"cut{ending}").write_bytes(good.read_bytes()[: len(good.read_bytes()) // 3])
        (tmp_path / f"text{ending}").write_text("no image")
        (tmp_path / f"empty{ending}").touch()
        for kind in ("cut", "text", "empty", "missing"):
            with pytest.raises(InputError, match=rf"{kind}{ending}"):
                io.read_image(tmp_path / f"{kind}{ending}")
    bomb = (tmp_path / "good.nrrd").read_bytes().replace(b"sizes: 7 6 5", b"sizes: 7000 6000 500")
    (tmp_path / "bomb.nrrd").write_bytes(bomb)
    with pytest.raises((InputError, ResourceError), match=r"bomb\.nrrd"):
        io.read_image(tmp_path / "bomb.nrrd")
    flat = re.sub(rb"ElementSpacing = [^\n]*", b"ElementSpacing = 1 0.0 2", (tmp_path / "good.mha").read_bytes())
    (tmp_path / "flat.mha").write_bytes(flat)
    with pytest.raises(InputError, match=r"flat\.mha"):
        io.read_image(tmp_path / "flat.mha")
    sitk.WriteImage(sitk.GetImageFromArray(np.full((5, 6, 7), np.nan, np.float32)), str(tmp_path / "nan.nrrd"))
    with pytest.raises(InputError, match=r"nan\.nrrd: no finite voxel"):
        io.read_image(tmp_path / "nan.nrrd")
    for start, said in (
        (b"\x89PNG", "a PNG picture; convert it"),
        (b"II*\0", "a TIFF picture"),
        (b"\xff\xd8\xff", "a JPEG"),
        (b"1 2 3", "text"),
    ):
        (tmp_path / "p.png").write_bytes(start + b" " * 600)
        with pytest.raises(InputError, match=said):
            io.read_image(tmp_path / "p.png")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    for use in (lambda: io.read_image(tmp_path / "good.nrrd"), lambda: Image(torch.ones(1, 1, *GRID.shape), GRID).save(tmp_path / "z.mha")):
        with pytest.raises(ConfigError, match=r"pip install 'rdmm\[itk\]'"):
            use()


def write_series(folder: Path, array: np.ndarray, name: str, kept: range) -> None:
    """Slices of a DICOM series, 2 mm apart along an oblique normal."""
    import SimpleITK as sitk

    before = locale.setlocale(locale.LC_ALL)  # GDCM's writer changes it
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in kept:
        image = sitk.GetImageFromArray(array[:, :, k].T)
        image.SetSpacing((1.0, 1.5))
        tags = {"0020|000e": f"1.2.{len(name)}", "0020|000d": "1.2", "0020|0032": f"10\\{20 - 1.2 * k:.6g}\\{30 + 1.6 * k:.6g}"}
        tags |= {"0020|0037": "1\\0\\0\\0\\0.8\\0.6", "0020|0013": str(k), "0008|103e": name, "0008|0060": "MR"}
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{name}{k}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)


@pytest.mark.fault(124)
def test_dicom_series(tmp_path: Path) -> None:
    pytest.importorskip("SimpleITK")
    x = RNG.integers(0, 900, GRID.shape).astype(np.int16)
    write_series(tmp_path, x, "T1", range(5))
    image = io.read_image(tmp_path)
    assert np.array_equal(image.data[0, 0].numpy(), x)
    wanted = np.array([[-1, 0, 0, -10], [0, -1.2, 1.2, -20], [0, 0.9, 1.6, 30], [0, 0, 0, 1]])
    assert np.allclose(image.grid.affine, wanted, atol=1e-4) and io.read_grid(tmp_path) == image.grid
    assert "kind: image" in CliRunner().invoke(main, ["info", str(tmp_path)], catch_exceptions=False).output
    assert len(io.sha256(tmp_path)) == 64
    write_series(tmp_path, x, "FLAIR", range(4))
    with pytest.raises(InputError, match=r"2 DICOM series: (T1 \(5 files\), FLAIR \(4 files\)|FLAIR \(4 files\), T1 \(5 files\))"):
        io.read_image(tmp_path)
    (tmp_path / "gap").mkdir()
    for k in (0, 1, 3, 4):
        (tmp_path / f"T1{k}.dcm").rename(tmp_path / f"gap/{k}.dcm")
    with pytest.raises(InputError, match="missing or not evenly spaced"):
        io.read_image(tmp_path / "gap")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no DICOM series"):
        io.read_image(tmp_path / "none")


def test_registration_reads_and_records_other_formats(tmp_path: Path) -> None:
    """The same result as from NIfTI, which rdmm report can read again; labels and masks, too."""
    pytest.importorskip("SimpleITK")
    grid = oblique((20, 18), (1.0, 1.4))
    a, b = np.meshgrid(*(np.linspace(-1, 1, n) for n in grid.shape), indexing="ij")
    blob = (np.exp(-4 * (a**2 + b**2)) * 200).astype(np.float32)
    found = {}
    for ending in (".nii.gz", ".nrrd"):
        for name, array in (("f", blob), ("m", np.roll(blob, 1, 0)), ("l", (blob > 100).astype(np.int32))):
            Image(torch.from_numpy(array)[None, None], grid).save(tmp_path / f"{name}{ending}")
        names = {k: str(tmp_path / f"{k}{ending}") for k in "fml"}
        out = tmp_path / ending[1:4]
        settings = ["affine=none", "optimizer.iterations=[2]", "optimizer.scales=[1.0]"]
        words = ["register", names["f"], names["m"], "--moving-labels", names["l"], "--fixed-mask", names["f"], "-o", f"{out}/", *settings]
        done = CliRunner().invoke(main, words, catch_exceptions=False)
        assert done.exit_code in (0, 5), done.output
        found[ending] = nib.load(out / "Warped.nii.gz").get_fdata()
    assert np.allclose(found[".nii.gz"], found[".nrrd"], atol=1e-3)
    done = CliRunner().invoke(main, ["report", str(out), "--overwrite"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "kind: image" in CliRunner().invoke(main, ["info", str(tmp_path / "f.nrrd")], catch_exceptions=False).output


@pytest.mark.parametrize("ending", SITK)
def test_displacement_fields_of_itk_in_other_formats(ending: str, grid: Grid, tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    u = torch.from_numpy(RNG.normal(size=(1, grid.ndim, *grid.shape)).astype(np.float32)) / 30
    io.write_warp(tmp_path / "w.nii.gz", u, grid)
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "w.nii.gz")), str(tmp_path / f"w{ending}"))
    a, b = (io.read_transform(str(tmp_path / name)) for name in ("w.nii.gz", f"w{ending}"))
    x = grid.to_world(grid.identity(torch.zeros(1, dtype=torch.float64)))
    assert torch.allclose(a(x), b(x), atol=1e-4) and float((a(x) - x).abs().max()) > 0.5
    said = CliRunner().invoke(main, ["info", str(tmp_path / f"w{ending}")], catch_exceptions=False).output
    assert "warp, fixed -> moving" in said


@pytest.mark.parametrize("name", ["a.b.nii.gz", "a.b.nii", "a.b.nrrd", "a.b.MHD", "a.b.mgz", "a.b"])
def test_pairs_are_named_without_endings(name: str) -> None:
    assert image_stem(Path("x", name)) == "a.b"
