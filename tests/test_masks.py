"""Values outside a mask have no influence: the map is the same to the bit, whatever they are."""

import pytest
import torch
from conftest import blobs, center

import rdmm
from rdmm import Grid, Image, InputError
from rdmm.data import Normalize
from rdmm.similarity import LNCC

GRID = Grid.unit((40, 36))
VOLUME = Grid.unit((16, 14, 12))
LEVELS = {"optimizer__scales": [0.25, 0.5, 1.0], "optimizer__iterations": [4, 3, 2]}
SIMILARITIES = {
    "ssd": ["similarity=ssd"],
    "ncc": ["similarity=ncc"],
    "lncc": ["similarity=lncc"],
    "mklncc": ["similarity=mklncc"],
    "nmi": ["similarity=nmi"],
    "mind": ["similarity=mind"],
    "sinkhorn": ["similarity=sinkhorn", "similarity_weight=100"],
    "sum": ["similarity=[lncc,sinkhorn]"],
}


def mask_of(grid: Grid, kind: str) -> torch.Tensor:
    """A mask that leaves out a border, or a hole in the middle."""
    x = grid.identity(torch.zeros(1, dtype=torch.float64)) - center(grid)
    if kind == "border":
        return ((x.abs() / center(grid)).amax(1, keepdim=True) < 0.7).float()
    return (x.norm(dim=1, keepdim=True) > 0.17).float()


def outside(image: Image, kind: str) -> Image:
    """The image with other values outside its mask."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(image.data.shape, generator=generator)
    values = {"noise": noise, "constant": noise * 0 - 0.7, "huge": 1e30 * noise, "nan": noise * float("nan"), "inf": noise / 0}[kind]
    return Image(torch.where(image.mask > 0, image.data, values), image.grid, image.mask)


def images(grid: Grid, fixed: str | None, moving: str | None) -> list[Image]:
    masks = [None if kind is None else mask_of(grid, kind) for kind in (fixed, moving)]
    return [Image(blobs(grid, 1).float() + 0.3 * blobs(grid, k).float(), grid, m) for k, m in zip((2, 3), masks, strict=True)]


def found(fixed: Image, moving: Image, *overrides: str) -> torch.Tensor:
    """The total displacement, affine included."""
    result = rdmm.register(fixed=fixed, moving=moving, overrides=list(overrides), **LEVELS)
    x = fixed.grid.identity(fixed.data)
    return result.pair.total_map(result.result.transform)(x) - x


def changed(x: Image, values: str) -> Image:
    return x if x.mask is None else outside(x, values)


@pytest.mark.fault(96)
@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize(("fixed", "moving", "values"), [("border", None, "huge"), (None, "hole", "noise"), ("hole", "border", "constant")])
def test_values_outside_a_mask_do_not_change_the_map(name, fixed, moving, values):
    a, b = images(GRID, fixed, moving)
    settings = [*SIMILARITIES[name], "affine=none"]
    assert torch.equal(found(a, b, *settings), found(changed(a, values), changed(b, values), *settings))


@pytest.mark.fault(96)
@pytest.mark.parametrize(("name", "fixed", "moving", "values"), [("ncc", "border", None, "noise"), ("nmi", "hole", "border", "huge")])
def test_nor_does_the_affine_stage_see_them(name, fixed, moving, values):
    a, b = images(GRID, fixed, moving)
    settings = [f"affine.similarity._target_=rdmm.similarity.{name.upper()}", "affine.iterations=8"]
    assert torch.equal(found(a, b, *settings), found(changed(a, values), changed(b, values), *settings))


@pytest.mark.fault(96)
@pytest.mark.parametrize("dynamics", ["svf", "rdmm"])
def test_in_volumes_too(dynamics):
    a, b = images(VOLUME, "border", "hole")
    settings = [f"dynamics={dynamics}", "affine.iterations=4"]
    assert torch.equal(found(a, b, *settings), found(changed(a, "huge"), changed(b, "noise"), *settings))


@pytest.mark.fault(96)
@pytest.mark.parametrize("values", ["nan", "inf"])
def test_nor_whether_they_are_finite(values):
    """As a stage alone sees them, without the checks of files."""
    a, b = images(GRID, "border", "hole")
    stage = rdmm.registration.entry.compose_settings(["optimizer.iterations=[2,2,2]"]).stages
    maps = [stage(rdmm.Pair(x, y)).transform for x, y in ((a, b), (changed(a, values), changed(b, values)))]
    x = GRID.identity(a.data)
    assert torch.equal(maps[0](x), maps[1](x))


def test_inpainting_continues_the_inside(grid):
    """Inside, values stay to the bit; outside they lie between those inside, close to the nearest ones."""
    ramp = grid.identity(torch.zeros(1, dtype=torch.float64))[:, :1]
    inside = ((ramp > 0.3) & (ramp < 0.7)).double()
    x = Image(torch.where(inside > 0, ramp, float("nan")), grid, inside).inpainted().data
    assert torch.equal(x[inside > 0], ramp[inside > 0])
    assert float(x.min()) >= float(ramp[inside > 0].min()) and float(x.max()) <= float(ramp[inside > 0].max())
    assert float(x[ramp <= 0.3].mean()) < 0.5 < float(x[ramp >= 0.7].mean())


def test_a_mask_of_every_voxel_is_none(grid):
    image = Image(blobs(grid), grid, torch.ones(1, 1, *grid.shape))
    assert image.inpainted() is image
    assert torch.equal(image.scaled(0.5).data, Image(image.data, grid).scaled(0.5).data)


def test_contrast_outside_the_mask_is_none():
    with pytest.raises(InputError, match="every voxel inside the mask is"):
        Normalize()(outside(Image(torch.full((1, 1, *GRID.shape), 0.5), GRID, mask_of(GRID, "hole")), "noise"))


@pytest.mark.fault(96)
def test_what_is_excluded_has_no_influence_in_any_part(tmp_path):
    """A lesion in the moving image, in its second contrast and in its labels."""
    a, b = images(GRID, None, None)
    lesion = mask_of(GRID, "hole") == 0
    labels = [Image((x.data > 0.5).long() + (x.data > 0.8).long(), GRID) for x in (a, b)]

    def result(value: float) -> torch.Tensor:
        moving, second = (Image(torch.where(lesion, value, x.data), GRID) for x in (b, Image(1 - b.data, GRID)))
        moved = Image(torch.where(lesion, 1, labels[1].data) if value > 1 else labels[1].data, GRID)
        inputs = {"moving_exclude": Image(lesion.float(), GRID), "fixed_labels": labels[0], "moving_labels": moved}
        done = rdmm.register(
            a, moving, also=(Image(1 - a.data, GRID), second), **inputs, guide_labels=True, overrides=["affine.iterations=4"], **LEVELS
        )
        return done.result.transform(GRID.identity(a.data))

    assert torch.equal(result(0.0), result(50.0))


def test_a_lesion_is_the_inverse_of_a_mask():
    a, b = images(GRID, "hole", None)
    plain = Image(a.data, GRID)
    lesion = Image((a.mask == 0).float(), GRID)
    results = [
        rdmm.register(plain, b, affine="none", **LEVELS, **more).result.transform(GRID.identity(b.data))
        for more in (
            {"fixed_mask": Image(a.mask, GRID)},
            {"fixed_exclude": lesion},
            {"fixed_mask": Image(a.mask, GRID), "fixed_exclude": lesion},
        )
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    none = rdmm.register(plain, b, affine="none", **LEVELS, fixed_exclude=Image(lesion.data * 0, GRID))
    assert torch.equal(none.result.transform(GRID.identity(b.data)), found(plain, b, "affine=none") + GRID.identity(b.data))


@pytest.mark.fault(37)
def test_a_lesion_that_leaves_nothing():
    a, b = images(GRID, "hole", None)
    plain, every = Image(a.data, GRID), Image(torch.ones_like(a.data), GRID)
    with pytest.raises(InputError, match="fixed_exclude: it excludes every voxel"):
        rdmm.register(plain, b, fixed_exclude=every)
    with pytest.raises(InputError, match="no voxel is left: fixed_exclude covers all of fixed_mask"):
        rdmm.register(plain, b, fixed_mask=Image(a.mask, GRID), fixed_exclude=Image(a.mask, GRID))


@pytest.mark.fault(96)
@pytest.mark.parametrize("factor", [0.25, 0.3, 0.5])
def test_weights_stay_between_0_and_1_on_coarse_levels(factor):
    """The low-pass of a mask overshoots; negative weights in a wide hole would make the local correlation as large as one likes."""
    big = Grid.unit((96, 80))
    x = big.identity(torch.zeros(1, dtype=torch.float64)) - center(big)
    hole = (x.norm(dim=1, keepdim=True) > 0.3).float()
    fixed, moving = (Image(blobs(big, k).float(), big, m) for k, m in ((1, hole), (2, None)))
    target, moved = fixed.scaled(factor), moving.scaled(factor)
    assert float(target.mask.min()) >= 0 and float(target.mask.max()) <= 1
    assert 0 < float(LNCC()(moved, target)) < 1


def test_a_wide_hole_stops_no_level():
    fixed, moving = images(Grid.unit((96, 80)), None, None)
    x = fixed.grid.identity(torch.zeros(1, dtype=torch.float64)) - center(fixed.grid)
    lesion = Image((x.norm(dim=1, keepdim=True) < 0.3).float(), fixed.grid)
    done = rdmm.register(fixed, moving, fixed_exclude=lesion, affine="none", **LEVELS)
    assert {row["level"] for row in done.result.history} == {0, 1, 2}
