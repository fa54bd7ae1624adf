"""benchmarks/oai.py: no subject is in training and test data, and images are made once."""

import csv
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rdmm import Grid, Image, io


@pytest.fixture
def oai(monkeypatch, tmp_path):
    """The script as a module, with slices of seven subjects at two visits: two bands, the femoral one above."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    module = importlib.import_module("oai")
    folder = tmp_path / "slices_2d/knee_cartilage"
    folder.mkdir(parents=True)
    for subject in range(7):
        for visit in (2004, 2005):
            data = torch.zeros(1, 1, 160, 384)
            data[..., 40 + subject : 100, 210:216], data[..., 50:110, 200:206] = 1, 2
            io.write_image(folder / f"90{subject}_{visit}_left.nii.gz", data, Grid((160, 384), np.eye(3)), integer=True)
    monkeypatch.setattr(module, "DATA", tmp_path)
    yield module
    sys.modules.pop("oai", None)


def test_folds(oai, tmp_path):
    images = oai.write_slices(tmp_path / "out")
    parts = oai.write_folds(tmp_path / "out", images)
    tested = [subject for pairs in parts for subject in {name.split("_")[0] for name in pairs}]
    assert sorted(tested) == [f"90{k}" for k in range(7)]
    assert all(len(pairs) == len({f for f, _ in pairs.values()}) and all(f != m for f, m in pairs.values()) for pairs in parts)
    for fold, pairs in enumerate(parts):
        rows = list(csv.DictReader((tmp_path / f"out/data/fold{fold}.csv").open()))
        split = {r["subject"]: r["split"] for r in rows}
        assert all(split[r["subject"]] == r["split"] for r in rows) and set(split.values()) == {"train", "validation", "test"}
        assert {s for s in split if split[s] == "test"} == {name.split("_")[0] for name in pairs}


def test_bones_are_beyond_the_cartilage(oai):
    data = torch.zeros(1, 1, 30, 20)
    data[..., 5:25, 11:13], data[..., 8:22, 7:9] = 1, 2
    tissues = oai.with_bones(Image(data, Grid((30, 20), np.eye(3)))).data
    assert torch.equal(tissues == 1, data == 1) and torch.equal(tissues == 2, data == 2)
    assert (tissues[..., 5:25, 13:] == 3).all() and (tissues[..., 8:22, :7] == 3).all()
    assert (tissues[..., :5, 13:] == 0).all() and (tissues[..., 8:22, 9:11] == 0).all()


def test_commands_hold_what_is_there(oai, tmp_path):
    words = oai.measure(tmp_path, "slices1", tmp_path / "nets/1")
    assert "experiment=oai" in words and "experiment=oai_volumes" in oai.measure(tmp_path, "knees", None)
    assert any(w.startswith("+study.methods.affine_net=") for w in words)
    assert all(("syn_a" in " ".join(words)) == (name in oai.present()) for name in ["syn"])
