"""Results on real data that every change must keep. Skipped, with a message, if the data are missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DATA

import rdmm
from rdmm import io, metrics

pytestmark = pytest.mark.data


def test_starting_values(data):
    """The reader gets the numbers that the data's documentation gives."""
    folder = data / "lung_ct"
    fixed, moving = (io.read_labels(folder / f"right_lung/{s}_mask.nii.gz") for s in ("baseline", "followup"))
    before = metrics.dice(moving.moved_by(lambda x: x, fixed.grid, mode="nearest").data, fixed.data)
    assert before[1] == pytest.approx(0.708, abs=2e-3)
    a, b, _ = io.read_landmarks(folder / "copd_masks/case_01_landmarks.csv")
    assert metrics.tre(a, b).mean() == pytest.approx(16.59, abs=0.01)
    a, b, regions = io.read_landmarks(data / "liver_mr/subject_19_exhale_cyc_1_6_landmarks.csv")
    inside = np.array([r == "liver" for r in regions])
    assert metrics.tre(a[inside], b[inside]).mean() == pytest.approx(6.14, abs=0.01)


def test_labeled_slice(data):
    folder = data / "slices_2d/oasis_trt20_labelled"
    names = {"fixed": "01_t1", "moving": "02_t1", "fixed_labels": "01_labels", "moving_labels": "02_labels"}
    result = rdmm.register(**{k: folder / f"{v}.nii.gz" for k, v in names.items()})
    assert result.metrics["dice"] > 0.568  # the best peer
    assert result.metrics["folds_percent"] == 0


@pytest.mark.slow
def test_brain_at_2_mm():
    """Runs the benchmark script, which is tested by it too."""
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA}: set RDMM_DATA")
    command = [sys.executable, str(Path(__file__).parents[1] / "benchmarks/pairs.py"), "--worker", "--pairs", "brain2mm"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "RDMM_DATA": str(DATA)})
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["dice"] > 0.76
    assert row["sd_log_jacobian"] < 0.40
    assert row["folds_percent"] == 0
