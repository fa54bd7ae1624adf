"""Register two closed curves, by optimal transport and by a kernel distance: python docs/gallery/shapes.py OUT/"""

import sys
from pathlib import Path

import numpy as np

import rdmm
from rdmm import io


def star(arms: int, depth: float, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (n, 3) in millimeters, and the segments between them."""
    t = np.arange(points) * 2 * np.pi / points
    radius = 40 * (1 + depth * np.cos(arms * t))
    vertices = np.stack([radius * np.cos(t), radius * np.sin(t), 0 * t], 1)
    return vertices, np.stack([np.arange(points), np.roll(np.arange(points), -1)], 1)


def main(out: Path, points: int = 160, iterations: int = 30) -> None:
    out = out / "shapes"
    out.mkdir(parents=True, exist_ok=True)
    for name, depth in (("fixed", 0.35), ("moving", 0.05)):
        io.write_mesh(out / f"{name}.vtk", *star(5, depth, points))
    for similarity in ("sinkhorn_points", "kernel"):
        result = rdmm.register_shapes(
            fixed=str(out / "fixed.vtk"),
            moving=str(out / "moving.vtk"),
            overrides=[f"similarity={similarity}", f"optimizer.iterations=[{iterations}]"],
        )
        m = result.metrics
        sys.stdout.write(f"{similarity}: {m['distance_before_mm']:.2f} -> {m['distance_after_mm']:.2f} mm\n")
        result.save(f"{out}/{similarity}/", overwrite=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
