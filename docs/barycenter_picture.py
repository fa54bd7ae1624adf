"""Draws docs/figures/barycenters.png: barycenters of four shapes, weighted as in bilinear interpolation, and their means.

python docs/barycenter_picture.py
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from rdmm.transport.barycenter import barycenter

SIZE, STEPS = 96, 5


def shapes(n: int) -> np.ndarray:
    """Four densities (4, n, n): a disk, a ring, two bars, and a star."""
    x, y = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n), indexing="ij")
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    bars = (np.abs(y) < 0.6) & (np.abs(np.abs(x) - 0.45) < 0.15)
    return np.stack([radius < 0.55, (radius < 0.7) & (radius > 0.45), bars, radius < 0.4 + 0.25 * np.cos(5 * angle)]).astype(np.float32)


def main() -> None:
    densities = torch.as_tensor(shapes(SIZE))
    densities = densities / densities.flatten(1).sum(1).view(-1, 1, 1)
    h = 1 / (SIZE - 1)
    figure = Figure(figsize=(2 * STEPS * 1.1, STEPS * 1.1), layout="constrained")
    for part, title, transports in zip(figure.subfigures(1, 2), ("transport, debiased", "mean of densities"), (True, False), strict=True):
        part.suptitle(title, fontsize=10)
        for panel, (s, t) in zip(part.subplots(STEPS, STEPS).flat, np.ndindex(STEPS, STEPS), strict=True):
            u, v = s / (STEPS - 1), t / (STEPS - 1)
            weights = [(1 - u) * (1 - v), (1 - u) * v, u * (1 - v), u * v]
            mean = torch.tensordot(torch.tensor(weights), densities, 1)
            if transports:
                mean = barycenter(densities, weights, (h, h), 1.5 * h, 1e-3, 200)
            panel.imshow(mean.numpy().T, cmap="gray_r", vmin=0)
            panel.set_axis_off()
    figure.savefig(Path(__file__).with_name("figures") / "barycenters.png", dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    main()
