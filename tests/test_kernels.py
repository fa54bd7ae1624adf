"""Compiled kernels: the same bits compiled afresh as loaded from the cache, and a cache that nobody else can write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from rdmm.kernels import pairwise
from rdmm.kernels.available import set_threads

DIGESTS = """
import hashlib, importlib, json, pkgutil, sys
import numba, torch, rdmm
from rdmm import kernels
from rdmm.kernels.available import set_threads
from rdmm.similarity.mind import neighbor_pairs

def digest(*tensors):
    return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest()[:12]

def of_gradients(f, *inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    value = f(*leaves)
    (value * torch.rand(value.shape, generator=torch.Generator().manual_seed(9)).to(value)).sum().backward()
    return digest(value, *(x.grad for x in leaves))

set_threads(1)
torch.manual_seed(0)
modules = {m.name[13:]: importlib.import_module(m.name) for m in pkgutil.walk_packages(kernels.__path__, "rdmm.kernels.")}
k, out = modules, {}
for d, shape in ((2, (31, 28)), (3, (17, 15, 13))):
    h = (0.03,) * d
    for dtype in (torch.float32, torch.float64) if d == 2 else (torch.float32,):  # most of the time is the compiler's
        image, u, v = (torch.randn(1, c, *shape, dtype=dtype) for c in (2, d, d))
        axes = torch.meshgrid(*(0.03 * torch.arange(n, dtype=dtype) for n in shape), indexing="ij")
        points = torch.stack(axes)[None] + 0.02 * u
        name = f"{d} {dtype}"
        out[f"sample {name}"] = of_gradients(lambda a, p: k["sampling"].sample(a, p, h), image, points)
        out[f"cubic {name}"] = of_gradients(lambda a, p: k["pointwise.cubic_sampling"].sample(a, p, h), image, points)
        out[f"momentum {name}"] = of_gradients(lambda m, v: k["epdiff"].momentum_rate(m, v, h), u, v)
        out[f"map {name}"] = of_gradients(lambda m, v: k["epdiff"].map_rate(m, v, h), u, v)
        out[f"source {name}"] = of_gradients(lambda q, h: k["epdiff"].source(q, h, (0.03,) * q.shape[1]), u, v)
        regional = k["pointwise.regional"].velocity
        out[f"regional {name}"] = of_gradients(lambda m, w: torch.stack(regional(m, w, lambda x: x.flip(-1))), u, v)
        out[f"barrier {name}"] = of_gradients(lambda u: k["barrier"].barrier(u, h, 0.1), 0.05 * u)
        out[f"lncc {name}"] = of_gradients(lambda a: k["lncc"].fused_correlation(a, image, None, [(2,) * d], [1.0], 1e-5), image.flip(2))
        if dtype == torch.float32:
            for measure, more in (("correlation", (1e-19,)), ("correlation_ratio", (1e-19, 3))):
                f = getattr(k["pointwise.polynomials"], measure)
                out[f"{measure} {d}"] = of_gradients(lambda a, f=f, more=more: f(a, image, None, *more), image.flip(2))
            out[f"nmi {d}"] = of_gradients(lambda a: k["pointwise.histogram"].mutual_information(a, image, None, 32), image.flip(2))
            matrix = torch.eye(d + 1, dtype=torch.float64) + 0.01 * torch.rand(d + 1, d + 1, dtype=torch.float64)
            out[f"affine {d}"] = of_gradients(lambda m: k["pointwise.affine_sampling"].sample_affinely(image, None, m, shape)[0], matrix)
    margin = torch.nn.functional.pad(image.float(), (3,) * 2 * d, mode="replicate")
    floor, pairs = torch.full((1, 2), 1e-3), neighbor_pairs(d, 2)
    out[f"mind {d}"] = of_gradients(lambda a: k["mind"].fused_difference(a, margin.flip(2), floor, floor, None, 1, pairs), margin)
    out[f"sinc {d}"] = digest(k["windowed_sinc"].windowed_sinc(image[0, 0], 10 * torch.rand(d, 50), 4))
    out[f"softmin {d}"] = digest(k["softmin_grid"].log_convolve(torch.randn(2, *shape), (0.7,) * d))
    q, p, y = torch.rand(d, 900), torch.randn(d, 900), torch.rand(d, 700)
    sigmas, weights = (0.05, 0.2), (0.4, 0.6)
    out[f"sums {d}"] = of_gradients(lambda y, q, p: k["gaussian_sums"].gaussian_sums(y, q, p, sigmas, weights), y, q, p)
    out[f"forces {d}"] = of_gradients(lambda q, p: k["gaussian_sums"].gaussian_forces(q, p, sigmas, weights), q, p)
    x, y = (torch.rand(n, d) for n in (900, 700))
    out[f"log_sum {d}"] = digest(*k["softmin_points"].log_sum(x, y, torch.randn(700), 0.01, True))
from rdmm.data.synthetic.scenes import shapes_pair
pair, _, _ = shapes_pair(3, (70, 64))
for similarity, dynamics in (("mklncc", "rdmm"), ("sinkhorn", "lddmm")):
    config = [f"similarity={similarity}", f"dynamics={dynamics}", "optimizer.iterations=[3,3,3]"]
    done = rdmm.register(fixed=pair.fixed, moving=pair.moving, overrides=config)
    out[f"run {similarity}"] = digest(done.deformation, done.result.ic.momentum)
kinds = [f for m in modules.values() for f in vars(m).values() if hasattr(f, "signatures") and f.targetoptions.get("inline") != "always"]
print(json.dumps([out, sorted(f.py_func.__qualname__ for f in kinds if not f.signatures), len(kinds)]))
"""


def run_script(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.fault(94)
def test_compiled_and_loaded_kernels_give_the_same_bits(tmp_path):
    """Every kernel, and two whole runs: the first process compiles into an empty cache, the second one loads from it."""
    first, second = (run_script(DIGESTS, NUMBA_CACHE_DIR=str(tmp_path / "cache")) for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    (compiled, unused, number), (loaded, *_) = json.loads(first.stdout), json.loads(second.stdout)
    assert {name for name in compiled if compiled[name] != loaded[name]} == set()
    assert unused == [] and number > 15 and any((tmp_path / "cache").rglob("*.nbc"))


USE = """
import logging, os, torch
logging.basicConfig(level="WARNING", format="%(message)s")
{before}
from rdmm.kernels.sampling import sample
print(float(sample(torch.ones(1, 1, 4, 4), torch.zeros(1, 2, 3, 3), (0.1, 0.1)).sum()))
from numba import config
print(config.CACHE_DIR, flush=True)
"""
NO_FOLDER = "from numba.core import caching; caching.CacheImpl._locator_classes = [caching.UserProvidedCacheLocator]"


@pytest.mark.fault(93)
def test_kernels_run_where_no_cache_can_be_written(tmp_path):
    """A container as another user: neither the installation nor HOME can be written. Its folder is private, and is removed."""
    kept = tmp_path / "tmp"
    kept.mkdir()
    done = run_script(USE.format(before=NO_FOLDER), NUMBA_CACHE_DIR="", TMPDIR=str(kept))
    assert done.returncode == 0, done.stderr
    value, folder = done.stdout.split()
    assert done.returncode == 0 and value == "9.0" and folder.startswith(str(kept)), done.stderr
    assert "neither the installation nor" in done.stderr and "NUMBA_CACHE_DIR" in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(kept.iterdir()) == []


@pytest.mark.fault(93)
@pytest.mark.parametrize("state", ["shared", "owned by another", "a file", "private", "new"])
def test_a_cache_that_others_can_write_is_not_used(tmp_path, state):
    """numba unpickles its cache: whoever can write there can run code as this user."""
    folder = tmp_path / "cache"
    if state == "a file":
        folder.touch()
    elif state != "new":
        folder.mkdir(mode=0o700)
    if state == "shared":
        folder.chmod(0o777)
    if state == "owned by another":
        if os.getuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(folder, 65534, -1)
    done = run_script(USE.format(before=""), NUMBA_CACHE_DIR=str(folder))
    value, used = done.stdout.split()
    assert done.returncode == 0 and value == "9.0", done.stderr
    assert (used == str(folder)) == (state in ("private", "new"))
    assert (str(folder) in done.stderr) == (state not in ("private", "new"))


@pytest.mark.fault(93)
@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
def test_another_user_without_a_home(tmp_path):
    """The same as in a container: the installation belongs to root, HOME does not exist."""
    setpriv = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    environment = {**os.environ, "HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent", "NUMBA_CACHE_DIR": ""}
    command = [*setpriv, sys.executable, "-B", "-c", USE.format(before="")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if "No module named" in done.stderr or "Permission" in done.stderr:
        pytest.skip("another user cannot read this environment")
    assert done.returncode == 0 and done.stdout.startswith("9.0"), done.stderr


@pytest.mark.fault(93)
def test_torch_takes_over_where_keops_cannot_start(monkeypatch, caplog):
    pykeops = pytest.importorskip("pykeops", reason="KeOps is an extra: pip install 'rdmm[points]'")

    def refuse(_: bool) -> None:
        raise PermissionError("no folder")

    monkeypatch.setattr(pykeops, "set_verbose", refuse)
    pairwise.has_keops.cache_clear()
    monkeypatch.setattr(pairwise, "MIN_KEOPS_PAIRS", 1)
    x, y = torch.rand(5, 2), torch.rand(4, 2)
    sums = pairwise.reduce_pairs(pairwise.half_squared_distance, x, y, torch.ones(4, 1), log_sum=False)
    pairwise.has_keops.cache_clear()
    assert torch.allclose(sums[:, 0], (torch.cdist(x, y) ** 2 / 2).sum(1), atol=1e-5)
    assert "torch computes" in caplog.text


def test_kept_code_is_of_the_sources_of_all_kernels():
    """A kernel contains functions of other files, and is compiled as compiled.py says: a change there must not leave old code in use."""
    from rdmm.kernels import compiled, lncc, sampling

    stamps = {kernel._cache._cache_file._source_stamp for kernel in (lncc._first_sweep, sampling._forward)}
    assert stamps == {compiled._sources()}
    assert len(compiled._sources()) == 64


def test_no_more_threads_than_cores():
    before = torch.get_num_threads()
    set_threads(1000)
    assert torch.get_num_threads() == len(os.sched_getaffinity(0))
    set_threads(before)
