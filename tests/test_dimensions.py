"""2D and 3D do not meet: every command that is given both says which file is which, before any array does."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import oblique

from rdmm import Image, io
from rdmm.io.transforms import write_transform
from rdmm.io.vectors import Space
from rdmm.registration.entry import register
from rdmm.spatial.transform import Affine, Composed, Dense, Framed, Identity, Placed, composed, framed
from rdmm.types import InputError
from rdmm.workflows import transforms as commands
from rdmm.workflows.inspect import info
from rdmm.workflows.transport import barycenter, transfer

GRIDS = {2: oblique((12, 10), (1.0, 1.4)), 3: oblique((9, 8, 7), (1.0, 1.5, 2.0))}
KINDS = ("affine.mat", "affine.txt", "affine.h5", "warp.nii.gz", "chain.h5", "empty.h5")
MIXED = [(2, 3), (3, 2)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """For each dimension: images, label maps, points and transforms of every kind."""
    folder, out = tmp_path_factory.mktemp("dimensions"), {}
    for d, grid in GRIDS.items():
        data = torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(d))
        affine = Affine(torch.eye(d + 1, dtype=torch.float64))
        warp = Placed(Dense(torch.zeros(1, d, *grid.shape), grid), grid)
        places = {k: str(folder / f"{d}d_{k}") for k in ("image.nii.gz", "labels.nii.gz", "points.csv", "landmarks.csv", *KINDS)}
        io.write_image(places["image.nii.gz"], data, grid)
        io.write_image(places["labels.nii.gz"], (data > 0.5).float(), grid, integer=True)
        axes = "xyz"[:d]
        (folder / f"{d}d_points.csv").write_text(",".join(axes) + "\n" + ",".join("1" * d) + "\n")
        marks = [f"{k}_{a}" for k in ("fixed", "moving") for a in axes]
        (folder / f"{d}d_landmarks.csv").write_text(",".join(marks) + "\n" + ",".join(["1"] * (2 * d - 1)) + ",2\n")
        for kind, transform in zip(KINDS, (affine, affine, affine, warp, Composed(warp, affine), Identity()), strict=True):
            if kind != "empty.h5":
                write_transform(places[kind], transform, None, Space(grid, grid))
        write_empty(places["empty.h5"], d)
        out[d] = places
    return out


def write_empty(path: str, d: int) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        kind = file.create_group("TransformGroup/0")
        kind.create_dataset("TransformType", data=[f"CompositeTransform_double_{d}_{d}"], dtype=h5py.string_dtype("ascii"))


def refused(*names: str):
    """An InputError that names both dimensions, and these files."""
    return pytest.raises(InputError, match=r"(?s)(?=.*2D)(?=.*3D)" + "".join(f"(?=.*{n.rpartition('/')[2]})" for n in names))


def test_every_transform_knows_its_dimension(files):
    for d, grid in GRIDS.items():
        for kind in KINDS:
            assert io.read_transform(files[d][kind]).ndim == d
        affine = Affine(torch.eye(d + 1))
        assert Identity().ndim is None and Composed(Identity(), affine).ndim == Composed(affine, Identity()).ndim == d
        assert Framed(affine, grid).ndim == framed(affine, grid).ndim == d


def test_info_says_what_each_transform_is(files):
    kinds = ("affine", "affine", "affine", "warp", "chain", "affine")
    for d in GRIDS:
        for name, kind in zip(KINDS, kinds, strict=True):
            facts = info(files[d][name])
            assert facts["kind"].startswith(kind) and facts["dimensions"] == d and facts["form"] == "itk"
        assert [part.split()[0] for part in info(files[d]["chain.h5"])["parts"]] == ["warp", "affine"]


@pytest.mark.fault(107)
@pytest.mark.parametrize(("a", "b"), MIXED)
def test_maps_of_two_dimensions_do_not_compose(a, b):
    one, other = Affine(torch.eye(a + 1)), Affine(torch.eye(b + 1))
    for make in (Composed, composed):
        with pytest.raises(InputError, match=f"{a}D but the next transform is {b}D"):
            make(one, other)
    with pytest.raises(InputError, match="2D"):
        framed(one, GRIDS[b])
    image = Image(torch.zeros(1, 1, *GRIDS[a].shape), GRIDS[a])
    with pytest.raises(InputError, match="2D"):
        image.locate(GRIDS[b].identity(image.data), GRIDS[b])


@pytest.mark.fault(107, 17)
@pytest.mark.parametrize(("a", "b"), MIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_apply(files, tmp_path, kind, a, b):
    out = str(tmp_path / "o.nii.gz")
    plain = {"labels": False, "overwrite": False}
    for invert, (image, transform, reference) in itertools.product((False, True), itertools.product((a, b), repeat=3)):
        names = files[image]["image.nii.gz"], files[transform][kind], files[reference]["image.nii.gz"]
        if len({image, transform, reference}) > 1:
            with refused():
                commands.apply(names[0], [names[1]], names[2], out, invert=invert, **plain)
    with refused(files[a][kind], files[b][kind]):
        commands.apply(files[a]["image.nii.gz"], [files[a][kind], files[b][kind]], files[a]["image.nii.gz"], out, invert=False, **plain)
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(107, 17)
@pytest.mark.parametrize(("a", "b"), MIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_compose_convert_invert(files, tmp_path, kind, a, b):
    one, other, image = files[a][kind], files[b][kind], files[b]["image.nii.gz"]
    options = {"form": None, "moving": None, "overwrite": False}
    for out in ("o.nii.gz", "o.h5", "o.mat"):
        with refused(one, other):
            commands.compose([one, other], str(tmp_path / out), fixed=None, **options)
        with refused(one, image):
            commands.compose([one], str(tmp_path / out), fixed=image, **options)
        with refused(one, image):
            commands.convert(one, str(tmp_path / out), source_form=None, fixed=image, **options)
        with refused(one, image):
            commands.invert_transform(one, str(tmp_path / out), source_form=None, fixed=image, **options)
        with refused(files[a]["image.nii.gz"], image):
            commands.convert(
                one, str(tmp_path / out), source_form=None, form=None, fixed=image, moving=files[a]["image.nii.gz"], overwrite=False
            )
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(107, 17)
@pytest.mark.parametrize(("a", "b"), MIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_and_points(files, tmp_path, kind, a, b):
    one, other = files[a][kind], files[b][kind]
    labels = files[a]["labels.nii.gz"], files[b]["labels.nii.gz"]
    with refused(one, other):
        commands.evaluate([one, other])
    for fixed, moving in ((labels[1], labels[1]), (labels[0], labels[1]), (labels[1], labels[0])):
        with refused():
            commands.evaluate([one], fixed_labels=fixed, moving_labels=moving)
    with refused(one, other):
        commands.points(files[a]["points.csv"], [one, other], str(tmp_path / "q.csv"), lps=False, overwrite=False)
    with pytest.raises(InputError):
        commands.points(files[b]["points.csv"], [one], str(tmp_path / "q.csv"), lps=False, overwrite=False)
    with pytest.raises(InputError):
        commands.evaluate([one], landmarks=files[b]["landmarks.csv"])
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(107)
def test_valid_chains_of_points(files, tmp_path):
    """An affine, a composite and a composite without maps have a dimension each."""
    for d in GRIDS:
        for names in itertools.product([files[d][k] for k in KINDS], repeat=2):
            commands.points(files[d]["points.csv"], list(names), str(tmp_path / "q.csv"), lps=False, overwrite=True)
            assert np.allclose(np.loadtxt(tmp_path / "q.csv", delimiter=",", skiprows=1), 1, atol=1e-5)


@pytest.mark.fault(107, 17)
@pytest.mark.parametrize(("a", "b"), MIXED)
@pytest.mark.parametrize("kind", KINDS)
def test_initial(files, kind, a, b):
    image = files[a]["image.nii.gz"]
    with refused(image, files[b][kind]):
        register(fixed=image, moving=image, initial=files[b][kind])
    with refused(image, files[b]["image.nii.gz"]):
        register(fixed=image, moving=files[b]["image.nii.gz"])


@pytest.mark.fault(107, 17)
@pytest.mark.parametrize(("a", "b"), MIXED)
def test_transport(files, tmp_path, a, b):
    images, out = (files[a]["image.nii.gz"], files[b]["image.nii.gz"]), str(tmp_path / "o.nii.gz")
    with refused(*images):
        barycenter(list(images), out, weights=[], labels=False, blur=0.05, overwrite=False)
    with refused(*images):
        transfer(*images, files[b]["labels.nii.gz"], out, blur=0.05, reach=None, overwrite=False)
