"""Killed at any moment: no file is half written, and no run.json vouches for files that are missing or of another run."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import time
from pathlib import Path

import kills
import pytest

from rdmm import io
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.io import sha256
from rdmm.registration import base
from rdmm.types import OutputError
from rdmm.workflows.job import Job
from rdmm.workflows.launchers import PRELOADED_MODULES, run_job

FAST = ["dynamics=svf", "optimizer.iterations=[1]", "optimizer.scales=[0.5]", "affine=none"]


class Killed(BaseException):
    """Stands for a kill -9: nothing catches it."""


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for k in (1, 2):
        pair, _, _ = shapes_pair(k, (16, 16))
        for name, image in (("f", pair.fixed), ("m", pair.moving)):
            io.write_image(folder / f"{name}{k}.nii.gz", image.data, image.grid)
    return folder


def job(images: Path, number: int, out: str, *more: str) -> Job:
    return Job(f"{images}/f{number}.nii.gz", f"{images}/m{number}.nii.gz", out, [*FAST, *more])


def vouches_wrongly(record: Path) -> list[str]:
    """Names of the outputs that a run.json lists, and that are missing or have another checksum."""
    outputs = json.loads(record.read_text())["outputs"]
    names = {name: Path(str(record).removesuffix("run.json") + name) for name in outputs}
    return [name for name, path in names.items() if not path.exists() or sha256(path) != outputs[name]]


@pytest.mark.fault(47, 110)
def test_results_that_are_replaced_are_vouched_for_before_or_after_never_between(tmp_path, images, monkeypatch):
    """A run replaces one that wrote more files, and is killed before or after each change on the disk."""
    monkeypatch.setattr(base.FinishedRegistration, "render_report", lambda self, summary: "page")
    monkeypatch.setattr("rdmm.registration.images.Registration.thumbnail", lambda self: "")
    old = job(images, 1, f"{tmp_path}/first/", "output.composite=true")
    new, out = job(images, 2, f"{tmp_path}/new/"), tmp_path / "out"
    again, _ = new.run(new.read(), new.settings())[0], old.run(old.read(), old.settings())
    changes = {"write": io.files.Path.replace, "remove": io.files.Path.unlink}
    count, limit = 0, 0

    def step(name):
        def change(*args, **options):
            nonlocal count
            count += 1
            if count > limit:
                raise Killed
            return changes[name](*args, **options)

        return change

    seen = set()
    while True:
        shutil.copytree(tmp_path / "first", out, dirs_exist_ok=True)
        count, limit = 0, limit + 1
        with monkeypatch.context() as patch:
            patch.setattr(io.files.Path, "replace", step("write"))
            patch.setattr(io.files.Path, "unlink", step("remove"))
            try:
                again.write(f"{out}/", overwrite=True)
                break
            except Killed:
                pass
        record = out / "run.json"
        seen.add(record.exists())
        assert not record.exists() or not vouches_wrongly(record), limit
    assert limit > 10 and seen == {False} and not vouches_wrongly(out / "run.json")
    assert not (out / "CompositeWarp.nii.gz").exists()


@pytest.mark.fault(44, 110)
def test_a_failure_before_the_first_file_keeps_the_old_run(tmp_path, images, monkeypatch):
    old = job(images, 1, f"{tmp_path}/")
    finished = old.run(old.read(), old.settings())[0]

    def full(_):
        raise OutputError("no")

    monkeypatch.setattr(type(finished), "compute", full)
    with pytest.raises(OutputError):
        finished.write(f"{tmp_path}/", overwrite=True)
    assert not vouches_wrongly(tmp_path / "run.json") and base.PAGE_FILES[0] == "run.json"


@pytest.mark.slow
@pytest.mark.fault(47, 110)
def test_killed_at_random_moments(tmp_path, images):
    """Nothing vouches for what is missing; repeated, the job gives the undisturbed results. tests/kills.py does more, with batches."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED_MODULES)
    out, chance = tmp_path / "out", random.Random(2)

    def start(job: Job) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=run_job, args=(job,))
        process.start()
        return process

    start(job(images, 1, f"{tmp_path}/old/", "output.composite=true")).join()
    begin = time.monotonic()
    start(job(images, 2, f"{tmp_path}/undisturbed/")).join()
    seconds = time.monotonic() - begin
    for _ in range(8):
        shutil.copytree(tmp_path / "old", out, dirs_exist_ok=True)
        process = start(job(images, 2, f"{out}/"))
        time.sleep(chance.uniform(0.3, 1) * seconds)
        process.kill()
        process.join()
        assert not (out / "run.json").exists() or not vouches_wrongly(out / "run.json")
    start(job(images, 2, f"{out}/")).join()
    assert kills.results(out) == kills.results(tmp_path / "undisturbed")
    assert not vouches_wrongly(out / "run.json") and not list(out.glob(".*"))
