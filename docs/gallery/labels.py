"""Apply one transform to images, labels and points: python docs/gallery/labels.py OUT/"""

import subprocess
import sys
from pathlib import Path

from rdmm import io
from rdmm.data.synthetic.scenes import shapes_pair


def rdmm(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "rdmm", *words, "--quiet", "--overwrite"], check=True)


def main(out: Path, size: int = 128, iterations: int = 20) -> None:
    out = out / "labels"
    out.mkdir(parents=True, exist_ok=True)
    pair, _, moving_labels = shapes_pair(seed=5, shape=(size, size))
    for name, data in (("fixed", pair.fixed.data), ("moving", pair.moving.data), ("labels", moving_labels)):
        io.write_image(out / f"{name}.nii.gz", data, pair.fixed.grid, integer=name == "labels")
    (out / "points.csv").write_text("x,y\n40,40\n60,50\n")
    fixed, moving, warp, affine = (f"{out}/{n}" for n in ("fixed.nii.gz", "moving.nii.gz", "1Warp.nii.gz", "0GenericAffine.mat"))
    rdmm("register", fixed, moving, "-o", f"{out}/", f"optimizer.iterations=[{iterations},{iterations},{iterations // 2}]")
    # as in ANTs, the last -t is the first that is applied to an image
    rdmm("apply", f"{out}/labels.nii.gz", "--labels", "-t", warp, "-t", affine, "-r", fixed, "-o", f"{out}/warped_labels.nii.gz")
    rdmm("points", f"{out}/points.csv", "-t", warp, "-t", affine, "-o", f"{out}/moving_points.csv")  # fixed -> moving
    rdmm("compose", "-t", warp, "-t", affine, "-o", f"{out}/whole.nii.gz")  # one warp of all
    rdmm("jacobian", f"{out}/whole.nii.gz", "-o", f"{out}/jacobian.nii.gz")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
