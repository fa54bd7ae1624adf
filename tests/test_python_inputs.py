"""What Python may pass for an image: whatever is wrong with it is one InputError that says what to pass."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch

import rdmm
from rdmm import ConfigError, Grid, Image, InputError, RdmmError
from rdmm.data.inputs import read_inputs
from rdmm.spatial.transform import Identity

GRID = Grid((12, 12), np.diag([1.5, 1.0, 1.0]))
QUICK = {"dynamics": "svf", "affine": "none", "optimizer__iterations": [2], "optimizer__scales": [1.0]}


def blob(shift: float = 0.0) -> torch.Tensor:
    x = torch.linspace(-1, 1, 12)
    return torch.exp(-4 * ((x[:, None] - shift) ** 2 + x[None] ** 2))[None, None]


def image(data: torch.Tensor | None = None, mask: torch.Tensor | None = None) -> Image:
    return Image(blob() if data is None else data, GRID, mask)


def with_value(value: float) -> torch.Tensor:
    x = blob()
    x[0, 0, 3, 4] = value
    return x


WRONG = {
    "None": None,
    "array of texts": np.full((12, 12), "x"),
    "tensor": blob(),
    "list": [1, 2],
    "number": 5,
    "measure": rdmm.Measure(torch.rand(1, 2, 9)),
    "nan": image(with_value(torch.nan)),
    "inf": image(with_value(torch.inf)),
    "beyond float32": image(with_value(0.0).double() + 1e300),
    "all nan": image(torch.full_like(blob(), torch.nan)),
    "complex": image(blob() + 0j),
    "meta": image(blob().to("meta")),
    "sparse": image(torch.stack([blob(), blob()])[0].to_sparse()),
    "batch": image(torch.cat([blob(), blob()])),
    "no channel": image(torch.zeros(1, 0, 12, 12)),
    "mask with nan": image(mask=with_value(torch.nan)),
    "mask below 0": image(mask=-blob()),
    "mask above 1": image(mask=3 * blob()),
    "empty mask": image(mask=torch.zeros_like(blob())),
    "mask of channels": image(mask=torch.ones(1, 2, 12, 12)),
    "constant": image(torch.ones_like(blob())),
    "channels": image(torch.cat([blob(), blob()], 1)),
}


@pytest.mark.fault(1, 9, 11, 22, 23, 60, 103)
@pytest.mark.parametrize("role", ["fixed", "moving"])
@pytest.mark.parametrize("kind", WRONG)
def test_wrong_images_are_named(kind: str, role: str) -> None:
    other = "moving" if role == "fixed" else "fixed"
    with pytest.raises(InputError) as error:
        rdmm.register(**{role: WRONG[kind], other: image()}, **QUICK)
    assert kind == "channels" or role in str(error.value)


@pytest.mark.fault(103)
@pytest.mark.parametrize("role", ["fixed_labels", "moving_labels", "regions", "fixed_mask", "moving_mask"])
@pytest.mark.parametrize(
    "kind",
    [k for k in WRONG if k not in ("None", "constant", "mask with nan", "mask below 0", "mask above 1", "empty mask", "mask of channels")],
)
def test_wrong_labels_and_masks_are_named(kind: str, role: str) -> None:
    with pytest.raises(InputError, match=role):
        rdmm.register(fixed=image(), moving=image(), **{role: WRONG[kind]}, **QUICK)


@pytest.mark.fault(103)
def test_an_image_is_a_tensor_on_a_grid() -> None:
    for data, grid in (
        (blob().numpy(), GRID),
        (None, GRID),
        (blob(), None),
        (blob()[0, 0], GRID),
        (torch.zeros(()), GRID),
        (blob(), (12, 12)),
    ):
        with pytest.raises(InputError, match="image"):
            Image(data, grid)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="mask"):
        Image(blob(), GRID, np.ones((1, 1, 12, 12)))  # type: ignore[arg-type]


@pytest.mark.fault(24, 103)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool]
)
def test_every_real_type_works(dtype: torch.dtype) -> None:
    data = [(blob(s) * 200 > 60 if dtype is torch.bool else blob(s) * 200).to(dtype) for s in (0.0, 0.2)]
    found = read_inputs(image(data[0]), image(data[1], mask=torch.ones_like(blob(), dtype=dtype)))
    assert torch.equal(found.pair.fixed.data, data[0].float()) and found.pair.moving.mask.dtype == torch.float32
    labels = read_inputs(image(), image(), fixed_labels=image(data[0].round() if dtype.is_floating_point else data[0])).fixed_labels
    assert labels.data.dtype == torch.int64


@pytest.mark.fault(9, 103)
def test_the_policy_of_nan_holds_in_memory() -> None:
    bad = image(with_value(torch.inf))
    zero, mask = (read_inputs(bad, image(), nan=nan).pair.fixed for nan in ("zero", "mask"))
    assert zero.data[0, 0, 3, 4] == 0 and zero.mask is None
    assert mask.mask[0, 0, 3, 4] == 0 and mask.mask.sum() == 143


def run() -> torch.Tensor:
    done = rdmm.register(fixed=image(blob()), moving=image(blob(0.2)), **QUICK)
    return torch.cat([done.deformation.flatten(), done.warped.data.flatten()])


@pytest.mark.fault(103)
def test_the_callers_gradient_mode_does_not_matter() -> None:
    wanted = run()
    assert wanted[:144].abs().max() > 0
    with torch.no_grad():
        assert torch.equal(run(), wanted)
    with torch.inference_mode():
        assert torch.equal(run(), wanted)
        inside = image(blob(0.2))
        inside.moved_by(Identity())
        other = Image(torch.rand(1, 1, 13, 12), Grid((13, 12), np.eye(3)))
        other.moved_by(Identity())  # fills the caches of its grid
        with torch.no_grad():
            assert torch.equal(run(), wanted)
    rdmm.register(fixed=Image(other.data.clone(), other.grid), moving=inside, **QUICK)
    rdmm.register(fixed=image(blob().requires_grad_()), moving=inside, **QUICK)
    previous = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.allclose(run(), wanted, atol=1e-4)
    finally:
        torch.set_default_dtype(previous)


@pytest.mark.fault(5, 103)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_a_nibabel_image_of_a_cut_file(suffix: str, tmp_path) -> None:
    x = np.random.default_rng(0).random((20, 20, 20), dtype=np.float32)
    path = tmp_path / f"x{suffix}"
    nib.save(nib.Nifti1Image(x, np.eye(4)), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for role in ("fixed", "moving", "fixed_labels", "moving_mask"):
        with pytest.raises(InputError, match=r"x\.nii"):
            rdmm.register(**{"fixed": image(), "moving": image(), **QUICK, role: nib.load(path)})


@pytest.mark.fault(103)
@pytest.mark.parametrize("value", [None, np.zeros((5, 3)), torch.zeros(1, 3, 5), 5, image()])
def test_wrong_shapes_are_named(value) -> None:
    good = rdmm.Measure(torch.rand(1, 2, 9))
    for pair in ({"fixed": value, "moving": good}, {"fixed": good, "moving": value}):
        with pytest.raises((InputError, ConfigError), match="shape"):
            rdmm.register_shapes(**pair)


@pytest.mark.fault(89, 103)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_measures_are_finite(value: float) -> None:
    good = {"points": torch.rand(1, 2, 9), "weights": torch.ones(1, 9)}
    for field, x in good.items():
        wrong = x.clone()
        wrong.view(-1)[2] = value
        with pytest.raises(RdmmError, match="finite"):
            rdmm.Measure(**good | {field: wrong})


@pytest.mark.fault(33)
@pytest.mark.parametrize("share", [0.9, 0.8, 0.6])
def test_a_small_overlap_is_said(share: float) -> None:
    affine = np.asarray(GRID.affine).copy()
    affine[0, 2] = share * 12 * 1.5
    said = read_inputs(image(), Image(blob(), Grid((12, 12), affine))).warnings
    assert any("% of the fixed image" in w for w in said) is (share > 0.75)


NO_PATHS = [5, torch.nan, [1], np.zeros(3), image()]


@pytest.mark.fault(103)
@pytest.mark.parametrize("role", ["landmarks", "fixed_keypoints", "moving_keypoints", "initial"])
def test_what_must_be_a_path(role: str) -> None:
    for value in NO_PATHS:
        with pytest.raises(InputError, match=f"{role}.*(path|file)"):
            rdmm.register(fixed=image(), moving=image(), **{role: value}, **QUICK)


@pytest.mark.fault(27, 103)
def test_grids_and_measures_are_of_numbers() -> None:
    for value in (None, "x", 5, torch.nan, [4.5, 4], [torch.nan, 4], [torch.inf, 4], np.zeros((3, 3)), torch.zeros(2)):
        with pytest.raises(InputError, match="grid"):
            Grid(value, np.eye(3))
    for value in (None, "x", 5, torch.nan, [1, 2], np.eye(3) * 1j, np.eye(3) * torch.nan, [[1, 2], [3]]):
        with pytest.raises(InputError):
            Grid((12, 12), value)
    points = torch.rand(1, 2, 9)
    for value in (None, "x", 5, points.numpy(), points + 0j, points.to("meta"), (9 * points).long()):
        with pytest.raises(InputError, match="points"):
            rdmm.Measure(value)
    with pytest.raises(InputError, match="normals must be finite"):
        rdmm.Measure(points, torch.ones(1, 9), points / 0)
