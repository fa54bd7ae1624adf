"""Train networks on synthetic data, then use their prediction: python docs/gallery/train.py OUT/"""

import subprocess
import sys
from pathlib import Path

import rdmm
from rdmm.data.synthetic.scenes import shapes_pair

ROOT = Path(__file__).parents[2]


def main(out: Path, size: int = 64, steps: int = 200) -> None:
    out = (out / "train").absolute()
    keys = [f"shape=[{size},{size}]", f"trainer.max_steps={steps}", "~models.lddmm", "~models.rdmm", "table.limit=0", "overwrite=true"]
    subprocess.run([sys.executable, "train.py", "experiment=synthetic2d_net", *keys, f"hydra.run.dir={out}"], cwd=ROOT, check=True)
    pair, _, _ = shapes_pair(seed=100, shape=(size, size))
    result = rdmm.register(fixed=pair.fixed, moving=pair.moving, weights=str(out / "svf" / "best.safetensors"))
    sys.stdout.write(f"predicted in {result.result.seconds['total']:.2f} s, folds {result.metrics['folds_percent']} %\n")
    result.save(f"{out}/predicted/", overwrite=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
