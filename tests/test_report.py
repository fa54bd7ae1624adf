"""report.html and index.html in a browser, and rdmm report."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from browser import Browser, chromium

import rdmm
from rdmm import Image, io
from rdmm.data.synthetic.scenes import shapes_pair
from rdmm.report.html import render_study
from rdmm.types import InputError, OutputError
from rdmm.workflows.reports import study_rows, write_index, write_report

HOSTILE = "<script>document.title='owned'<%2Fscript>&\"x'.nii.gz"
"""A file name that contains a script (fault 85)."""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two runs of images, one with a file of a hostile name, and one failure."""
    folder = tmp_path_factory.mktemp("study")
    for k, name in enumerate(("fixed.nii.gz", HOSTILE)):
        pair, fixed_labels, moving_labels = shapes_pair(k, (40, 32))
        for path, x, whole in (
            (name, pair.fixed.data, False),
            (f"m{k}.nii.gz", pair.moving.data, False),
            (f"l{k}.nii.gz", fixed_labels, True),
        ):
            io.write_image(folder / path, x, pair.fixed.grid, integer=whole)
        io.write_image(folder / f"k{k}.nii.gz", moving_labels, pair.fixed.grid, integer=True)
        done = rdmm.register(
            fixed=folder / name,
            moving=folder / f"m{k}.nii.gz",
            fixed_labels=folder / f"l{k}.nii.gz",
            moving_labels=folder / f"k{k}.nii.gz",
            overrides=["dynamics=rdmm", "optimizer.iterations=[2,2,2]"],
        )
        done.save(f"{folder}/out/r{k}/")
    failure = {"id": "<img src=x onerror=alert(1)>", "status": "InputError", "message": "<b>cut</b>", "exit_code": 3}
    (folder / "out" / "failures.json").write_text(json.dumps([failure]))
    write_index(folder / "out")
    return folder / "out"


@pytest.fixture
def browser(tmp_path):
    if chromium() is None:
        pytest.skip("no Chromium on this machine (Debian's package chromium): pages are not looked at in a browser")
    shown = Browser(tmp_path / "profile")
    yield shown
    shown.close()
    assert not shown.errors
    outside = [r for r in shown.requests if not r.startswith(("file://", "data:"))]
    assert not outside, "a page asked for something over the network"


def test_a_page_moves_through_time(study, browser):
    browser.open(study / "r0" / "report.html")
    assert browser.value("document.querySelectorAll('#planes svg').length") == 1
    assert browser.value("document.getElementById('now').textContent") == "t = 1.000"
    lines = browser.value("document.querySelector('#planes path').getAttribute('d')")
    browser.call("Runtime.evaluate", expression="time.value = 0; time.dispatchEvent(new Event('input'))")
    assert browser.value("document.getElementById('now').textContent") == "t = 0.000"
    straight = browser.value("document.querySelector('#planes path').getAttribute('d')")
    assert straight != lines and straight.count("M") == lines.count("M")
    assert (
        browser.value("[...document.querySelectorAll('#planes image')].filter((i) => i.getAttribute('visibility') === 'visible').length")
        == 1
    )
    browser.call("Runtime.evaluate", expression="lines.click()")
    assert browser.value("document.querySelector('#planes path').getAttribute('d')") == ""
    browser.call("Runtime.evaluate", expression="play.click()")
    assert browser.value("play.textContent") == "Stop"
    assert browser.value("[...document.images].every((i) => i.complete && i.naturalWidth > 0)")


@pytest.mark.fault(85)
def test_names_are_texts(study, browser):
    """Fault 85."""
    browser.open(study / "r1" / "report.html")
    assert HOSTILE in browser.value("document.querySelector('h1').textContent")
    assert browser.value("document.title") != "owned"
    browser.open(study / "index.html")
    assert browser.value("document.body.textContent.includes('<img src=x onerror=alert(1)>')")
    assert browser.value("document.querySelectorAll('tbody img').length") == 2


def test_a_study_is_sorted_worst_first_and_as_one_likes(study, browser):
    browser.open(study / "index.html")
    ids = "[...document.querySelectorAll('tbody tr')].map((row) => row.cells[1].textContent.trim())"
    dice = {r["id"]: r.get("dice") for r in study_rows(study)}
    worst = sorted(("r0", "r1"), key=dice.get)
    assert browser.value(ids)[0].startswith("<img") and browser.value(ids)[1:] == worst
    head = "[...document.querySelectorAll('th button')].find((b) => b.textContent === 'dice')"
    browser.call("Runtime.evaluate", expression=f"{head}.click()")
    assert browser.value(ids)[:2] == worst
    browser.call("Runtime.evaluate", expression=f"{head}.click()")
    assert browser.value(ids)[1:] == worst[::-1]
    assert browser.value("document.querySelector('tbody a').getAttribute('href')").endswith("/report.html")


def test_a_large_page_opens_within_a_second(browser, tmp_path):
    """128^3, and 500 rows of a study."""
    x = torch.linspace(-1, 1, 128)
    ball = (1.5 - 2 * (x.view(-1, 1, 1) ** 2 + x.view(-1, 1) ** 2 + x**2)).clamp(0, 1)[None, None]
    texture = torch.rand(1, 1, 128, 128, 128, generator=torch.Generator().manual_seed(0)) * 0.2
    grid = rdmm.Grid.unit((128, 128, 128))
    pair = {"fixed": Image(ball + texture, grid), "moving": Image(ball.roll(3, 2) + texture, grid)}
    done = rdmm.register(**pair, overrides=["affine=none", "dynamics=svf", "optimizer.scales=[0.25]", "optimizer.iterations=[1]"])
    done.save(f"{tmp_path}/big/")
    browser.open(tmp_path / "big" / "report.html")
    seconds = [browser.open(tmp_path / "big" / "report.html") for _ in range(3)]
    assert min(seconds) < 1
    assert browser.value("document.querySelectorAll('#planes svg').length") == 3
    run = json.loads((tmp_path / "big" / "run.json").read_text())
    rows = [{"id": f"p{k}", "status": "done", "message": "", "dice": k / 500, "thumbnail": run["thumbnail"]} for k in range(500)]
    (tmp_path / "index.html").write_text(render_study("many", rows))
    assert min(browser.open(tmp_path / "index.html") for _ in range(3)) < 1


def test_pages_ask_for_nothing(study):
    """Without a browser: the page has no address except its own data."""
    for path in study.rglob("*.html"):
        text = path.read_text()
        assert not re.search(r"(?:src|href)=\"(?!data:|[\w%]+/report\.html)", text)
        assert "http" not in re.sub(r"base64,[^\"]+", "", text)
        assert "<script>document.title" not in text and "onerror=alert(1)>" not in text


def test_the_same_page_again(study, tmp_path):
    """rdmm report rebuilds the run: the same metrics and texts, and pictures of the same size."""
    path = study / "r0" / "report.html"
    before = path.read_text()
    with pytest.raises(OutputError, match="overwrite=True"):
        write_report(str(study / "r0"), overwrite=False)
    assert write_report(str(study / "r0" / "run.json"), overwrite=True) == path
    after = path.read_text()

    def plain(text: str) -> str:
        return re.sub(r"[\w+/=]{200,}", "", text)

    def measures(text: str) -> str:
        return text[text.index('id="measures"') : text.index("Configuration")]

    assert measures(plain(before)) == measures(plain(after))
    frames = [json.loads(re.search(r'id="frames">(.*?)</script>', t).group(1)) for t in (before, after)]
    assert [f["t"] for f in frames[0]] == [f["t"] for f in frames[1]] == [k / 8 for k in range(9)]
    assert frames[0][0]["lines"] == frames[1][0]["lines"]
    run = json.loads((study / "r0" / "run.json").read_text())
    assert run["outputs"]["report.html"] == io.sha256(path)
    assert base64.b64decode(run["thumbnail"])[:3] == b"\xff\xd8\xff"


def test_a_run_whose_files_changed_is_refused(study, tmp_path):
    shutil.copytree(study / "r0", tmp_path / "r0")
    (tmp_path / "r0" / "1Warp.nii.gz").write_bytes(b"other")
    with pytest.raises(InputError, match=r"1Warp.nii.gz: the file has changed since this run"):
        write_report(str(tmp_path / "r0"), overwrite=True)
    (tmp_path / "r0" / "run.json").write_text("{}")
    with pytest.raises(InputError, match=r"not a run.json"):
        write_report(str(tmp_path / "r0"), overwrite=True)
    with pytest.raises(InputError, match="no run found"):
        write_report(str(tmp_path / "r7"), overwrite=True)
    assert study_rows(tmp_path)[0]["status"] == "unreadable"


def test_a_pair_that_was_done_after_it_failed_is_done(study, tmp_path):
    """A later result replaces an earlier failure, and a later failure replaces an earlier result."""
    shutil.copytree(study / "r0", tmp_path / "r0")
    told = tmp_path / "failures_1of2.json"
    told.write_text(json.dumps([{"id": "r0", "status": "killed", "message": ""}]))
    for seconds, status in ((-10, "done"), (10, "killed")):
        at = (tmp_path / "r0" / "run.json").stat().st_mtime + seconds
        os.utime(told, (at, at))
        assert [row["status"] for row in study_rows(tmp_path)] == [status]


def test_warnings_are_in_the_results(tmp_path):
    """Warnings of a run are in run.json, in its report and in the list of the study, not only in a log."""
    pair, _, _ = shapes_pair(0, (24, 24))
    x = pair.moving.data.clone()
    x[..., 3, 4] = float("nan")
    io.write_image(tmp_path / "f.nii.gz", pair.fixed.data, pair.fixed.grid)
    nib.save(nib.Nifti1Image(x[0, 0].numpy(), np.eye(4)), tmp_path / "<m>.nii.gz")
    settings = {"overrides": ["optimizer.iterations=[1,1,1]"], "nan": "zero"}
    rdmm.register(fixed=tmp_path / "f.nii.gz", moving=tmp_path / "<m>.nii.gz", **settings).save(f"{tmp_path}/out/a/")
    (warning,) = json.loads((tmp_path / "out/a/run.json").read_text())["warnings"]
    assert warning.endswith("<m>.nii.gz: 1 voxel is NaN or Inf: set to 0")
    assert "&lt;m&gt;.nii.gz: 1 voxel is NaN or Inf" in (tmp_path / "out/a/report.html").read_text()
    (row,) = study_rows(tmp_path / "out")
    assert row["message"] == warning
    rdmm.register(fixed=tmp_path / "f.nii.gz", moving=tmp_path / "f.nii.gz", **settings).save(f"{tmp_path}/out/b/")
    assert json.loads((tmp_path / "out/b/run.json").read_text())["warnings"] == []


def test_a_run_remembers_how_its_images_were_read(tmp_path):
    """A run from Python has no command line, so run.json records the reading options."""
    pair, _, _ = shapes_pair(3, (40, 32))
    pair.fixed.data[0, 0, 10, 10] = np.nan
    for name, image in (("f", pair.fixed), ("m", pair.moving)):
        array = image.data[0, 0].numpy()
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii.gz")
    files = {"fixed": tmp_path / "f.nii.gz", "moving": tmp_path / "m.nii.gz"}
    rdmm.register(**files, nan="mask", affine="none", optimizer="none").save(f"{tmp_path}/out/")
    assert json.loads((tmp_path / "out/run.json").read_text())["reading"] == {"nan": "mask"}
    assert write_report(f"{tmp_path}/out/", overwrite=True).exists()


def test_a_failure_comes_before_the_first_file(tmp_path, monkeypatch):
    """A result that cannot be computed leaves no file that would block the next run."""
    pair, _, _ = shapes_pair(3, (40, 32))
    done = rdmm.register(fixed=pair.fixed, moving=pair.moving, affine="none", optimizer="none")
    monkeypatch.setattr(type(done), "inverse_deformation", property(lambda _: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        done.save(f"{tmp_path}/out/")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_summary_holds_no_picture(tmp_path):
    """--json prints the summary; the thumbnail of lists is in run.json alone."""
    pair, _, _ = shapes_pair(3, (40, 32))
    done = rdmm.register(fixed=pair.fixed, moving=pair.moving, affine="none", optimizer="none")
    _, summary = done.write(f"{tmp_path}/out/", overwrite=False)
    assert "thumbnail" not in summary
    assert "thumbnail" in json.loads((tmp_path / "out/run.json").read_text())


@pytest.mark.parametrize("reading", [5, {"foo": 1}, ["nan"]])
def test_a_damaged_record_of_reading_is_refused(tmp_path, reading):
    pair, _, _ = shapes_pair(3, (40, 32))
    rdmm.register(fixed=pair.fixed, moving=pair.moving, affine="none", optimizer="none").save(f"{tmp_path}/out/")
    path = tmp_path / "out/run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"reading": reading}))
    with pytest.raises(InputError, match=r"not a run\.json of rdmm: 'reading' must hold"):
        write_report(f"{tmp_path}/out/", overwrite=True)
