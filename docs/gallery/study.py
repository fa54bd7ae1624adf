"""Register a list of pairs, and make a table for a paper: python docs/gallery/study.py OUT/"""

import subprocess
import sys
from pathlib import Path

from rdmm import io
from rdmm.data.synthetic.scenes import shapes_pair

ROOT = Path(__file__).parents[2]


def main(out: Path, size: int = 96, iterations: int = 20, pairs: int = 6) -> None:
    out = (out / "study").absolute()
    out.mkdir(parents=True, exist_ok=True)
    lines = ["id,fixed,moving,fixed_labels,moving_labels"]
    for k in range(pairs):
        pair, fixed_labels, moving_labels = shapes_pair(seed=k + 5, shape=(size, size))
        images = {"f": pair.fixed.data, "m": pair.moving.data, "fl": fixed_labels, "ml": moving_labels}
        for name, data in images.items():
            io.write_image(out / f"{name}{k}.nii.gz", data, pair.fixed.grid, integer=name in ("fl", "ml"))
        lines.append(f"pair{k}," + ",".join(f"{name}{k}.nii.gz" for name in images))
    (out / "pairs.csv").write_text("\n".join(lines) + "\n")
    settings = f"optimizer.iterations=[{iterations},{iterations},{iterations // 2}]"
    # each pair has its own process; --resume continues an interrupted batch
    batch = ["batch", f"{out}/pairs.csv", "-o", f"{out}/lddmm", "--resume", "dynamics=lddmm", settings]
    subprocess.run([sys.executable, "-m", "rdmm", *batch], check=True)
    # compare methods; the warps of the batch are evaluated like those of any other tool
    warps = f"+study.methods.batch.warps=['{out}/lddmm/{{case}}/1Warp.nii.gz','{out}/lddmm/{{case}}/0GenericAffine.mat']"
    keys = ["experiment=pairs", f"study.data.pairs.path={out}/pairs.csv", warps, "~study.methods.rdmm", settings]
    subprocess.run([sys.executable, "eval.py", *keys, f"hydra.run.dir={out}/table"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
