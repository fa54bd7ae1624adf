"""Register two images with a regularizer that varies in space: python docs/gallery/register.py OUT/"""

import sys
from pathlib import Path

import rdmm
from rdmm.data.synthetic.scenes import shapes_pair


def main(out: Path, size: int = 128, iterations: int = 20) -> None:
    pair, fixed_labels, moving_labels = shapes_pair(seed=3, shape=(size, size))
    result = rdmm.register(
        fixed=pair.fixed,
        moving=pair.moving,
        fixed_labels=rdmm.Image(fixed_labels, pair.fixed.grid),
        moving_labels=rdmm.Image(moving_labels, pair.moving.grid),
        dynamics="rdmm",
        penalty="omt",
        optimizer__iterations=[iterations, iterations, iterations // 2],
    )
    m = result.metrics
    sys.stdout.write(f"Dice {m['dice_before']:.3f} -> {m['dice']:.3f}, folds {m['folds_percent']} %\n")
    result.save(f"{out}/register/", overwrite=True)  # Warped.nii.gz, 1Warp.nii.gz, ..., report.html


if __name__ == "__main__":
    main(Path(sys.argv[1]))
