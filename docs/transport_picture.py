"""Draws docs/transport.png: two stars with arms, registered by a kernel distance and by transport.

python docs/transport_picture.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from rdmm import Measure, ShapeRegistration, register_shapes

SETTINGS = ["affine=none", "smoother.sigmas=[0.03,0.15]", "smoother.weights=[.25,.75]", "initializer.count=400"]


def star(angles: list[float], lengths: list[float], center: tuple[float, float], count: int = 400) -> Measure:
    """A disk with arms of given ``lengths`` in given directions (degrees)."""
    t = np.arange(count) * (2 * np.pi / count)
    radius = np.full(count, 0.1)
    for angle, length in zip(angles, lengths, strict=True):
        away = (t - np.deg2rad(angle) + np.pi) % (2 * np.pi) - np.pi
        radius = radius + length * np.exp(-((away / 0.2) ** 2))
    points = np.stack([center[0] + radius * np.cos(t), center[1] + radius * np.sin(t)])
    index = torch.arange(count)
    return Measure(torch.as_tensor(points[None], dtype=torch.float32), cells=torch.stack([index, (index + 1) % count], 1))


def main() -> None:
    fixed, moving = star([50, 200, 300], [0.3, 0.4, 0.3], (0.55, 0.5)), star([95, 170, 265], [0.4, 0.35, 0.3], (0.4, 0.5))
    kernel = ["similarity=kernel", "similarity.sigmas=[0.05]", "similarity.directions=varifold", "similarity_weight=10"]
    results = {
        "varifold": register_shapes(fixed=fixed, moving=moving, overrides=[*SETTINGS, *kernel]),
        "transport": register_shapes(fixed=fixed, moving=moving, overrides=[*SETTINGS, "similarity.blur=.01", "similarity_weight=1000"]),
    }
    figure = ShapeRegistration.figure_by_method(results)
    figure.savefig(Path(__file__).with_name("transport.png"), dpi=80, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
