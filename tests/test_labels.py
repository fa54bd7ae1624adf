"""The law of label maps: the numbers of labels come out as they went in, whatever their size, or an error names the number."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import oblique

from rdmm import Grid, Image, InputError, io, metrics
from rdmm.data.inputs import read_inputs
from rdmm.data.synthetic.label_images import intensities_of
from rdmm.optim.initializers import Regions
from rdmm.spatial.ops import sample
from rdmm.spatial.pair import Pair
from rdmm.spatial.transform import Identity
from rdmm.types import OutputError
from rdmm.workflows import transforms, transport

LARGE = {
    "uint8": [0, 1, 255],
    "int8": [-128, 0, 127],
    "uint16": [0, 40000, 65535],
    "int16": [-32768, 0, 32767],
    "uint32": [0, 312782546, 312782550, 614454277, 3000000000, 4000000007, 2**32 - 1],
    "int32": [-(2**31), 0, 16777216, 16777217, 2**31 - 1],
    "uint64": [0, 2**53 + 1, 720575940603464672, 720575940603464673, 2**63 - 1],
    "int64": [-(2**63), -1, 0, 2**40, 2**40 + 1, 2**53 + 1, 2**63 - 1],
    "float32": [0, 300, 16777215],
    "float64": [0, -7, 16777217, 2**40 + 1, 2**53],
}
GRID = oblique((8, 7, 6), (1.0, 1.5, 2.0))


def of_ids(ids, dtype: str, shape=GRID.shape, seed: int = 0) -> np.ndarray:
    """A map in which each number of ``ids`` occurs."""
    picks = np.random.default_rng(seed).permutation(np.arange(int(np.prod(shape))) % len(ids))
    return np.array(ids, dtype=dtype)[picks].reshape(shape)


def save(path, array, affine=None) -> str:
    nib.save(nib.Nifti1Image(array, np.asarray(GRID.affine) if affine is None else affine, dtype=array.dtype), path)
    return str(path)


@pytest.fixture
def identity(tmp_path) -> str:
    io.write_affine(tmp_path / "id.mat", np.eye(4))
    return str(tmp_path / "id.mat")


def stored(path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.fault(88)
@pytest.mark.parametrize("dtype", LARGE)
def test_apply_keeps_every_number_of_every_type(dtype: str, tmp_path, identity) -> None:
    array = of_ids(LARGE[dtype], dtype)
    name = save(tmp_path / "l.nii.gz", array)
    for names, out in (([identity], "a.nii.gz"), ([identity, identity], "b.nii")):
        transforms.apply(name, names, name, str(tmp_path / out), labels=True, invert=False, overwrite=False)
        found = stored(tmp_path / out)
        assert (
            found.dtype.kind in "iu"
            and (found.astype(object) == array.astype(np.int64 if dtype != "uint64" else dtype).astype(object)).all()
        )


@pytest.mark.fault(88)
def test_the_smallest_type_is_written(tmp_path) -> None:
    for ids, dtype in [
        ([0, 255], "u1"),
        ([0, 256], "i2"),
        ([0, 2**15], "u2"),
        ([-1, 128], "i2"),
        ([-1, 2**31], "i8"),
        ([0, 2**31], "u4"),
        ([0, 2**32], "i8"),
    ]:
        x = torch.zeros(1, 1, *GRID.shape, dtype=torch.int64)
        x[..., 0, 0, 0], x[..., 1, 0, 0] = ids
        io.write_image(tmp_path / "l.nii", x, GRID, integer=True)
        assert stored(tmp_path / "l.nii").dtype == np.dtype(dtype), ids
        assert torch.equal(io.read_labels(tmp_path / "l.nii").data, x)


@pytest.mark.fault(88)
@pytest.mark.parametrize(
    ("array", "name"), [(of_ids([0, 2**63], "uint64"), "9223372036854775808"), (of_ids([0, 2.0**60], "float64"), "1152921504606846976")]
)
def test_a_number_that_cannot_be_held_is_named(array: np.ndarray, name: str, tmp_path) -> None:
    with pytest.raises(InputError, match=name):
        io.read_labels(save(tmp_path / "l.nii", array))
    with pytest.raises(OutputError, match="NaN"):
        io.write_image(tmp_path / "x.nii", torch.full((1, 1, *GRID.shape), torch.nan), GRID, integer=True)


@pytest.mark.fault(88)
def test_labels_almost_whole_are_rounded_with_a_notice(tmp_path, caplog) -> None:
    array = of_ids([0, 1, 2, 40], "float64")
    name = save(tmp_path / "l.nii", array + 5e-5 * np.sign(array))
    assert np.array_equal(io.read_labels(name).data[0, 0].numpy(), array) and "rounded" in caplog.text
    with pytest.raises(InputError, match=r"whole numbers.*0\.5"):
        io.read_labels(save(tmp_path / "h.nii", np.full(GRID.shape, 0.5)))


@pytest.mark.fault(88)
@pytest.mark.parametrize(("shape", "voxel"), [((9, 8), (1.0, 2.0)), ((9, 8, 7), (1.0, 2.0, 1.3))])
def test_whole_numbers_are_sampled_as_floats_are(shape, voxel) -> None:
    """At random points, on ties, and outside: the same voxels as grid_sample chooses, to the bit."""
    grid, frame = oblique(shape, voxel), torch.tensor
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 200, (2, 3, *shape), generator=generator)
    far = frame(grid.extent).view(1, -1, 1)
    points = torch.cat(
        [
            (torch.rand(2, len(shape), 5000, generator=generator) * 1.6 - 0.3) * far,
            torch.arange(-4, 24) / 2 * frame(grid.spacing).view(1, -1, 1).repeat(2, 1, 1),
        ],
        2,
    )
    for outside in ("zero", "edge"):
        exact, float_ = (sample(x, points, grid, mode="nearest", outside=outside) for x in (values, values.float()))
        assert exact.dtype == torch.int64 and torch.equal(exact.float(), float_)


@pytest.mark.fault(88)
def test_dice_and_hausdorff_of_numbers_that_float32_merges() -> None:
    a = torch.from_numpy(of_ids([0, 16777216, 16777217], "int64"))[None, None]
    found = metrics.overlap(a, a, a, GRID.voxel)
    assert found["dice_per_label"] == {16777216: 1.0, 16777217: 1.0} and set(found["hd95_per_label"]) == {16777216, 16777217}


@pytest.mark.fault(88)
def test_every_input_of_labels_keeps_the_numbers(tmp_path) -> None:
    ids = [0, 312782546, 312782550, 4000000007]
    array = of_ids(ids, "uint32")
    name = save(tmp_path / "l.nii.gz", array)
    image = save(tmp_path / "i.nii.gz", np.random.default_rng(0).random(GRID.shape, dtype=np.float32))
    wanted = set(ids)
    inputs = read_inputs(image, image, fixed_labels=name, moving_labels=nib.load(name), regions=name, fixed_regions=name)
    in_memory = Image(torch.from_numpy(array.astype(np.float64))[None, None], GRID)
    again = read_inputs(image, image, fixed_labels=in_memory, moving_labels=in_memory)
    for labels in (inputs.fixed_labels, inputs.moving_labels, inputs.pair.regions, inputs.fixed_regions, again.fixed_labels):
        assert set(labels.data.unique().tolist()) == wanted
    assert intensities_of(inputs.fixed_labels).data.dtype == torch.float32
    assert transforms.evaluate([], name, name, None)["dice_per_label"] == dict.fromkeys(ids[1:], 1.0)
    rows = {312782546: [1.0, 0.0], 312782550: [0.0, 1.0]}
    h = Regions(rows, background=[0.5, 0.5], smoothing=0.0)(
        Pair(inputs.pair.fixed, inputs.pair.moving, regions=inputs.pair.regions)
    ).weights
    canonical = inputs.pair.regions.data[0, 0]
    assert torch.allclose(h[0, 0][canonical == 312782546], torch.tensor(1.0)) and torch.allclose(
        h[0, 1][canonical == 312782550], torch.tensor(1.0)
    )


@pytest.mark.fault(88)
def test_transport_keeps_the_numbers(tmp_path) -> None:
    array = np.zeros(GRID.shape, np.uint32)
    array[1:4, 1:5, 1:5], array[4:7, 1:5, 1:5] = 4000000006, 4000000007
    name, density = save(tmp_path / "l.nii.gz", array), save(tmp_path / "d.nii.gz", (array > 0).astype(np.float32))
    transport.transfer(density, density, name, str(tmp_path / "t.nii.gz"), blur=0.02, reach=None, overwrite=False)
    transport.barycenter([name, name], str(tmp_path / "b.nii.gz"), weights=[], labels=True, blur=0.05, overwrite=False)
    for out in ("t", "b"):
        assert set(np.unique(stored(tmp_path / f"{out}.nii.gz")).tolist()) == {0, 4000000006, 4000000007}


@pytest.mark.fault(88)
def test_a_grid_that_is_almost_the_images_is_the_images(tmp_path, caplog) -> None:
    """A hundredth of a voxel is tolerated; farther labels are resampled, with a notice; other dimensions are an error."""
    image = Image(torch.zeros(1, 1, *GRID.shape), GRID)
    array = of_ids([0, 5, 2**40], "int64")
    for shift, said in ((0.0005, False), (0.009, False), (0.02, True)):
        affine = np.array(GRID.affine)
        affine[0, 3] += shift
        caplog.clear()
        labels = io.read_labels(save(tmp_path / f"{shift}.nii", array, affine), image)
        assert labels.grid == GRID and np.array_equal(labels.data[0, 0].numpy(), array) and ("resampled" in caplog.text) is said
    finer = GRID.resized([15, 13, 11])
    name = save(tmp_path / "finer.nii", of_ids([1, 2**40], "int64", finer.shape), np.asarray(finer.affine))
    assert set(io.read_labels(name, image).data.unique().tolist()) == {1, 2**40}
    far = np.array(GRID.affine)
    far[:3, 3] += 1000
    with pytest.raises(InputError, match="do not overlap"):
        io.read_labels(save(tmp_path / "far.nii", array, far), image)
    with pytest.raises(InputError, match=r"3D.*2D"):
        io.read_labels(save(tmp_path / "l.nii", array), Image(torch.zeros(1, 1, 8, 7), Grid((8, 7), np.eye(3))))
    with pytest.raises(InputError, match="one of the two is wrong"):
        io.read_labels(save(tmp_path / "cut.nii", array[:5]), image)


@pytest.mark.fault(88)
def test_moved_labels_of_pairs_are_whole(grid) -> None:
    labels = Image(torch.randint(0, 9, (1, 1, *grid.shape)) + 2**40, grid)
    assert torch.equal(labels.moved_by(Identity(), mode="nearest").data, labels.data)


@pytest.mark.fault(26)
def test_strict_asks_labels_and_masks_too(tmp_path) -> None:
    """Every file of which the place in the world matters must say it."""
    image = save(tmp_path / "i.nii.gz", np.random.default_rng(0).random(GRID.shape, dtype=np.float32))
    bare = nib.Nifti1Image(of_ids([0, 1], "uint8"), None)
    bare.header["sform_code"] = bare.header["qform_code"] = 0
    nib.save(bare, tmp_path / "bare.nii")
    for role in ("fixed_labels", "moving_labels", "fixed_mask", "moving_mask", "regions"):
        with pytest.raises(InputError, match=r"bare.*no s-form"):
            read_inputs(image, image, **{role: str(tmp_path / "bare.nii")}, strict=True)
