"""How the files of this folder were made: by rdmm at commit eead60c, before its modules became packages; python make.py in this folder.

The pictures are drawn here, so nothing is real data. Paths in the files are relative to this folder.
"""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch

from rdmm import Grid, io

HERE = Path(__file__).parent
PAIR = ["dynamics=rdmm", "smoother.sigmas=[0.05,0.1]", "smoother.weights=[0.4,0.6]", "affine=none"]
PAIR += ["optimizer.scales=[1]", "optimizer.iterations=[2]"]


def draw(center: float) -> torch.Tensor:
    x = torch.linspace(0, 1, 24)
    return torch.exp(-((x[:, None] - center) ** 2 + (x[None] - 0.5) ** 2) / 0.03)[None, None]


def make_batch() -> None:
    """batch/pair: the finished pair of a batch. A stub stands for its report, which is larger than all the rest."""
    for name, center in (("fixed", 0.5), ("moving", 0.45)):
        io.write_image(HERE / f"{name}.nii.gz", draw(center), Grid.unit((24, 24)))
    (HERE / "pairs.csv").write_text("id,fixed,moving\npair,fixed.nii.gz,moving.nii.gz\n")
    subprocess.run([sys.executable, "-m", "rdmm", "batch", "pairs.csv", "-o", "batch", *PAIR], cwd=HERE, check=True)
    for rest in ("logs", "index.html", "table.csv", "failures.json"):
        path = HERE / "batch" / rest
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    page, run = HERE / "batch/pair/report.html", HERE / "batch/pair/run.json"
    page.write_text("<p>a report of an earlier version</p>\n")
    summary = json.loads(run.read_text())
    summary["outputs"]["report.html"] = hashlib.sha256(page.read_bytes()).hexdigest()
    run.write_text(json.dumps(summary, indent=1))


def make_training() -> None:
    """state.pt and model.safetensors: a training that is interrupted after two of its four steps."""
    keys = (HERE / "training.txt").read_text().split()
    train = [sys.executable, "-m", "train", *keys, f"hydra.run.dir={HERE}/training"]
    process = subprocess.Popen(train, cwd=HERE, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if re.search(" step 2 of", line):
            process.send_signal(signal.SIGINT)
            break
    process.communicate()
    shutil.move(HERE / "training/rdmm/state.pt", HERE / "state.pt")
    shutil.move(HERE / "training/rdmm/best.safetensors", HERE / "model.safetensors")
    shutil.rmtree(HERE / "training")


if __name__ == "__main__":
    make_batch()
    make_training()
