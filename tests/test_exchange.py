"""Images of other libraries and arrays, into a registration and out of it: exactly as if they were written to files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

import rdmm
from rdmm import ConfigError, Grid, Image, InputError, io
from rdmm.data.inputs import read_inputs
from rdmm.io.exchange import image_source
from rdmm.io.formats.simpleitk import from_sitk
from rdmm.registration.arguments import read_arguments, to_overrides
from rdmm.registration.entry import compose_settings
from tests.conftest import oblique

GRIDS = {
    "2d": oblique((14, 11), (1.5, 0.8)),
    "2d turned": oblique((14, 11), (1.5, 0.8), flip=True),
    "3d": oblique((9, 8, 7), (1.0, 1.3, 2.5)),
    "3d turned": oblique((9, 8, 7), (1.0, 1.3, 2.5), angle=2.0, flip=True),
}
LIBRARIES = {"simpleitk": "SimpleITK", "ants": "ants", "nibabel": "nibabel"}
NONE = {"spacing": None, "affine": None, "moving_spacing": None, "moving_affine": None}
QUICK = {"affine": "none", "optimizer": {"scales": [1.0], "iterations": [3]}}


def some_image(grid: Grid, channels: int = 1) -> Image:
    return Image(torch.rand(1, channels, *grid.shape), grid)


def convert(image: Image, library: str) -> object:
    if importlib.util.find_spec(LIBRARIES[library]) is None:
        pytest.skip(f"{library} is not installed")
    return getattr(image, library)()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", GRIDS)
def test_images_of_other_libraries_are_read_as_their_files(kind: str, library: str, tmp_path: Path) -> None:
    """Written by the other library and read here, written here and read by it, and passed in memory: one grid, the same values."""
    image = some_image(GRIDS[kind])
    path = image.save(tmp_path / "image.nii.gz")
    other = convert(image, library)
    writers = {
        "simpleitk": lambda: importlib.import_module("SimpleITK").WriteImage(other, str(tmp_path / "other.nii.gz")),
        "ants": lambda: other.to_filename(str(tmp_path / "other.nii.gz")),
        "nibabel": lambda: nib.save(other, tmp_path / "other.nii.gz"),
    }
    writers[library]()
    for source in (path, tmp_path / "other.nii.gz", other):
        read = io.read_image(image_source(source, "image"))
        assert np.allclose(read.grid.affine, image.grid.affine, atol=2e-5)
        assert torch.allclose(read.data, image.data)


@pytest.mark.parametrize("library", ["simpleitk", "ants"])
@pytest.mark.parametrize("kind", GRIDS)
def test_the_other_library_sees_a_voxel_where_it_is(kind: str, library: str) -> None:
    grid = GRIDS[kind]
    other = convert(some_image(grid), library)
    index = [n - 2 for n in grid.shape]
    if library == "ants":
        ants = importlib.import_module("ants")
        point = ants.transform_index_to_physical_point(other, index)
    else:
        point = other.TransformIndexToPhysicalPoint(index)
    expected = grid.voxel_to_world(np.array(index, dtype=float)) * [-1, -1, 1][: grid.ndim]
    assert np.allclose(point, expected, atol=1e-4)


@pytest.mark.parametrize("library", ["simpleitk", "ants"])
def test_components_are_channels(library: str) -> None:
    image = some_image(GRIDS["3d"], channels=2)
    read = io.read_image(image_source(convert(image, library), "image"))
    assert torch.allclose(read.data, image.data) and np.allclose(read.grid.affine, image.grid.affine)
    assert image.numpy().shape == (9, 8, 7, 2)


def test_an_array_has_the_axes_of_its_file(tmp_path: Path) -> None:
    """Also those of a single slice in a 3D file."""
    array = np.random.default_rng(0).random((6, 1, 5), dtype=np.float32)
    slice_ = nib.Nifti1Image(array, np.diag([2.0, 3, 4, 1]))
    image = io.read_image(slice_)
    back = Image(image.data, image.grid)
    assert back.numpy().shape == (6, 1, 5) and np.array_equal(np.asarray(back), array)
    assert back.nibabel().shape == (6, 1, 5) and np.allclose(back.nibabel().affine, slice_.affine)
    assert back.simpleitk().GetSize() == (6, 1, 5) and np.allclose(back.simpleitk().GetSpacing(), (2, 3, 4))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64, np.int64, bool])
def test_an_array_is_stored_in_its_type(dtype: type, tmp_path: Path) -> None:
    array = (np.random.default_rng(0).random((5, 6, 7)) * 100 > 50 if dtype is bool else np.arange(210).reshape(5, 6, 7)).astype(dtype)
    image = Image.from_array(array, spacing=(1, 2, 3))
    stored = nib.load(image.save(tmp_path / "image.nii.gz"))
    assert image.grid.voxel == (1, 2, 3) and image.numpy().dtype == dtype and np.array_equal(np.asarray(stored.dataobj), array)
    assert stored.get_data_dtype() == (np.uint8 if dtype in (np.int64, bool) else dtype) == image.nibabel().get_data_dtype()
    assert image.simpleitk().GetPixel(1, 2, 3) == array[1, 2, 3]


@pytest.mark.fault(126)
def test_ants_gets_numbers_that_it_holds() -> None:
    pytest.importorskip("ants")
    array = np.arange(-20, 10).reshape(5, 6)
    for numbers in (array, array + 20, array + 2**24):
        assert np.array_equal(Image.from_array(numbers, spacing=(1, 1)).ants().numpy(), numbers)
    for numbers in (array + 2**33, array * 2**28):
        with pytest.raises(rdmm.OutputError, match="no type of ANTs"):
            Image.from_array(numbers + 1, spacing=(1, 1)).ants()


@pytest.mark.fault(103)
def test_arrays_of_every_layout_are_read() -> None:
    array = np.arange(30.0).reshape(5, 6)
    for given in (
        array.astype(">f4"),
        array[::-1][::-1],
        np.asfortranarray(array),
        array.astype(np.longdouble),
        torch.tensor(array).half(),
    ):
        assert np.array_equal(Image.from_array(given, spacing=(1, 1)).numpy(), array)
    for wrong in (np.ma.masked_greater(array, 20), array + 0j, np.array([["x"]]), array[0]):
        with pytest.raises(InputError, match=r"^array is"):
            Image.from_array(wrong, spacing=(1, 1))


def test_from_array_needs_a_place() -> None:
    with pytest.raises(ConfigError, match="affine of array"):
        Image.from_array(np.zeros((5, 5)))
    assert Image.from_array(torch.zeros(5, 6, 7, 2), affine=np.eye(4)).data.shape == (1, 2, 5, 6, 7)


def arguments(fixed: object, moving: object, **places: object) -> dict:
    return read_arguments({"fixed": fixed, "moving": moving}, NONE | places)


def test_spacing_and_affine_place_arrays(caplog: pytest.LogCaptureFixture) -> None:
    array, tensor = np.random.rand(9, 8, 7), torch.rand(9, 8, 7)
    for grid in (GRIDS["3d"], GRIDS["3d turned"]):
        read = read_inputs(**arguments(array, tensor, affine=grid.affine))
        assert all(np.allclose(g.affine, grid.affine) for g in read.stored)
    read = read_inputs(**arguments(array, tensor, spacing=(1, 2, 3), moving_spacing=(2, 2, 2)))
    assert [g.voxel for g in read.stored] == [(1, 2, 3), (2, 2, 2)]
    read = read_inputs(**arguments(array[..., 0], array[..., 1], affine=np.diag([2.0, 3.0, 1.0])))
    assert read.stored[0].voxel == (2, 3) and read.stored[0].shape == (9, 8)
    assert not caplog.records
    read = read_inputs(**arguments(array, tensor))
    assert read.stored[0].voxel == (1, 1, 1) and "fixed: an array without spacing" in caplog.text


@pytest.mark.fault(119)
@pytest.mark.parametrize(
    ("places", "word"),
    [
        ({"spacing": (1, 1)}, "spacing of fixed"),
        ({"spacing": "wide"}, "spacing of fixed"),
        ({"affine": np.eye(3)}, "affine of fixed"),
        ({"spacing": (1, 1, 1), "affine": np.eye(4)}, "not both"),
        ({"moving_affine": np.eye(3), "spacing": (1, 1, 1)}, "affine of moving"),
    ],
)
def test_a_wrong_place_is_named(places: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        arguments(np.zeros((6, 6, 6)), np.zeros((6, 6, 6)), **places)


@pytest.mark.fault(119)
def test_a_place_without_an_array_is_refused() -> None:
    image = some_image(GRIDS["2d"])
    for name in NONE:
        with pytest.raises(ConfigError, match=f"^{name} has no effect"):
            arguments(image, image, **{name: (1, 1)})
    with pytest.raises(ConfigError, match="moving_spacing has no effect"):
        arguments(np.zeros((6, 6)), image, moving_spacing=(1, 1))


@pytest.mark.fault(119)
def test_arrays_of_labels_have_the_voxels_of_their_image() -> None:
    image, array = some_image(GRIDS["3d turned"]), np.arange(9 * 8 * 7).reshape(9, 8, 7)
    given = {"fixed": image, "moving": image.numpy(), "fixed_labels": array, "moving_mask": torch.ones(9, 8, 7)}
    read = read_inputs(**read_arguments(given, NONE | {"moving_affine": image.grid.affine}))
    assert sorted(read.fixed_labels.data.flatten().tolist()) == array.ravel().tolist()
    assert read.pair.moving.mask is not None
    with pytest.raises(InputError, match=r"fixed_labels: an array of shape \(8, 9, 7\) for an image of shape \(9, 8, 7\)"):
        read_arguments(given | {"fixed_labels": array.reshape(8, 9, 7)}, NONE | {"moving_affine": image.grid.affine})


@pytest.mark.fault(126)
def test_volume_of_an_image_in_memory_is_not_ignored() -> None:
    image, volumes = some_image(GRIDS["3d"]), np.random.rand(9, 8, 7, 3)
    with pytest.raises(ConfigError, match="volume"):
        read_inputs(image, image, volume=0)
    read = read_inputs(**arguments(volumes, volumes, spacing=(1, 1, 1)), volume=2)
    assert np.allclose(read.pair.fixed.data[0, 0], volumes[..., 2])
    with pytest.raises(ConfigError, match="volume"):
        rdmm.apply(image, np.eye(4), image, volume=1)


def test_settings_may_be_nested() -> None:
    nested = {"optimizer": {"scales": [0.5], "iterations": np.array([5])}, "similarity": "lncc", "a": {"b": {"c": np.float32(1)}}}
    dotted = {"optimizer__scales": [0.5], "optimizer__iterations": [5], "similarity": "lncc", "a__b__c": 1.0}
    assert to_overrides(nested) == to_overrides(dotted)
    with pytest.raises(ConfigError, match="optimizer: the keys"):
        to_overrides({"optimizer": {1: 2}})


def test_a_tensor_of_monai_has_channels_and_an_affine() -> None:
    monai = pytest.importorskip("monai.data")
    for kind, d in (("2d", 2), ("3d", 3)):
        grid, data = GRIDS[kind], some_image(GRIDS[kind]).data[0]
        whole = np.eye(4)
        whole[np.ix_([*range(d), 3], [*range(d), 3])] = grid.affine
        lps = np.diag([-1, -1, 1, 1]) @ whole
        for affine, space in ((whole, "RAS"), (lps, "LPS"), (np.array(grid.affine), "RAS")):
            given = monai.MetaTensor(data, meta={"space": space})
            given.affine = torch.as_tensor(affine)
            read = io.read_image(image_source(given, "image"))
            assert torch.equal(read.data[0], data) and np.allclose(read.grid.affine, grid.affine)


def test_transforms_of_other_libraries_are_read_as_their_files() -> None:
    """Linear ones, a composite, a warp; SimpleITK and ANTs count in LPS."""
    sitk = pytest.importorskip("SimpleITK")
    turn = sitk.Euler2DTransform((3.0, -2.0), 0.3, (1.0, 4.0))
    field = sitk.DisplacementFieldTransform(sitk.GetImageFromArray(np.full((9, 9, 2), 0.5), isVector=True))
    x = np.array([[-2.0, -3.0], [-4.0, -5.5]])
    for transform in (turn, sitk.CompositeTransform([turn, sitk.TranslationTransform(2, (1.0, 2.0))]), field):
        expected = -np.array([transform.TransformPoint(tuple(-p)) for p in x])
        assert np.allclose(rdmm.points(x, transform), expected, atol=1e-5)
        assert np.allclose(rdmm.points(x, [np.eye(3), transform]), expected, atol=1e-5)
    ants = pytest.importorskip("ants")
    given = ants.create_ants_transform(dimension=2, matrix=np.array([[1.1, 0.1], [0, 0.9]]), translation=(2.0, 3.0))
    assert np.allclose(rdmm.points(x, given), [-np.asarray(given.apply_to_point(tuple(-p))) for p in x], atol=1e-5)


def test_landmarks_may_be_arrays() -> None:
    image, points = some_image(GRIDS["2d"]), GRIDS["2d"].corners().mean(0) + np.arange(6).reshape(3, 2) / 4
    landmarks = (points, points + np.array([3.0, 4.0]))
    assert read_inputs(image, image, landmarks=landmarks).landmarks.moving[0, 0] == points[0, 0] + 3
    assert rdmm.evaluate(np.eye(3), landmarks=landmarks)["tre_mm"] == pytest.approx(5)
    for wrong, word in (
        ((points,), "two arrays"),
        ((points, points[:2]), "correspond"),
        ((points, points + 1e4), "row 1: the moving point"),
    ):
        with pytest.raises(InputError, match=f"landmarks.*{word}"):
            read_inputs(image, image, landmarks=wrong)


@pytest.mark.parametrize("value", [5, [1, 2], ["svf", "rdmm"], [1], None, np.array([1.0]), -1.5])
@pytest.mark.parametrize("group", ["optimizer", "similarity", "dynamics"])
def test_an_option_is_a_name(group: str, value: object) -> None:
    if group != "similarity" or str(value) != "['svf', 'rdmm']":
        with pytest.raises(ConfigError, match=rf"^{group}=.*(an option is a name.*|no option); there are"):
            compose_settings(to_overrides({group: value}))


def test_label_maps_of_simpleitk_are_read():
    """The buffer of a LabelMap, which has no voxels, ends the interpreter."""
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(np.array([[0, 3], [3, 7]], np.uint8))
    assert np.array_equal(from_sitk(sitk.Cast(image, sitk.sitkLabelUInt8))[0], [[0, 3], [3, 7]])


@pytest.mark.parametrize("spacing", [(-4, 4), (0, 1), (1, float("nan"))])
def test_spacing_is_above_0(spacing):
    with pytest.raises(ConfigError, match="spacing"):
        Image.from_array(np.ones((5, 6)), spacing=spacing)
