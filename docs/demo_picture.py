"""Draws docs/demo.png from the results of ``rdmm demo``: python docs/demo_picture.py rdmm_demo/ docs/demo.png"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np

from rdmm import io

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main(folder: Path, out: Path) -> None:
    read = {n: io.read_image(folder / f"{n}.nii.gz").data[0, 0].numpy().T for n in ("moving", "fixed", "Warped", "Sigma0", "Sigma1")}
    warp = io.read_transform(str(folder / "1Warp.nii.gz"))
    grid = io.read_image(folder / "fixed.nii.gz").grid
    x = grid.to_world(grid.identity(io.read_image(folder / "fixed.nii.gz").data))
    y = warp(x)[0].numpy()
    figure, axes = plt.subplots(1, 6, figsize=(15, 2.8), layout="constrained")
    for a, (title, name) in zip(axes[:3], (("moving", "moving"), ("fixed", "fixed"), ("moving, warped", "Warped")), strict=True):
        a.imshow(read[name], cmap="gray", origin="lower")
        a.set_title(title)
    axes[3].imshow(read["fixed"], cmap="gray", origin="lower", alpha=0.6)
    for lines in (y[:, ::6], np.swapaxes(y[:, :, ::6], 1, 2)):
        axes[3].plot(lines[0].T, lines[1].T, color="tab:orange", linewidth=0.6)
    axes[3].set(xlim=(0, grid.shape[0] - 1), ylim=(0, grid.shape[1] - 1))
    axes[3].set_title("deformed grid")
    for a, name, t in zip(axes[4:], ("Sigma0", "Sigma1"), (0, 1), strict=True):
        shown = a.imshow(read[name], cmap="viridis", origin="lower")
        a.set_title(f"sigma at t = {t} (mm)")
    figure.colorbar(shown, ax=axes[5], fraction=0.046)
    for a in axes:
        a.set_xticks([])
        a.set_yticks([])
    figure.savefig(out, dpi=75, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
