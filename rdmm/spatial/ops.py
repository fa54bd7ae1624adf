"""Sampling and finite differences on grids. The last ``grid.ndim`` axes of every tensor are space.

Only this module calls ``grid_sample``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F

from rdmm.kernels.available import has_kernels, is_on_host
from rdmm.spatial.grid import SUM_BLOCK, Grid, constant
from rdmm.types import DivergenceError, Tensor

Mode = Literal["linear", "nearest"]


def require_finite(x: Tensor, what: str) -> None:
    """Raise DivergenceError unless all of ``x`` is finite. A NaN in ``grid_sample`` can end the process.

    Only on the CPU: elsewhere reading a value would make the host wait. There ``sample`` gives NaN where a point is not finite, so that
    the energy, which is read in any case, tells.
    """
    if is_on_host(x) and not torch.isfinite(x.detach().sum()):
        raise DivergenceError(f"{what} is not finite: the trajectory diverged; shorten the step or raise the integrator's steps")


def sample(values: Tensor, points: Tensor, grid: Grid, *, mode: Mode = "linear", outside: Literal["edge", "zero"] = "edge") -> Tensor:
    """Interpolate ``values`` at ``points``.

    Args:
        values: (b, c, *s) on ``grid``; with ``mode="nearest"`` of any type, so that labels stay exact.
        points: (b, d, *t) in domain units of ``grid``'s frame. A batch of 1, of values or points, is expanded.
        mode: multilinear or nearest-neighbor interpolation.
        outside: value outside the grid: that of the nearest edge, or zero.

    Returns:
        (b, c, *t).

    Raises:
        DivergenceError: a point is not finite. On other devices than the CPU, its value is NaN instead (of whole numbers: any).
    """
    if mode == "linear" and has_kernels(values) and (outside == "edge" or not (values.requires_grad or points.requires_grad)):
        from rdmm.kernels import sampling

        return (sampling.sample if outside == "edge" else sampling.sample_covered)(values, points, grid.spacing)
    require_finite(points, "a map")
    if is_on_host(points):
        return _sample(values, points, grid, mode, outside)
    finite = points.isfinite().all(1, keepdim=True)
    out = _sample(values, torch.where(finite, points, 0), grid, mode, outside)
    return torch.where(finite, out, math.nan) if out.is_floating_point() else out


def _sample(values: Tensor, points: Tensor, grid: Grid, mode: Mode, outside: Literal["edge", "zero"]) -> Tensor:
    """``sample`` at finite points, by torch."""
    d = grid.ndim
    batch = max(values.shape[0], points.shape[0])
    scale = constant(tuple(2 / x for x in grid.extent), points).view(-1, *(1,) * (points.ndim - 2))
    unit = (points * scale - 1).movedim(1, -1).flip(-1)
    if not values.is_floating_point():
        return _pick_nearest(values, unit, outside)
    flat = unit if unit.ndim == d + 2 else unit.reshape(unit.shape[0], *(1,) * (d - 1), -1, d)
    out = F.grid_sample(
        values.expand(batch, *values.shape[1:]),
        flat.expand(batch, *flat.shape[1:]),
        mode="bilinear" if mode == "linear" else mode,
        padding_mode="border" if outside == "edge" else "zeros",
        align_corners=True,
    )
    return out if unit.ndim == d + 2 else out.reshape(*out.shape[:2], *points.shape[2:])


def _pick_nearest(values: Tensor, unit: Tensor, outside: Literal["edge", "zero"]) -> Tensor:
    """Nearest-neighbor values (b, c, *t) of any type, of values (b, c, *s) at points (b, *t, d) in [-1, 1]; rounds as grid_sample does."""
    index = torch.zeros(unit.shape[:-1], dtype=torch.long, device=unit.device)
    inside = torch.ones_like(index, dtype=torch.bool)
    for n, x in zip(values.shape[2:], reversed(unit.unbind(-1)), strict=True):
        k = ((x + 1) / 2 * (n - 1)).round()
        inside &= (k >= 0) & (k <= n - 1)
        index = index * n + k.clamp(0, n - 1).long()
    batch, channels = max(values.shape[0], unit.shape[0]), values.shape[1]
    index, inside = (x.unsqueeze(1).expand(batch, channels, *x.shape[1:]) for x in (index, inside))
    picked = values.expand(batch, *values.shape[1:]).flatten(2).gather(2, index.flatten(2)).view(index.shape)
    return picked if outside == "edge" else picked * inside


def resize(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Resample (b, c, *s) to another number of voxels in the same frame, by multilinear interpolation without a low-pass.

    torch's own interpolation gives other bits for other numbers of threads.
    """
    for axis, n in enumerate(shape, values.ndim - len(shape)):
        if values.shape[axis] != n:
            k, fraction = _knots(values.shape[axis], n, values.device)
            low, high = values.index_select(axis, k), values.index_select(axis, (k + 1).clamp_max(values.shape[axis] - 1))
            values = low + fraction.to(values.dtype).view(-1, *(1,) * (values.ndim - 1 - axis)) * (high - low)
    return values


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _knots(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For m points from end to end of n voxels: the voxel before each, and the fraction of the way to the next."""
    x = torch.linspace(0, n - 1, m, dtype=torch.float64)
    k = x.floor().long().clamp_max(max(n - 2, 0))
    return k.to(device), (x - k).to(device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _spline(n: int, m: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(m, n): values at m points from end to end of the natural cubic spline through n values."""
    k, fraction = _knots(n, m, torch.device("cpu"))
    b = fraction[:, None]
    a, unit, above, second = 1 - b, torch.eye(n, dtype=torch.float64), (k + 1).clamp_max(n - 1), _second_derivatives(n)
    spline = a * unit[k] + b * unit[above] + ((a**3 - a) * second[k] + (b**3 - b) * second[above]) / 6
    return spline.to(device, dtype)


def _second_derivatives(n: int) -> Tensor:
    """(n, n): second derivatives, at the knots, of the natural cubic spline through n values one apart.

    They solve (s[i-1] + 4 s[i] + s[i+1]) / 6 = f[i-1] - 2 f[i] + f[i+1], here by Thomas' algorithm: the same bits for every number of
    threads.
    """
    second, factor = torch.zeros(n, n, dtype=torch.float64), [0.0] * n
    for i in range(1, n - 1):
        pivot = 4 - factor[i - 1]
        second[i, i - 1 : i + 2] = torch.tensor([6.0, -12.0, 6.0], dtype=torch.float64)
        second[i] = (second[i] - second[i - 1]) / pivot
        factor[i] = 1 / pivot
    for i in range(n - 3, 0, -1):
        second[i] -= factor[i] * second[i + 1]
    return second


def refine(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Resample (b, c, *s) to another number of voxels in the same frame, by cubic splines along each axis: twice differentiable."""
    for axis, n in enumerate(shape, values.ndim - len(shape)):
        if values.shape[axis] != n:
            matrix = _spline(values.shape[axis], n, values.dtype, values.device)
            values = along(matrix, values, axis)
    return values


def along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """Apply ``matrix`` (m, n), or one for each component (c, m, n), along one axis of ``x`` (b, c, *s). No gradient by the matrix.

    On the CPU each component is multiplied for itself, into its place in the result; along the first axis of space all at once, since the
    bits of a single wide product depend on the number of threads. On a GPU few large products are best.
    """
    return _Along.apply(x, matrix, axis)


class _Along(torch.autograd.Function):
    """The gradient is the product with the transposed matrix."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, axis: int) -> Tensor:
        ctx.matrix, ctx.axis = matrix, axis
        matrices = matrix if matrix.ndim == 3 else matrix.expand(x.shape[1], *matrix.shape)
        with torch.autocast(x.device.type, enabled=False):
            if not is_on_host(x):
                return _along_at_once(matrices, x, axis)
            out = x.new_empty(*x.shape[:axis], matrix.shape[-2], *x.shape[axis + 1 :])
            for item, result in zip(x, out, strict=True):
                if axis == 2:
                    torch.bmm(matrices, item.flatten(2), out=result.flatten(2))
                    continue
                for part, field, product in zip(matrices, item, result, strict=True):
                    _multiply(part, field, axis - 2, product)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return _Along.apply(g, ctx.matrix.mT, ctx.axis), None, None


def _multiply(matrix: Tensor, x: Tensor, axis: int, out: Tensor) -> None:
    """Write the product of ``matrix`` (m, n) along one axis of ``x`` (*s) to ``out``."""
    trailing = math.prod(x.shape[axis + 1 :])
    if trailing == 1:
        torch.matmul(x.reshape(-1, x.shape[axis]), matrix.mT, out=out.view(-1, matrix.shape[0]))
    else:
        layers = x.reshape(-1, x.shape[axis], trailing)
        torch.bmm(matrix.expand(len(layers), *matrix.shape), layers, out=out.view(len(layers), -1, trailing))


def _along_at_once(matrices: Tensor, x: Tensor, axis: int) -> Tensor:
    """``along`` of one matrix for each component, (c, m, n), by one product."""
    if axis == x.ndim - 1:
        return x @ matrices.mT.unflatten(0, (-1, *(1,) * (axis - 3)))
    return (matrices.unflatten(0, (-1, *(1,) * (axis - 2))) @ x.flatten(axis + 1)).unflatten(-1, x.shape[axis + 1 :])


def _central(f: Tensor, axis: int, h: float) -> Tensor:
    """Central difference along one axis, one-sided at the two ends."""
    n = f.shape[axis]
    out = torch.empty_like(f)
    torch.sub(f.narrow(axis, 2, n - 2), f.narrow(axis, 0, n - 2), out=out.narrow(axis, 1, n - 2)).mul_(0.5 / h)
    torch.sub(f.narrow(axis, 1, 1), f.narrow(axis, 0, 1), out=out.narrow(axis, 0, 1)).mul_(1 / h)
    torch.sub(f.narrow(axis, n - 1, 1), f.narrow(axis, n - 2, 1), out=out.narrow(axis, n - 1, 1)).mul_(1 / h)
    return out


def _central_transpose(g: Tensor, axis: int, h: float) -> Tensor:
    """The transpose of ``_central``."""
    n = g.shape[axis]
    out = torch.zeros_like(g)
    inner, first, last = g.narrow(axis, 1, n - 2) * (0.5 / h), g.narrow(axis, 0, 1) / h, g.narrow(axis, n - 1, 1) / h
    out.narrow(axis, 2, n - 2).add_(inner)
    out.narrow(axis, 0, n - 2).sub_(inner)
    out.narrow(axis, 1, 1).add_(first)
    out.narrow(axis, 0, 1).sub_(first)
    out.narrow(axis, n - 1, 1).add_(last)
    out.narrow(axis, n - 2, 1).sub_(last)
    return out


class _Linear(torch.autograd.Function):
    """A linear map along one axis, whose gradient is its transpose."""

    @staticmethod
    def forward(ctx: Any, f: Tensor, axis: int, h: float, apply: Callable[..., Tensor], transpose: Callable[..., Tensor]) -> Tensor:
        ctx.arguments, ctx.transpose = (axis, h), transpose
        return apply(f, axis, h)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.transpose(g, *ctx.arguments), None, None, None, None


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _differences(n: int, h: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n, n): ``_central`` as a matrix."""
    return _central(torch.eye(n, dtype=dtype), 0, h).to(device)


def partial(f: Tensor, axis: int, grid: Grid) -> Tensor:
    """d f / d x_axis by central differences (one-sided at the edges), model (4); ``f`` is (..., *s).

    On a GPU by one product with a matrix: there the number of operations counts.
    """
    if not is_on_host(f):
        return along(_differences(grid.shape[axis], grid.spacing[axis], f.dtype, f.device), f, f.ndim - grid.ndim + axis)
    return _Linear.apply(f, f.ndim - grid.ndim + axis, grid.spacing[axis], _central, _central_transpose)


def partial_transpose(f: Tensor, axis: int, grid: Grid) -> Tensor:
    """The transpose of ``partial``, model (4): -d f / d x_axis inside the grid, for an f that is 0 outside the grid."""
    if not is_on_host(f):
        return along(_differences(grid.shape[axis], grid.spacing[axis], f.dtype, f.device).mT, f, f.ndim - grid.ndim + axis)
    return _Linear.apply(f, f.ndim - grid.ndim + axis, grid.spacing[axis], _central_transpose, _central)


def jacobian(f: Tensor, grid: Grid) -> list[Tensor]:
    """[d_j f for each axis j], each of the shape of ``f``. It is a list because products of slices are faster than einsum on CPU."""
    return [partial(f, j, grid) for j in range(grid.ndim)]


def advect(f: Tensor, v: Tensor, grid: Grid) -> Tensor:
    """(D f) v = sum_j v_j d_j f for f (b, c, *s) and v (b, d, *s)."""
    df = jacobian(f, grid)
    return sum((df[j] * v[:, j : j + 1] for j in range(1, grid.ndim)), df[0] * v[:, :1])


def determinant(columns: list[Tensor]) -> Tensor:
    """Determinant of the matrices whose column j is ``columns[j]`` (b, d, *s); (b, *s)."""
    if len(columns) == 2:
        (a, c), (b, e) = (x.unbind(1) for x in columns)
        return a * e - b * c
    (a0, a1, a2), (b0, b1, b2), (c0, c1, c2) = (x.unbind(1) for x in columns)
    return a0 * (b1 * c2 - b2 * c1) - b0 * (a1 * c2 - a2 * c1) + c0 * (a1 * b2 - a2 * b1)


def map_jacobian(u: Tensor, grid: Grid) -> list[Tensor]:
    """Columns d_j phi of D phi for phi = id + u; u (b, d, *s)."""
    columns = jacobian(u, grid)
    unit = torch.eye(grid.ndim, dtype=u.dtype, device=u.device)
    return [c + unit[j].view(1, -1, *(1,) * grid.ndim) for j, c in enumerate(columns)]


def jacobian_determinant(u: Tensor, grid: Grid) -> Tensor:
    """det D(id + u) by central differences, (b, *s); u (b, d, *s) in domain units."""
    return determinant(map_jacobian(u, grid))


def corner_determinants(u: Tensor, grid: Grid, spacing: Sequence[float] | None = None) -> Tensor:
    """Determinants of phi = id + u on the simplices into which each cell of the grid is split, (k, b, *(n_i - 1)).

    2D: the four triangles at the corners of a pixel square. 3D: the eight tetrahedra at the corners of a voxel cube and the
    two in its middle: the ten determinants of Liu et al., "On finite difference Jacobian computation in deformable image
    registration", IJCV 2024. If all are positive, the map does not fold between voxels either; central
    differences miss such folds. Each is normalized to 1 for the identity.
    """
    d = grid.ndim
    h = constant(tuple(spacing or grid.spacing), u).view(1, -1, *(1,) * d)

    def vertex(corner: tuple[int, ...]) -> Tensor:
        index = tuple(slice(c, n - 1 + c) for c, n in zip(corner, grid.shape, strict=True))
        return u[(slice(None), slice(None), *index)] / h + constant(corner, u).view(1, -1, *(1,) * d)

    def end(corner: tuple[int, ...], axis: int, k: int) -> tuple[int, ...]:
        return (*corner[:axis], k, *corner[axis + 1 :])

    points = {c: vertex(c) for c in itertools.product((0, 1), repeat=d)}
    edges = {(c, i): points[end(c, i, 1)] - points[c] for c in points for i in range(d) if c[i] == 0}
    out = [determinant([edges[end(c, i, 0), i] for i in range(d)]) for c in points]
    if d == 3:
        for parity in (0, 1):
            # the tetrahedron of the four vertices of one parity; half its signed volume ratio to a corner's is 2
            a, b, c, e = (points[p] for p in sorted(points) if sum(p) % 2 == parity)
            det = determinant([b - a, c - a, e - a]) / 2
            out.append(-det if parity else det)
    return torch.stack(out)


def barrier(u: Tensor, grid: Grid, floor: float) -> Tensor:
    """(b,) mean over cells and their simplices of (floor - det)_+^2, model (20), det the ``corner_determinants`` of phi = id + u.

    The determinant by central differences at a voxel is the mean of those at the corners that meet there. If none of these is
    negative, central differences find no fold either.
    """
    if has_kernels(u):
        from rdmm.kernels.barrier import barrier as compiled_barrier

        return compiled_barrier(u, grid.spacing, floor)
    excess = (floor - corner_determinants(u, grid)).clamp_min(0).square().movedim(0, 1)
    return total(excess) / excess[0].numel()


def compose(u: Tensor, w: Tensor, grid: Grid, identity: Tensor) -> Tensor:
    """Displacement of (id + u) ∘ (id + w); displacements (b, d, *s) in domain units, constant outside the grid."""
    return w + sample(u, identity + w, grid)


def total(x: Tensor, start: int = 1, dtype: torch.dtype | None = None) -> Tensor:
    """Sum over the axes from ``start`` on, in fixed blocks: the result is the same to the bit for every number of threads."""
    x = x.flatten(start)
    n = x.shape[-1]
    if n <= SUM_BLOCK:
        return x.sum(-1, dtype=dtype)
    whole = n - n % SUM_BLOCK
    blocks = x[..., :whole].unflatten(-1, (-1, SUM_BLOCK)).sum(-1, dtype=dtype)
    return total(blocks, start) + x[..., whole:].sum(-1, dtype=dtype)


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: torch.Size) -> Tensor:
        ctx.shape = x.shape
        return x.expand(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return total(gradient, 2).view(ctx.shape), None


def expand_like(x: Tensor, like: Tensor) -> Tensor:
    """Expand x (b, c, 1...) to the shape of ``like`` (b, c, *s); ``total`` sums the gradient, independent of threads."""
    return _Expand.apply(x, like.shape)


def dots(a: Tensor, b: Tensor) -> Tensor:
    """(k,) Euclidean products of the items of a and b (k, *s), independent of threads like ``total``, without a temporary of their size."""
    a, b = a.flatten(1), b.flatten(1)
    if a.shape[1] <= SUM_BLOCK:
        return torch.linalg.vecdot(a, b)
    whole = a.shape[1] - a.shape[1] % SUM_BLOCK
    x, y = (z[:, :whole].unflatten(1, (-1, SUM_BLOCK)) for z in (a, b))
    return total(torch.einsum("kbt,kbt->kb", x, y)) + torch.einsum("kt,kt->k", a[:, whole:], b[:, whole:])


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean product of two tensors of the same shape, independent of threads like ``total``."""
    return dots(a[None], b[None])[0]


def integral(f: Tensor, grid: Grid) -> Tensor:
    """(b,) integral of f (b, ..., *s) over the domain."""
    return total(f) * grid.cell


def inner(a: Tensor, b: Tensor, grid: Grid) -> Tensor:
    """(b,) inner product <a, b> = integral of a . b, model (2)."""
    return integral(a * b, grid)
