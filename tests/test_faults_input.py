"""Faults 1 to 36 of the reliability contract: what each faulty input gets. The number of the fault is in each name."""

import gzip
import logging
import struct
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import blobs

import rdmm
from rdmm import Grid, Image, InputError, ResourceError, io
from rdmm.data.inputs import read_inputs

SHAPE = (20, 22, 18)
FAST = {"optimizer__scales": [0.5, 1.0], "optimizer__iterations": [12, 6], "affine__iterations": 15}
PLAIN = FAST | {"affine__models": ["affine"], "affine__init": "header"}  # an affine stage without a search for the rotation


def make_picture(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return blobs(Grid.unit(shape), seed)[0, 0].numpy().astype(np.float32)


def make_deformed_picture() -> np.ndarray:
    """The picture under a known affine map: a moving image for it."""
    from scipy.ndimage import affine_transform

    matrix = np.array([[1.05, 0.06, 0], [-0.05, 0.96, 0], [0, 0.03, 1.0]])
    return affine_transform(make_picture(), matrix, offset=[-0.8, 0.9, 0.4], order=1)


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.nii.gz"
    nib.save(nib.Nifti1Image(make_picture(), np.diag([2.0, 2, 2, 1])), path)
    return path


def save_nifti(path, array, affine=None, **header):
    image = nib.Nifti1Image(array, np.diag([2.0, 2, 2, 1]) if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def assert_refused(path, message, **keywords):
    with pytest.raises(InputError, match=message) as caught:
        io.read_image(path, **keywords)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.fault(1)
def test_01_missing_file_names_the_nearest(good):
    assert_refused(good.with_name("godd.nii.gz"), r"no such file.*good\.nii\.gz")
    assert_refused(good.parent / "nowhere" / "x.nii", "no folder")


@pytest.mark.fault(2)
def test_02_directory(tmp_path):
    (tmp_path / "x.nii.gz").mkdir()
    assert_refused(tmp_path / "x.nii.gz", "is a directory")


@pytest.mark.fault(3)
def test_03_empty_file(tmp_path):
    (tmp_path / "x.nii.gz").touch()
    assert_refused(tmp_path / "x.nii.gz", "empty")


@pytest.mark.fault(4)
def test_04_text_and_other_formats(tmp_path):
    path = tmp_path / "x.nii.gz"
    for content, message in (
        (gzip.compress(b"hello"), "text"),
        (b"hello " * 100, "text"),
        (b"\x89PNG" + bytes(500), "PNG"),
        (bytes(128) + b"DICM" + bytes(400), "DICOM"),
    ):
        path.write_bytes(content)
        assert_refused(path, f"not a NIfTI file but.*{message}")


@pytest.mark.fault(5)
def test_05_truncated_gz(good):
    good.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    assert_refused(good, "truncated|corrupted")


@pytest.mark.fault(6)
def test_06_truncated_nii(tmp_path):
    path = save_nifti(tmp_path / "x.nii", make_picture())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert_refused(path, f"truncated.*{len(data)} bytes")


@pytest.mark.fault(7)
def test_07_bit_flips_are_never_passed_over(good):
    """Each of 100 random flips is refused, or changed nothing that is read."""
    original, reference = good.read_bytes(), io.read_image(good)
    rng = np.random.default_rng(0)
    caught = 0
    for _ in range(100):
        position, bit = int(rng.integers(len(original))), int(rng.integers(8))
        data = bytearray(original)
        data[position] ^= 1 << bit
        good.write_bytes(data)
        try:
            image = io.read_image(good)
        except InputError:
            caught += 1
            continue
        assert torch.equal(image.data, reference.data)
        assert image.grid == reference.grid
    assert caught > 95


@pytest.mark.fault(7)
def test_07_names_the_crc(good):
    data = bytearray(good.read_bytes())
    data[-8] ^= 1
    good.write_bytes(data)
    assert_refused(good, "CRC")


@pytest.mark.fault(8)
def test_08_giant_header(tmp_path):
    path = save_nifti(tmp_path / "x.nii", make_picture())
    data = bytearray(path.read_bytes())
    struct.pack_into("<4h", data, 40, 3, 30000, 30000, 30000)
    path.write_bytes(data)
    assert_refused(path, "30000x30000x30000")
    (tmp_path / "x.nii.gz").write_bytes(gzip.compress(bytes(data)))
    assert_refused(tmp_path / "x.nii.gz", "30000x30000x30000")
    with pytest.raises(ResourceError, match="GiB"):
        read_inputs(path, path)


@pytest.mark.fault(9, 10, 11, 12, 13)
def test_09_to_13_not_finite(tmp_path):
    for name, value, where in (("nan", np.nan, [(9, 9, 9)]), ("inf", np.inf, [(3, 4, 5)]), ("many", np.nan, list(np.ndindex(5, 5, 18)))):
        array = make_picture()
        for index in where:
            array[index] = value
        path = save_nifti(tmp_path / f"{name}.nii.gz", array)
        assert_refused(path, rf"{len(where)} voxels? (is|are) NaN or Inf .first at")
        assert torch.isfinite(io.read_image(path, nan="zero").data).all()
        masked = io.read_image(path, nan="mask")
        assert float((masked.mask == 0).sum()) == len(where)
    assert_refused(save_nifti(tmp_path / "all.nii.gz", np.full(SHAPE, np.nan, np.float32)), "no finite voxel", nan="zero")
    with pytest.raises(rdmm.ConfigError, match="nan must be"):
        io.read_image(path, nan="drop")


@pytest.mark.fault(9)
def test_09_masked_nan_registers(tmp_path, good):
    array = make_picture()
    array[9, 9, 9] = np.nan
    path = save_nifti(tmp_path / "nan.nii.gz", array)
    result = rdmm.register(fixed=good, moving=path, nan="mask", **PLAIN)
    assert torch.isfinite(result.warped.data).all()


@pytest.mark.parametrize("which", ["fixed", "moving", "both"])
@pytest.mark.fault(14, 15, 16)
def test_14_to_16_constant_images(tmp_path, good, which):
    flat = save_nifti(tmp_path / "flat.nii.gz", np.full(SHAPE, 7, np.float32))
    with pytest.raises(InputError, match=r"flat\.nii\.gz: no contrast \(std=0\)"):
        rdmm.register(fixed=good if which == "moving" else flat, moving=good if which == "fixed" else flat)


@pytest.mark.fault(17)
def test_17_dimensions_must_agree(tmp_path, good):
    flat = save_nifti(tmp_path / "2d.nii.gz", make_picture(shape=(20, 22)))
    with pytest.raises(InputError, match=r"good\.nii\.gz \(20, 22, 18\) is 3D but moving .*2d\.nii\.gz \(20, 22\) is 2D"):
        read_inputs(good, flat)
    assert read_inputs(flat, flat).pair.fixed.grid.ndim == 2


@pytest.mark.fault(18, 19)
def test_18_and_19_four_dimensions(tmp_path):
    path = save_nifti(tmp_path / "4d.nii.gz", np.stack([make_picture(0), make_picture(1)], -1))
    assert_refused(path, "2 volumes")
    assert_refused(path, "volumes go from 0 to 1", volume=2)
    assert torch.allclose(io.read_image(path, volume=1).data[0, 0], torch.from_numpy(make_picture(1)))
    assert io.read_image(save_nifti(tmp_path / "one.nii.gz", make_picture()[..., None])).data.shape == (1, 1, *SHAPE)


@pytest.mark.fault(20)
def test_20_tiny(tmp_path):
    assert_refused(save_nifti(tmp_path / "tiny.nii.gz", np.random.rand(2, 2, 2).astype(np.float32)), "at least 4 voxels")
    small = [save_nifti(tmp_path / f"{i}.nii.gz", make_picture(i, (6, 6, 6))) for i in range(2)]
    result = rdmm.register(fixed=small[0], moving=small[1], **FAST)
    assert torch.isfinite(result.warped.data).all()


@pytest.mark.fault(21, 106)
def test_21_single_slice_is_2d(tmp_path, caplog):
    path = save_nifti(tmp_path / "slab.nii.gz", make_picture(shape=(20, 22))[..., None])
    with caplog.at_level(logging.WARNING):
        assert io.read_image(path).grid.ndim == 2
    assert "treated as 2D" in caplog.text
    assert io.read_image(save_nifti(tmp_path / "x.nii.gz", make_picture(shape=(20, 22))[None])).grid.shape == (20, 22)


@pytest.mark.fault(22)
def test_22_rgb(tmp_path):
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert_refused(save_nifti(tmp_path / "rgb.nii.gz", rgb), "RGB.*scalar")


@pytest.mark.fault(23)
def test_23_complex(tmp_path):
    assert_refused(save_nifti(tmp_path / "c.nii.gz", make_picture().astype(np.complex64)), "complex")


@pytest.mark.fault(24)
def test_24_types_give_the_same_result(tmp_path):
    whole = np.round(make_picture() * 200)
    other = np.round(make_picture(1) * 200)
    warped = []
    for dtype in (np.float32, np.uint8, np.int16, np.int64, np.float64):
        paths = []
        for name, array in (("f", whole), ("m", other)):
            image = nib.Nifti1Image(array.astype(dtype), np.eye(4), dtype=dtype)
            nib.save(image, tmp_path / f"{name}_{np.dtype(dtype).name}.nii.gz")
            paths.append(tmp_path / f"{name}_{np.dtype(dtype).name}.nii.gz")
        warped.append(rdmm.register(fixed=paths[0], moving=paths[1], **PLAIN).warped.data)
    for w in warped[1:]:
        assert float((w - warped[0]).abs().max()) < 1e-5 * 200


def patch_header(path, offset: int, *values: float):
    data = bytearray(path.read_bytes())
    struct.pack_into(f"<{len(values)}f", data, offset, *values)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("slope", [np.nan, np.inf, 0.0])
@pytest.mark.fault(25)
def test_25_bad_slope(tmp_path, caplog, slope):
    path = patch_header(save_nifti(tmp_path / "x.nii", np.round(make_picture() * 100).astype(np.int16)), 112, slope)
    with caplog.at_level(logging.WARNING):
        assert torch.allclose(io.read_image(path).data[0, 0], torch.from_numpy(np.round(make_picture() * 100)))
    assert "treated as 1" in caplog.text


@pytest.mark.fault(26)
def test_26_no_geometry(tmp_path, caplog):
    path = save_nifti(tmp_path / "x.nii", make_picture())
    data = bytearray(path.read_bytes())
    struct.pack_into("<2h", data, 252, 0, 0)
    struct.pack_into("<3f", data, 80, 0, 0, 0)
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert io.read_image(path).grid.voxel == (1, 1, 1)
    assert "no s-form" in caplog.text
    assert_refused(path, "strict=True", strict=True)


@pytest.mark.fault(27)
def test_27_singular_affine(tmp_path):
    path = patch_header(save_nifti(tmp_path / "x.nii", make_picture()), 280, 0, 0, 0, 0)
    assert_refused(path, "singular")


@pytest.mark.fault(28)
def test_28_sheared_affine_works_inside_and_is_refused_by_itk_files(tmp_path):
    affine = np.diag([2.0, 2, 2, 1])
    affine[0, 1] = 0.8 * 2
    moving = save_nifti(tmp_path / "m.nii", make_picture(), affine)
    fixed = save_nifti(tmp_path / "f.nii", make_picture())
    assert torch.isfinite(rdmm.register(fixed=fixed, moving=moving, **PLAIN).warped.data).all()
    with pytest.raises(rdmm.OutputError, match="sheared"):
        rdmm.register(fixed=moving, moving=fixed, **PLAIN)


def flip_first_axis(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same image, stored with its first axis the other way round."""
    change = np.eye(4)
    change[0, 0], change[0, 3] = -1, array.shape[0] - 1
    return array[::-1].copy(), affine @ change


@pytest.mark.fault(29)
def test_29_storage_order_does_not_matter(tmp_path):
    affine = np.diag([2.0, 2, 2, 1])
    arrays = [make_picture(), make_deformed_picture()]
    plain = [save_nifti(tmp_path / f"p{i}.nii", a, affine) for i, a in enumerate(arrays)]
    turned = [save_nifti(tmp_path / f"t{i}.nii", *flip_first_axis(a, affine)) for i, a in enumerate(arrays)]
    a, b = (rdmm.register(fixed=f, moving=m, **FAST) for f, m in (plain, turned))
    points = a.pair.fixed.grid.to_world(a.pair.fixed.grid.identity(torch.zeros(1, dtype=torch.float64)))
    difference = (a.transform(points) - b.transform(points)).abs().max()
    assert float(difference) < 1e-4  # mm
    a.save(tmp_path / "a_")
    b.save(tmp_path / "b_")
    for i in range(2):
        stored = nib.load(tmp_path / f"{'ab'[i]}_Warped.nii.gz")
        assert np.allclose(stored.affine, nib.load((plain, turned)[i][0]).affine)


@pytest.mark.parametrize("kind", ["oblique", "anisotropic"])
@pytest.mark.fault(30, 31)
def test_30_and_31_geometry_does_not_cost_accuracy(tmp_path, kind):
    """A known translation is recovered as well on a rotated or an anisotropic grid as on a plain one."""
    shape = (20, 22, 18) if kind == "oblique" else (24, 24, 8)
    affine = np.diag([2.0, 2, 2, 1]) if kind == "oblique" else np.diag([1.5, 1.5, 5, 1])
    if kind == "oblique":
        c, s = np.cos(0.35), np.sin(0.35)
        affine[:2, :2] = affine[:2, :2] @ [[c, -s], [s, c]]
    shift = np.eye(4)
    shift[:3, 3] = [3.0, -2, 2]
    array = make_picture(3, shape)
    fixed, moving = save_nifti(tmp_path / "f.nii", array, affine), save_nifti(tmp_path / "m.nii", array, shift @ affine)
    result = rdmm.register(fixed=fixed, moving=moving, init="header", **FAST)
    grid = result.pair.fixed.grid
    middle = torch.as_tensor(grid.corners().mean(0))[None, :, None]
    assert (result.transform(middle) - middle)[0, :, 0].tolist() == pytest.approx([3, -2, 2], abs=0.15)


@pytest.mark.fault(32)
def test_32_other_grid_for_the_moving_image(tmp_path, good):
    other = Image(torch.from_numpy(make_picture(1, (26, 18, 24)))[None, None], Grid((26, 18, 24), np.diag([1.6, 2.4, 1.5, 1])))
    result = rdmm.register(fixed=good, moving=other, **PLAIN)
    assert result.warped.grid.shape == SHAPE
    files = result.save(tmp_path / "out_")
    assert nib.load(tmp_path / "out_InverseWarped.nii.gz").shape == (26, 18, 24)
    assert files[-1].name.endswith("run.json")


@pytest.mark.fault(33)
def test_33_no_overlap(tmp_path, good):
    far = np.diag([2.0, 2, 2, 1])
    far[0, 3] = 1000
    path = save_nifti(tmp_path / "far.nii.gz", make_picture(), far)
    with pytest.raises(InputError, match=r"do not overlap.*0\.\.38.*1000\.\.1038.*init=\"com\""):
        rdmm.register(fixed=good, moving=path)
    result = rdmm.register(fixed=good, moving=path, init="com", **FAST)
    middle = torch.tensor([[[19.0], [21], [17]]], dtype=torch.float64)
    assert float((result.transform(middle) - middle)[0, 0, 0]) == pytest.approx(1000, abs=1)


@pytest.mark.fault(34)
def test_34_forms_that_disagree(tmp_path, caplog):
    image = nib.Nifti1Image(make_picture(), np.eye(4))
    image.set_sform(np.diag([2.0, 2, 2, 1]), 1)
    image.set_qform(np.diag([3.0, 3, 3, 1]), 1)
    nib.save(image, tmp_path / "x.nii")
    with caplog.at_level(logging.WARNING):
        assert io.read_image(tmp_path / "x.nii").grid.voxel == pytest.approx((2, 2, 2))
    assert "disagree" in caplog.text


@pytest.mark.fault(35)
def test_35_memory_is_estimated_before_the_start(tmp_path):
    header = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).header
    header.set_data_shape((512, 512, 512))
    data = header.binaryblock + bytes(4)
    path = tmp_path / "big.nii.gz"
    with gzip.open(path, "wb", compresslevel=1) as f:
        f.write(data)
        for _ in range(128):
            f.write(bytes(1 << 20))
    code = (
        "import resource, sys, time; from rdmm.data.inputs import read_inputs; from rdmm.types import ResourceError; import psutil\n"
        "resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2 * 2**30,) * 2)\n"
        "try: read_inputs(sys.argv[1], sys.argv[1])\n"
        "except ResourceError as e: print(e); sys.exit(e.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "512x512x512" in done.stdout
    assert "GiB" in done.stdout


@pytest.mark.parametrize("similarity", ["ncc", "lncc", "ssd"])
@pytest.mark.fault(36)
def test_36_intensity_scale_does_not_matter(tmp_path, similarity):
    arrays, shifts = [make_picture(), make_deformed_picture()], []
    for scale, offset in ((1.0, 0.0), (1e6, -1000.0), (1e-6, 0.0)):
        paths = [save_nifti(tmp_path / f"{i}.nii", (a * scale + offset).astype(np.float32)) for i, a in enumerate(arrays)]
        search = FAST if similarity == "lncc" else PLAIN  # the affine stage is the same for all
        result = rdmm.register(fixed=paths[0], moving=paths[1], similarity=similarity, similarity_weight=0.1, **search)
        points = result.pair.fixed.grid.to_world(result.pair.fixed.grid.identity(torch.zeros(1, dtype=torch.float64)))
        shifts.append(result.transform(points))
    for other in shifts[1:]:
        assert float((other - shifts[0]).abs().mean()) < 0.05
