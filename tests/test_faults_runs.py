"""Faults of runs: two runs in one folder, no memory, secrets, the network; the table of all faults; faults that other tools miss."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest
import torch

from rdmm import io
from rdmm.config.compose import share
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.regularizer.weights import region_rows
from rdmm.types import ConfigError
from rdmm.workflows.job import Job
from rdmm.workflows.launchers import run_job

FAST = ["dynamics=svf", "optimizer.iterations=[3,2,1]"]


@pytest.fixture
def good(tmp_path):
    """A fixed and a moving image."""
    pair, _, _ = shapes_pair(1, (40, 40))
    for name, image in (("f", pair.fixed), ("m", pair.moving)):
        io.write_image(tmp_path / f"{name}.nii.gz", image.data, image.grid)
    return tmp_path


def command(folder, out, *more: str) -> list[str]:
    return [sys.executable, "-m", "rdmm", "register", f"{folder}/f.nii.gz", f"{folder}/m.nii.gz", "-o", f"{out}/", *more]


@pytest.mark.fault(46)
def test_two_runs_in_one_folder(good):
    """Both start at the same time; one writes, the other reports an error."""
    words = command(good, good / "out", *FAST)
    runs = [subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [run.communicate()[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 3]
    said = next(e for run, e in zip(runs, errors, strict=True) if run.returncode == 3)
    assert "another run of rdmm is writing there" in said or "exists already" in said
    assert json.loads((good / "out" / "run.json").read_text())["status"] == "done"
    assert not list((good / "out").glob(".*"))


@pytest.mark.fault(48)
@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.1, 1.5, 2.5])
def test_interrupted_at_any_time(good, seconds):
    """Interrupted before the search, nothing is written; after that, the best result. The exit code is always 130."""
    words = command(good, good / "out", "dynamics=rdmm", "penalty=omt", "optimizer.iterations=[900,900,900]", "optimizer.tolerance=0")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, error = process.communicate()
    assert process.returncode in (130, -signal.SIGINT) and time.monotonic() - begin < 10
    assert "Traceback" not in error
    left = {p.name for p in (good / "out").glob("*")} if (good / "out").exists() else set()
    assert not [name for name in left if name.startswith(".")]  # neither parts of files nor a lock
    assert not left or json.loads((good / "out" / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.fault(51)
def test_out_of_memory_costs_one_pair(good, monkeypatch):
    """In a worker of a batch, running out of memory is an outcome like any other."""

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("rdmm.stages.AffineOpt.__call__", full)
    row = run_job(Job(f"{good}/f.nii.gz", f"{good}/m.nii.gz", f"{good}/out/", FAST))
    assert (row["status"], row["exit_code"]) == ("ResourceError", 3) and "optimizer.scales" in row["message"]
    assert not list((good / "out").iterdir())


@pytest.mark.fault(61)
@pytest.mark.parametrize("row", [[1.2, -0.2], [0.5, 0.4], [2.0, 0.0]])
def test_wrong_weights_of_regions(row):
    with pytest.raises(ConfigError, match=r"sum to 1|must be"):
        region_rows({1: row, "background": [0.5, 0.5]}, 2, "initializer.weights")


@pytest.mark.fault(82)
def test_nothing_of_the_environment_is_written(good):
    secret = "c3cr3t-token"
    done = subprocess.run(command(good, good / "out", *FAST), env={**os.environ, "API_TOKEN": secret}, capture_output=True, check=True)
    assert secret not in done.stdout.decode() + done.stderr.decode()
    assert all(secret.encode() not in p.read_bytes() for p in (good / "out").iterdir())


@pytest.mark.fault(86)
def test_the_network_is_never_asked(good):
    """Imports, a registration, a learned registration and a report work while every socket to a host raises an error."""
    program = f"""
import socket
def refuse(*_, **__):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
import rdmm, networks.model, rdmm.workflows.batch, train.main, eval.main
for keys in ({FAST!r}, ["initializer=unet", *{FAST!r}]):
    done = rdmm.register(fixed={str(good / "f.nii.gz")!r}, moving={str(good / "m.nii.gz")!r}, overrides={FAST!r})
done.save({str(good / "out/")!r} + "/")
print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=share(), capture_output=True, text=True)
    assert done.stdout.strip().endswith("done"), done.stderr


def write_faulty_inputs(folder) -> dict[str, list[str]]:
    """24 faulty inputs, of which no other tool rejects more than 16: the replacement of the moving image, and further arguments."""
    whole = nib.load(folder / "m.nii.gz")
    x = np.asarray(whole.dataobj, np.float32)
    path = folder / "bad.nii.gz"
    stored = (folder / "m.nii.gz").read_bytes()

    def image(array, affine=whole.affine, **header):
        out = nib.Nifti1Image(array, affine)
        for key, value in header.items():
            out.header[key] = value
        return out.to_bytes()

    def with_value(value, part=1):
        y = x.copy()
        y.flat[7 :: max(1, y.size // part)] = value
        return image(y)

    def flipped():
        data = bytearray(stored)
        for i in np.random.default_rng(0).integers(20, len(data) - 8, 100):
            data[i] ^= 1 << int(i) % 8
        return bytes(data)

    def singular():
        data = bytearray(image(x))
        data[280:296] = bytes(16)  # the first row of the s-form
        return bytes(data)

    far = whole.affine.copy()
    far[:3, 3] += 1000
    rgb = np.zeros(x.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    import gzip

    huge = bytearray(gzip.decompress(stored))
    huge[40:56] = np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], "<i2").tobytes()
    return {
        "empty": (path, b""),
        "text": (path, gzip.compress(b"hello")),
        "truncated gz": (path, stored[: len(stored) // 2]),
        "truncated": (folder / "bad.nii", image(x)[:3000]),
        "bit flips": (path, flipped()),
        "giant header": (folder / "bad.nii", bytes(huge)),
        "one NaN": (folder / "bad.nii", with_value(np.nan)),
        "5 % NaN": (folder / "bad.nii", with_value(np.nan, x.size // 20)),
        "Inf": (folder / "bad.nii", with_value(np.inf)),
        "all NaN": (folder / "bad.nii", image(np.full_like(x, np.nan))),
        "constant": (folder / "bad.nii", image(np.full_like(x, 3))),
        "3D with 2D": (folder / "bad.nii", image(np.repeat(x[..., None], 8, 2))),
        "4D": (folder / "bad.nii", image(np.repeat(x.reshape(*x.shape[:2], 1, 1), 3, 3))),
        "2 x 2": (folder / "bad.nii", image(x[:2, :2])),
        "RGB": (folder / "bad.nii", image(rgb)),
        "complex": (folder / "bad.nii", image(x.astype(np.complex64))),
        "singular affine": (folder / "bad.nii", singular()),
        "no overlap": (folder / "bad.nii", image(x, far)),
        "a folder": (folder, None),
        "missing": (folder / "n.nii.gz", None),
    }


def test_what_other_tools_pass_over(good):
    """Each is rejected by one line and code 3 (2 for arguments), nothing is written, and it takes less than two seconds of CPU time."""
    from click.testing import CliRunner

    from rdmm.cli import main

    mask, labels = good / "mask.nii.gz", good / "labels.nii.gz"
    grid = io.read_image(good / "f.nii.gz").grid
    io.write_image(mask, torch.zeros(1, 1, *grid.shape), grid)
    io.write_image(labels, torch.rand(1, 1, *grid.shape), grid)
    (good / "marks.csv").write_text("fixed_x,fixed_y,moving_x,moving_y\n1,2,nan,4\n")
    cases = {name: (path, data, []) for name, (path, data) in write_faulty_inputs(good).items()}
    moving = good / "m.nii.gz"
    cases |= {
        "empty mask": (moving, None, ["--moving-mask", str(mask)]),
        "labels that are no whole numbers": (moving, None, ["--moving-labels", str(labels)]),
        "landmarks with NaN": (moving, None, ["--landmarks", str(good / "marks.csv")]),
        "folder that cannot be made": (moving, None, ["-o", "/proc/nowhere/out/"]),
    }
    assert len(cases) == 24
    slow = {}
    for name, (path, data, words) in cases.items():
        if data is not None:
            path.write_bytes(data)
        out = [] if "-o" in words else ["-o", f"{good}/out/"]
        begin = time.perf_counter()
        done = CliRunner().invoke(main, ["register", str(good / "f.nii.gz"), str(path), *out, *words])
        slow[name] = time.perf_counter() - begin
        assert done.exit_code == 3, (name, done.output)
        assert not (good / "out" / "run.json").exists() and "Traceback" not in done.output, name
    assert max(slow.values()) < 2, slow


def test_every_fault_has_a_test():
    """docs/faults.md is the output of docs/faults.py, and every fault has a test."""
    made = runpy.run_path(str(share() / "docs" / "faults.py"))
    numbers = [n for faults in made["FAULTS"].values() for n in faults]
    assert len(numbers) == len(set(numbers)) and set(range(1, 87)) <= set(numbers)
    assert set(made["tests_by_fault"]()) == set(numbers)
    assert (share() / "docs" / "faults.md").read_text() == made["render_page"]()
