"""Five hundred damaged files a run: images, lists, settings and models. Each is read, or refused by an RdmmError in one line, at once."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from rdmm import Grid, io
from rdmm.config.compose import compose
from rdmm.config.trust import require_trusted_yaml
from rdmm.data.pair_list import read_pairs
from rdmm.data.training.tables import TableSource
from rdmm.io import models
from rdmm.registration.record import read_summary
from rdmm.types import RdmmError
from rdmm.workflows import inspect as commands

SECONDS = 2.0
TOKENS = [
    b"NaN",
    b"1e999",
    b"-1",
    b"{",
    b"]",
    b'"',
    b",",
    b"\n",
    b"\0",
    b"../",
    b"&a [*a]",
    b"!!python/object",
    b"\xff\xfe",
    b"999999999999",
]


def expect_refusal(read: Callable[[], object]) -> str | None:
    """The message of the RdmmError that reading raises; None if the file can still be read. Any other error fails the test."""
    try:
        read()
    except RdmmError as error:
        return str(error)
    return None


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut, flip, overwrite or repeat bytes, or insert some."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        where = int(rng.integers(0, max(1, len(out))))
        kind = int(rng.integers(0, 6))
        if kind == 0:
            del out[where:]
        elif kind == 1 and out:
            out[where % len(out)] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2:
            out[where : where + 8] = rng.bytes(8)
        elif kind == 3:
            out[where:where] = TOKENS[int(rng.integers(0, len(TOKENS)))]
        elif kind == 4:
            out[where:where] = out[where : where + 64]
        else:
            del out[where : where + int(rng.integers(1, 64))]
    return bytes(out)


def damage_header(data: bytes, rng: np.random.Generator) -> bytes:
    """Like ``damage``, but in the header of a compressed image."""
    whole = bytearray(gzip.decompress(data))
    for _ in range(int(rng.integers(1, 4))):
        where = int(rng.integers(0, 352))
        whole[where : where + 4] = rng.bytes(4)
    return gzip.compress(bytes(whole), 1)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, tuple[bytes, Callable[[Path], object]]]:
    """By name, a file's bytes, and what reads it."""
    folder = tmp_path_factory.mktemp("sound")
    grid = Grid.unit((12, 10, 8))
    io.write_image(folder / "x.nii.gz", torch.rand(1, 1, *grid.shape), grid)
    io.write_image(folder / "x.nii", torch.ones(1, 1, *grid.shape), grid, integer=True)
    io.write_warp(folder / "w.nii.gz", 0.01 * torch.rand(1, 3, *grid.shape), grid)
    io.write_affine(folder / "a.mat", np.eye(4))
    io.write_mesh(folder / "s.vtk", np.random.default_rng(0).random((9, 3)), np.array([[0, 1, 2], [3, 4, 5]]), {})
    models.write_model(
        folder / "m.safetensors", models.Model({"a": torch.rand(4, 4)}, {"predictor": {"_target_": "networks.predictor.Predictor"}}, {})
    )
    (folder / "t.safetensors").write_bytes(save({"momentum": torch.rand(1, 3, 4, 4, 4)}))
    (folder / "pairs.csv").write_text("id,fixed,moving,split\n" + "".join(f"p{k},f{k}.nii,m{k}.nii,test\n" for k in range(9)))
    (folder / "items.csv").write_text("image,subject\n" + "".join(f"f{k}.nii,s{k}\n" for k in range(9)))
    (folder / "marks.csv").write_text("fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z\n1,2,3,4,5,6\n1,2,3,4,5,6\n")
    (folder / "d.json").write_text(json.dumps({"registration_val": [{"fixed": "./a_0001_0000.nii.gz", "moving": "./b_0002_0000.nii.gz"}]}))
    run = {k: {} for k in ("inputs", "config", "metrics", "versions", "outputs", "energy")} | {"seconds": {"total": 1.0}, "history": []}
    run |= {"status": "done", "command": "rdmm register a b", "seed": 0, "device": "cpu", "threads": 1, "peak_memory_mb": 1.0}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "c.yaml").write_text("optimizer:\n  iterations: [1, 2, 3]\n  scales: [0.25, 0.5, 1.0]\nsimilarity: &s {blur: 0.1}\n")
    (folder / "p.csv").write_text('id,x,y,z\n"a, b",1,2,3\nc,4,5,6\n')
    (folder / "p.fcsv").write_text("# CoordinateSystem = LPS\n# columns = id,x,y,z,label\n1,1,2,3,a\n2,4,5,6,b\n")
    markup = {"coordinateSystem": "LPS", "controlPoints": [{"id": "1", "position": [1, 2, 3]}]}
    (folder / "p.mrk.json").write_text(json.dumps({"markups": [markup]}))
    vertices = "element vertex 3\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    faces = "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    body = np.arange(9, dtype="<f4").tobytes() + b"\x03" + np.arange(3, dtype="<i4").tobytes()
    (folder / "s.ply").write_bytes(f"ply\nformat binary_little_endian 1.0\n{vertices}{faces}".encode() + body)
    readers: dict[str, Callable[[Path], object]] = {
        "x.nii.gz": io.read_image,
        "x.nii": io.read_labels,
        "w.nii.gz": lambda p: io.read_transform(str(p)),
        "a.mat": lambda p: io.read_transform(str(p)),
        "s.vtk": io.read_mesh,
        "s.ply": io.read_mesh,
        **dict.fromkeys(("p.csv", "p.fcsv", "p.mrk.json"), lambda p: io.read_points(p, 3)),
        "m.safetensors": models.read_model,
        "t.safetensors": lambda p: commands.info(str(p)),
        "pairs.csv": read_pairs,
        "items.csv": lambda p: TableSource(str(p)).items(),
        "marks.csv": lambda p: io.read_landmarks(p, 3),
        "d.json": read_pairs,
        "run.json": read_summary,
        "c.yaml": lambda p: require_trusted_yaml(p.parent),
    }
    return {name: ((folder / name).read_bytes(), read) for name, read in readers.items()}


KINDS = ["x.nii.gz", "x.nii", "w.nii.gz", "a.mat", "s.vtk", "s.ply", "m.safetensors", "t.safetensors"]
LISTS = ["pairs.csv", "items.csv", "marks.csv", "p.csv", "p.fcsv", "p.mrk.json", "d.json", "run.json", "c.yaml"]


@pytest.mark.parametrize("kind", [*KINDS, *LISTS])
def test_damaged_files(sound, tmp_path, kind):
    """Forty of each kind: nothing but an RdmmError in one line, within two seconds."""
    data, read = sound[kind]
    read_sound = tmp_path / kind
    read_sound.write_bytes(data)
    read(read_sound)
    rng, refused = np.random.default_rng(sum(map(ord, kind))), 0
    for k in range(40):
        harmed = damage_header(data, rng) if kind.endswith(".gz") and k % 2 else damage(data, rng)
        path = tmp_path / f"{k}_{kind}"
        path.write_bytes(harmed)
        begin = time.process_time()
        said = expect_refusal(lambda path=path: read(path))
        refused += said is not None
        assert said is None or (said.strip() and "\n" not in said)
        assert time.process_time() - begin < SECONDS
        path.unlink()
    assert refused > 4


WORDS = ["dynamics", "similarity", "optimizer.iterations", "optimizer", "smoother.sigmas", "+new", "~affine", "stages.x", "seed"]
VALUES = ["", "1", "-1", "nan", "inf", "[1,2", "{a:b}", "lddmm", "svf ", "${oc.env:HOME}", "???", "null", "'", "1e400", "[[]]", "é", "a=b"]


def test_random_settings():
    """Settings on the command line: composed, or refused in one line."""
    rng = np.random.default_rng(7)
    for _ in range(40):
        words = [f"{WORDS[int(rng.integers(len(WORDS)))]}={VALUES[int(rng.integers(len(VALUES)))]}" for _ in range(int(rng.integers(1, 3)))]
        begin = time.process_time()
        said = expect_refusal(lambda words=words: compose(words))
        assert said is None or said.strip()
        assert time.process_time() - begin < SECONDS
