"""docs/training.md works as printed, from an empty folder: every command is read by bash and run here, with smaller settings at its end."""

import re
import runpy

import pytest
from click.testing import CliRunner
from test_printed_commands import printed, program_of, settings_in, typed

from rdmm.cli import program
from rdmm.config.compose import compose
from rdmm.config.location import share
from rdmm.types import DivergenceError
from train.main import main

PAGE = "docs/training.md"
SMALL = ["shape=[16,16,16]", "data.limit=1", "backbone.features=[4,4,4,4,4]", "affine_trainer.max_steps=1", "threads=1"]
SMALL += ["table.limit=1", "table.optimized=['optimizer.iterations=[1,1,1]']", "table.pictures=0", "logger=csv"]
FAILED_VERDICT = DivergenceError.exit_code
"""That of a registration by a network of two steps, which moves nothing."""


@pytest.mark.slow
def test_the_page_works_as_printed_from_an_empty_folder(tmp_path, monkeypatch):
    commands = typed(tmp_path, printed(PAGE))
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (script,) = re.findall(r"^```python\n(.*?)^```", (share() / PAGE).read_text(), re.M | re.S)
    (tmp_path / "data.py").write_text(script.replace("(40, 40, 40)", "(16, 16, 16)"))
    runpy.run_path(str(tmp_path / "data.py"))
    run = set()
    for number, (name, *words) in enumerate(commands):
        if name == "rdmm":
            done = CliRunner().invoke(program.main, words)
            assert done.exit_code in (0, FAILED_VERDICT), done.output
        elif name == "torchrun" or "hydra/launcher=submitit_slurm" in words:
            assert compose(settings_in(words), "train")["data"]["source"]["root"] == "data"
            continue
        else:
            assert program_of(words) == "train"
            small = [w for w in SMALL if "sets" not in " ".join(words) or not w.startswith("data.")]
            small += [f"trainer.max_steps={number + 1}"]  # more than those before it: one of them extends a run
            monkeypatch.setattr("sys.argv", ["train", *words[2:], *small, *([] if number == 0 else ["table.limit=0"])])
            main()
        run.add(number)
    assert len(run) == len(commands) - 2
    text = (folder / "runs/mine/table.md").read_text()
    assert all(f"| test | {m} | 1 | 0 |" in text for m in ("affine-net", "affine-opt", "rdmm-net", "rdmm-net+5", "rdmm-opt"))
    said = {name: (folder / f"runs/{name}/train.log").read_text() for name in ("mine", "atlas", "mixed")}
    assert "train: 16 images of 8 subjects (90" in said["mine"] and "going on from step 1" in said["mine"]
    assert "all are paired with 9003_00m" in said["atlas"] and "affine starts from" in said["atlas"]
    assert "mine (75% of the pairs)" in said["mixed"]
    for out in ("out", "refined"):
        assert {"1Warp.nii.gz", "0GenericAffine.mat", "Sigma0.nii.gz"} <= {p.name for p in (folder / out).iterdir()}


def test_the_page_and_the_readme_print_the_same_training():
    pages = [[" ".join(c.replace("\\\n", " ").split()) for c in printed(page)] for page in ("README.md", PAGE)]
    first = next(c for c in pages[1] if "experiment=images_net" in c)
    assert first.replace("python -m train", "python train.py") in pages[0]
