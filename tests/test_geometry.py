"""Where a file says that its voxels lie: singular affines, units, the q-form, single slices."""

import logging

import nibabel as nib
import numpy as np
import pytest
import torch

from rdmm import Grid, InputError, io
from rdmm.data.inputs import read_inputs
from rdmm.io import read_grid
from rdmm.spatial.transform import Identity, framed

TURN = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
PARALLEL = np.array([[1.0, 2, 0], [2, 4.0000001, 0], [0, 0, 1]])

UNUSABLE = {
    "zero": 0 * TURN,
    "a zero column": TURN * [1, 0, 1],
    "a zero row": TURN * np.array([[1], [1], [0]]),
    "parallel axes": PARALLEL,
    "parallel axes of tiny voxels": 1e-7 * PARALLEL,
    "NaN": TURN * [1, np.nan, 1],
    "Inf": TURN + np.diag([0, np.inf, 0]),
    "1e38": 1e38 * TURN,
    "1e-38": 1e-38 * TURN,
}


def affine_of(linear, origin=0.0):
    matrix = np.eye(len(linear) + 1)
    matrix[:-1, :-1], matrix[:-1, -1] = linear, origin
    return matrix


@pytest.mark.fault(27)
@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_affines_are_no_grids(name):
    with pytest.raises(InputError, match="affine"):
        Grid((5, 6, 7), affine_of(UNUSABLE[name]))
    if name != "a zero row":
        with pytest.raises(InputError, match="affine"):
            Grid((5, 6), affine_of(UNUSABLE[name][:2, :2]))


@pytest.mark.fault(27)
@pytest.mark.parametrize("origin", [np.nan, np.inf, 1e38])
def test_origins_that_are_nowhere(origin):
    with pytest.raises(InputError, match="affine"):
        Grid((5, 6, 7), affine_of(TURN, origin))
    perspective = affine_of(TURN)
    perspective[3, 0] = 0.5
    with pytest.raises(InputError, match="last row"):
        Grid((5, 6, 7), perspective)


@pytest.mark.fault(27)
@pytest.mark.parametrize("scale", [[1, 1, 1], [1e-6, 1e-6, 1e-6], [1e4, 1e4, 1e4], [1e-4, 1, 1e3]])
def test_small_and_large_voxels_are_grids(scale):
    assert Grid((5, 6, 7), affine_of(TURN @ np.diag(scale))).voxel == pytest.approx(scale)


@pytest.mark.fault(27)
@pytest.mark.parametrize("scale", [5e-4, 1e-5, 1, 1e4])
def test_affines_of_any_scale_are_read(tmp_path, scale):
    io.write_affine(tmp_path / "a.mat", affine_of(scale * TURN))
    assert np.allclose(io.read_transform(str(tmp_path / "a.mat")).matrix, affine_of(scale * TURN), rtol=1e-6)


@pytest.mark.fault(27)
@pytest.mark.parametrize("name", ["zero", "parallel axes of tiny voxels", "1e-38"])
def test_singular_affines_are_refused(tmp_path, name):
    io.write_affine(tmp_path / "a.mat", affine_of(UNUSABLE[name]))
    with pytest.raises(InputError, match="singular"):
        io.read_transform(str(tmp_path / "a.mat"))


def save(path, array, affine, code=1, unit=2, **fields):
    """Save an image whose s-form is ``affine``, with fields of its header replaced."""
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    data = image.to_bytes()
    header = nib.Nifti1Header(data[:348], check=False)
    for key, value in {"xyzt_units": unit, **fields}.items():
        header[key] = value
    path.write_bytes(header.binaryblock + data[348:])
    return path


def voxels(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


STRAIGHT = affine_of(np.diag([4.0, 3, 2]), [-46, -30, 7])


@pytest.mark.fault(91)
@pytest.mark.parametrize(("unit", "edge"), [(1, 1e-3), (2, 1), (3, 1e3), (0, 1), (5, 1), (3 | 8, 1e3)])
def test_units_are_read_and_kept(tmp_path, unit, edge):
    """The same grid in millimeters, whatever the unit; results have the file's numbers and unit."""
    affine = affine_of(edge * STRAIGHT[:3, :3], edge * STRAIGHT[:3, 3])
    path = save(tmp_path / "x.nii", voxels((6, 7, 8)), affine, unit=unit)
    image = io.read_image(path)
    assert np.allclose(image.grid.affine, STRAIGHT)
    assert io.read_image(nib.load(path)).grid == image.grid
    io.write_image(tmp_path / "y.nii", image.data, image.grid)
    u = 0.01 * torch.randn(1, 3, 6, 7, 8)
    io.write_warp(tmp_path / "w.nii", u, image.grid)
    for name in ("y.nii", "w.nii"):
        stored = nib.load(tmp_path / name)
        assert np.allclose(stored.affine, affine)
        assert int(stored.header["xyzt_units"]) == (unit & 7 if unit & 7 in (1, 3) else 2)
    assert np.allclose(io.read_transform(str(tmp_path / "w.nii")).transform.displacement, u, atol=1e-6)


@pytest.mark.fault(91)
def test_ants_warps_by_our_warp_in_micrometers(tmp_path):
    ants = pytest.importorskip("ants")
    path = save(tmp_path / "x.nii", voxels((6, 7, 8)), 1e3 * STRAIGHT, unit=3)
    image = io.read_image(path)
    io.write_warp(tmp_path / "w.nii.gz", 0.05 * torch.randn(1, 3, 6, 7, 8), image.grid)
    theirs = ants.apply_transforms(*[ants.image_read(str(path))] * 2, [str(tmp_path / "w.nii.gz")]).numpy()
    ours = image.moved_by(framed(io.read_transform(str(tmp_path / "w.nii.gz")), image.grid)).data[0, 0].numpy()
    inside = theirs != 0
    assert inside.mean() > 0.5
    assert np.abs(theirs - ours)[inside].max() < 1e-3


QFORMS = {
    "handedness 0": {"pixdim": [0, 4, 3, 2, 0, 0, 0, 0]},
    "negative voxel sizes": {"pixdim": [1, -4, 3, -2, 0, 0, 0, 0]},
    "both": {"pixdim": [0, -4, -3, -2, 0, 0, 0, 0]},
    "handedness NaN": {"pixdim": [np.nan, 4, 3, 2, 0, 0, 0, 0]},
}


@pytest.mark.fault(26, 34)
@pytest.mark.parametrize("name", QFORMS)
def test_the_q_form_as_nifti1_says(tmp_path, name):
    path = save(tmp_path / "x.nii", voxels((6, 7, 8)), STRAIGHT, sform_code=0, **QFORMS[name])
    assert np.allclose(io.read_image(path, strict=True).grid.affine, STRAIGHT)


@pytest.mark.fault(26, 34)
def test_a_left_handed_q_form_and_a_long_quaternion(tmp_path):
    mirrored = affine_of(STRAIGHT[:3, :3] @ np.diag([-1, 1, 1]), STRAIGHT[:3, 3])
    path = save(tmp_path / "x.nii", voxels((6, 7, 8)), mirrored, sform_code=0)
    assert np.allclose(io.read_image(path).grid.affine, mirrored)
    half_turn = affine_of(STRAIGHT[:3, :3] @ np.diag([-1, -1, 1]), STRAIGHT[:3, 3])
    path = save(tmp_path / "y.nii", voxels((6, 7, 8)), half_turn, sform_code=0, quatern_d=1.5)
    assert np.allclose(io.read_image(path).grid.affine, half_turn)


@pytest.mark.fault(27, 34)
@pytest.mark.parametrize("name", [n for n in UNUSABLE if n != "a zero column"])
def test_an_unusable_s_form(tmp_path, caplog, name):
    """It gives way to a good q-form; without one, the file is refused."""
    sform = affine_of(UNUSABLE[name]).astype(np.float32)
    rows = {f"srow_{k}": sform[i] for i, k in enumerate("xyz")}
    path = save(tmp_path / "x.nii", voxels((6, 7, 8)), STRAIGHT, **rows)
    with caplog.at_level(logging.WARNING):
        assert np.allclose(io.read_image(path).grid.affine, STRAIGHT)
        assert np.allclose(read_grid(path).affine, STRAIGHT)
    assert "the q-form is used" in caplog.text
    path = save(tmp_path / "y.nii", voxels((6, 7, 8)), STRAIGHT, qform_code=0, **rows)
    for read in (io.read_image, io.read_labels, read_grid, nib.load):
        with pytest.raises(InputError, match=r"y\.nii.*affine"):
            io.read_image(read(path)) if read is nib.load else read(path)


@pytest.mark.fault(34)
@pytest.mark.parametrize("code", [1, 2, 3, 4])
def test_the_code_of_the_s_form_is_kept(tmp_path, code):
    image = io.read_image(save(tmp_path / "x.nii", voxels((6, 7, 8)), STRAIGHT, code=code))
    io.write_image(tmp_path / "y.nii", image.data, image.grid)
    assert int(nib.load(tmp_path / "y.nii").header["sform_code"]) == code
    io.write_image(tmp_path / "z.nii", image.canonical().data, image.grid.canonical(), like=image.grid)
    assert int(nib.load(tmp_path / "z.nii").header["sform_code"]) == code


def turned(axis, degrees):
    """Rotation (3, 3) about an axis of the world."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.roll(np.array([[1, 0, 0], [0, c, -s], [0, s, c]]), axis, (0, 1))


PLANES = {
    "axial": np.eye(3),
    "coronal": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "sagittal": np.array([[0, 0, -1.0], [1, 0, 0], [0, 1, 0]]),
    "oblique 50": turned(0, 50),
    "oblique 45": turned(0, 45),
    "twice oblique": turned(1, 25) @ turned(0, -35),
}
SIZES = np.diag([2.0, 3, 5])


def slice_files(tmp_path, name):
    """One slice (8, 6) stored in five ways: thin along each axis, mirrored, and turned by 90 degrees."""
    axes, origin, array = PLANES[name] @ SIZES, np.array([-20.0, 15, 33]), voxels((8, 6))
    plain = affine_of(axes, origin)
    first, middle = plain[:, [2, 0, 1, 3]], plain[:, [0, 2, 1, 3]]
    mirrored = affine_of(axes @ np.diag([-1, 1, 1]), origin + 7 * axes[:, 0])
    swapped = plain[:, [1, 0, 2, 3]]
    return [
        save(tmp_path / "z.nii", array[:, :, None], plain),
        save(tmp_path / "y.nii", array[:, None, :], middle),
        save(tmp_path / "x.nii", array[None, :, :], first),
        save(tmp_path / "m.nii", array[::-1, :, None].copy(), mirrored),
        save(tmp_path / "t.nii", array.T[:, :, None].copy(), swapped),
    ]


@pytest.mark.fault(21, 106)
@pytest.mark.parametrize("name", PLANES)
def test_single_slices_of_any_plane(tmp_path, name):
    """However a slice is stored, it is the same image in its own plane; results are stored as its file."""
    files = slice_files(tmp_path, name)
    images = [io.read_image(f) for f in files]
    assert images[0].grid.voxel == pytest.approx((2, 3))
    for path, image in zip(files, images, strict=True):
        moved = images[0].moved_by(framed(Identity(), image.grid), image.grid)
        assert torch.allclose(moved.data, image.data, atol=1e-4)
        turned_grid = image.grid.canonical()
        assert np.allclose(turned_grid.affine, Grid.placed(turned_grid.placement).affine)
        u = 0.01 * torch.randn(1, 2, *image.grid.shape)
        io.write_image(tmp_path / "o.nii", image.data, image.grid)
        io.write_warp(tmp_path / "w.nii", u, image.grid)
        stored, warp = nib.load(path), nib.load(tmp_path / "w.nii")
        assert np.array_equal(nib.load(tmp_path / "o.nii").get_fdata(), stored.get_fdata())
        assert np.allclose(nib.load(tmp_path / "o.nii").affine, stored.affine)
        assert warp.shape == (*stored.shape, 1, 2) and np.allclose(warp.affine, stored.affine)
        assert np.allclose(io.read_transform(str(tmp_path / "w.nii")).transform.displacement, u, atol=1e-6)


@pytest.mark.fault(106)
def test_axial_slices_have_the_coordinates_of_the_world(tmp_path):
    affine = affine_of(turned(2, 20) @ SIZES, [-20, 15, 33])
    grid = io.read_image(save(tmp_path / "z.nii", voxels((8, 6, 1)), affine)).grid
    assert np.array_equal(grid.affine, nib.load(tmp_path / "z.nii").affine[np.ix_([0, 1, 3], [0, 1, 3])])


@pytest.mark.fault(106)
@pytest.mark.parametrize(("one", "other"), [(a, b) for a in PLANES for b in PLANES if a < b])
def test_slices_of_two_planes_are_refused(tmp_path, one, other):
    files = [save(tmp_path / f"{k}.nii", voxels((8, 6, 1)), affine_of(PLANES[n] @ SIZES)) for k, n in enumerate((one, other))]
    with pytest.raises(InputError, match=r"fixed and moving are slices of different planes, \w+.* and \w+"):
        read_inputs(*files)
    images = [io.read_image(f) for f in files]
    with pytest.raises(InputError, match="different planes"):
        images[0].moved_by(framed(Identity(), images[1].grid), images[1].grid)


@pytest.mark.fault(106)
def test_a_warp_of_another_plane_is_refused(tmp_path):
    files = [save(tmp_path / f"{n}.nii", voxels((8, 6, 1)), affine_of(PLANES[n] @ SIZES)) for n in ("axial", "coronal")]
    axial, coronal = (io.read_image(f) for f in files)
    io.write_warp(tmp_path / "w.nii.gz", torch.zeros(1, 2, 8, 6), coronal.grid)
    warp = io.read_transform(str(tmp_path / "w.nii.gz"))
    assert torch.equal(coronal.moved_by(framed(warp, coronal.grid)).data, coronal.data)
    with pytest.raises(InputError, match="the warp and the image are slices of different planes, coronal and axial"):
        framed(warp, axial.grid)
    with pytest.raises(InputError, match="different planes, coronal and axial"):
        read_inputs(files[0], files[0], initial=str(tmp_path / "w.nii.gz"))


@pytest.mark.fault(106)
def test_a_slice_without_a_thickness(tmp_path):
    affine = affine_of(SIZES)
    affine[2, 2] = 0
    path = save(tmp_path / "z.nii", voxels((8, 6, 1)), affine_of(SIZES), qform_code=0, srow_z=affine[2])
    image = io.read_image(path)
    assert image.grid.voxel == pytest.approx((2, 3))
    io.write_image(tmp_path / "o.nii", image.data, image.grid)
    assert np.allclose(nib.load(tmp_path / "o.nii").affine, affine_of(np.diag([2, 3, 2.5])))


@pytest.mark.fault(106)
@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 1, 8), (1, 1, 1)])
def test_lines_are_no_images(tmp_path, shape):
    with pytest.raises(InputError, match="2D or 3D image is expected"):
        io.read_image(save(tmp_path / "x.nii", voxels(shape), STRAIGHT))
