"""Paths that cannot be used end in one line before anything is computed; every name that a file can have works."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest

from rdmm import io
from rdmm.cli import main
from rdmm.io.files import Outputs, check_output, require_file, write_atomically
from rdmm.registration.record import read_summary
from rdmm.types import InputError, OutputError

FAST = ["dynamics=svf", "optimizer.iterations=[1]", "optimizer.scales=[0.5]", "affine=none"]
UNDECODABLE = os.fsdecode(b"caf\xe9 \xff")


@contextlib.contextmanager
def as_a_user_without_rights():
    """Root may open every folder, so the test becomes nobody for a while."""
    before = os.getresuid()
    if before[1] == 0:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(*before)


def unusable_inputs(folder: Path) -> dict[str, tuple[str, str]]:
    """Paths that cannot be followed to a file, each with a part of the message."""
    (folder / "file.nii").write_bytes(b"x")
    (folder / "empty.nii").touch()
    (folder / "dangling.nii").symlink_to(folder / "gone.nii")
    (folder / "gone").symlink_to(folder / "nowhere")
    (folder / "a.nii").symlink_to(folder / "b.nii")
    (folder / "b.nii").symlink_to(folder / "a.nii")
    os.mkfifo(folder / "pipe.nii")
    return {
        "name of 256 bytes": (f"{folder}/{'x' * 252}.nii", "too long"),
        "name of 256 bytes, not 256 letters": (f"{folder}/{'é' * 126}.nii", "too long"),
        "name of a folder too long": (f"{folder}/{'x' * 300}/f.nii", "too long"),
        "path of 5000 bytes": (f"{folder}/{'x/' * 2500}f.nii", "too long"),
        "NUL": (f"{folder}/f\0.nii", r"NUL character"),
        "half a character, as JSON may hold": (f"{folder}/\ud800.nii", "half a character"),
        "through a file": (f"{folder}/file.nii/f.nii", "file.nii is a file, not a folder"),
        "dangling": (f"{folder}/dangling.nii", f"is a link to {folder}/gone.nii, which does not exist"),
        "below a dangling link": (f"{folder}/gone/f.nii", f"{folder}/gone is a link to {folder}/nowhere, which does not exist"),
        "circle": (f"{folder}/a.nii", "circle"),
        "below a circle": (f"{folder}/a.nii/f.nii", "circle"),
        "pipe": (f"{folder}/pipe.nii", "a pipe or a device"),
        "device": ("/dev/zero", "a pipe or a device"),
        "folder": (f"{folder}", "is a directory"),
        "empty": (f"{folder}/empty.nii", "empty"),
        "missing": (f"{folder}/fil.nii", "did you mean 'file.nii'"),
        "missing folder": (f"{folder}/none/deep/f.nii", f"there is no folder {folder}/none"),
        "no name": ("", "."),
    }


@pytest.mark.fault(1, 2, 3, 101)
def test_inputs_that_cannot_be_opened(tmp_path):
    for what, (path, message) in unusable_inputs(tmp_path).items():
        with pytest.raises(InputError, match=message) as raised:
            require_file(path)
        assert "\0" not in str(raised.value) and "\n" not in str(raised.value), what


@pytest.mark.fault(1, 101)
def test_every_command_reports_them_in_one_line(tmp_path, images, capsys):
    f = str(images / "f.nii.gz")
    for path, _ in unusable_inputs(tmp_path).values():
        for words in (
            ["register", f, path, "-o", f"{tmp_path}/o_"],
            ["register", f, f, "--moving-labels", path, "-o", f"{tmp_path}/o_"],
            ["apply", path, "-t", "t.mat", "-r", f, "-o", f"{tmp_path}/o.nii"],
            ["batch", path, "-o", f"{tmp_path}/o/"],
            ["info", path],
            ["report", path],
        ):
            if path in ("", str(tmp_path)) and words[0] in ("report", "register"):
                continue
            with pytest.raises(SystemExit) as ended:
                main(words)
            out, err = capsys.readouterr()
            assert ended.value.code in (2, 3), (words, err)
            assert len(err.splitlines()) == 1 and "unexpected" not in err and not out, (words, err)


@pytest.mark.fault(1, 101)
def test_folders_without_rights(tmp_path_factory):
    folder = Path("/tmp") / f"rdmm-rights-{os.getpid()}"
    closed = folder / "closed"
    closed.mkdir(parents=True)
    try:
        (closed / "f.nii").write_bytes(b"x")
        (folder / "unreadable.nii").write_bytes(b"x")
        (folder / "unreadable.nii").chmod(0o000)
        folder.chmod(0o755)
        for mode in (0o000, 0o600):
            closed.chmod(mode)
            with as_a_user_without_rights():
                for path in (closed / "f.nii", closed / "none.nii"):
                    with pytest.raises(InputError, match=f"no permission to open the folder {closed}"):
                        require_file(path)
                for out in (f"{closed}/", f"{closed}/o_"):
                    with pytest.raises(OutputError, match="ermission"):
                        Outputs.prepare(out, ["x"], overwrite=True)
                with pytest.raises(OutputError, match="ermission"):
                    check_output(closed / "x", overwrite=True)
                with pytest.raises(OutputError, match="ermission"):
                    write_atomically(closed / "x", b"x")
        closed.chmod(0o300)  # can be entered, not listed: the nearest name is not known, the rest works
        with as_a_user_without_rights(), pytest.raises(InputError, match=r"no such file|no permission"):
            require_file(closed / "none.nii")
        with as_a_user_without_rights(), pytest.raises(InputError, match="no permission to read it"):
            require_file(folder / "unreadable.nii")
    finally:
        subprocess.run(["chmod", "-R", "u+rwx", str(folder)], check=True)
        subprocess.run(["rm", "-r", str(folder)], check=True)


def unusable_outputs(folder: Path) -> dict[str, tuple[str, str]]:
    """Values of -o under which the results of a registration cannot be written, each with a part of the message."""
    (folder / "file").write_bytes(b"x")
    (folder / "dangling").symlink_to(folder / "nowhere")
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "full" / "1InverseWarp.nii.gz").mkdir(parents=True)
    (folder / "p_report.html").mkdir()
    return {
        "prefix of 300": (f"{folder}/{'x' * 300}", "too long"),
        "folder of 300": (f"{folder}/{'x' * 300}/", "too long"),
        "prefix of 235: the longest name does not fit": (f"{folder}/{'x' * 235}", "too long"),
        "letters of two bytes": (f"{folder}/{'é' * 120}", "too long"),
        "path of 5000": (f"{folder}/{'x/' * 2500}", "too long"),
        "path of 4090": (f"{folder}/{'x/' * 2100}"[:4088] + "/", "too long"),
        "NUL": (f"{folder}/x\0", "NUL"),
        "NUL in a folder": (f"{folder}/x\0/", "NUL"),
        "below a file": (f"{folder}/file/out/", "file is a file, not a folder"),
        "a file": (f"{folder}/file/", "file is a file"),
        "prefix below a file": (f"{folder}/file/o_", "file is a file, not a folder"),
        "dangling": (f"{folder}/dangling/", "broken link"),
        "circle": (f"{folder}/circle/", "broken link|circle"),
        "prefix in no folder": (f"{folder}/none/o_", "no such folder"),
        "a result's name is a folder": (f"{folder}/full/", "1InverseWarp.nii.gz: is a folder"),
        "a report's name is a folder": (f"{folder}/p_", "p_report.html: is a folder"),
    }


@pytest.mark.fault(43, 101)
@pytest.mark.parametrize("overwrite", [False, True])
def test_outputs_that_cannot_be_written(tmp_path, images, monkeypatch, capsys, overwrite):
    """One line, before anything is computed; nothing is left."""
    monkeypatch.setattr("rdmm.workflows.job.run", lambda *_, **__: pytest.fail("it computes"))
    for what, (out, message) in unusable_outputs(tmp_path).items():
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as ended:
            main(["register", f"{images}/f.nii.gz", f"{images}/m.nii.gz", "-o", out, *FAST, *["--overwrite"] * overwrite])
        text = capsys.readouterr().err
        assert ended.value.code == 3 and len(text.splitlines()) == 1, (what, text)
        assert re.search(message, text), (what, text)
        assert sorted(tmp_path.rglob("*")) == before, what
    for name in ("x" * 252 + ".nii", "x\0.nii", "none/x.nii", "file/x.nii", "full"):
        with pytest.raises(OutputError):
            check_output(tmp_path / name, overwrite=overwrite)


@pytest.mark.fault(43, 101)
def test_every_name_that_fits_is_written(tmp_path):
    """The temporary file has a short name: the result may have the longest that the system allows."""
    for name in ("x" * 255, "é" * 127 + "x", "a" * 251 + ".nii", UNDECODABLE):
        path = check_output(tmp_path / name, overwrite=False)
        write_atomically(path, b"data")
        assert path.read_bytes() == b"data"
    with pytest.raises(OutputError, match="too long"):
        write_atomically(tmp_path / ("x" * 256), b"data")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.fault(71, 101)
def test_names_that_are_not_utf8(tmp_path, images):
    """Inputs and outputs: run.json holds the very names, pages and tables show them, the report is made again."""
    folder = tmp_path / UNDECODABLE
    folder.mkdir()
    names = {k: str(folder / f"{UNDECODABLE}{k}.nii.gz") for k in "fm"}
    for k, name in names.items():
        Path(name).write_bytes((images / f"{k}.nii.gz").read_bytes())
    out = f"{folder}/{UNDECODABLE}"

    def run(*words: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        return int(ended.value.code or 0)

    assert run("register", names["f"], names["m"], "-o", out, *FAST) == 0
    record = read_summary(Path(f"{out}run.json"))
    assert record["inputs"]["fixed"]["path"] == names["f"] and shlex.split(record["command"])[2] == names["f"]
    assert Path(f"{out}report.html").read_text(encoding="utf-8")
    assert run("report", out, "--overwrite") == 0
    assert run("info", names["f"]) == 0
    warped = str(folder / f"{UNDECODABLE}w.nii.gz")
    assert run("apply", names["m"], "-t", f"{out}1Warp.nii.gz", "-r", names["f"], "-o", warped) == 0
    assert np.isfinite(io.read_image(warped).data.numpy()).all()
    entry = {k: str(Path(names[v]).relative_to(folder)) for k, v in (("fixed", "f"), ("moving", "m"))}
    (folder / "pairs.json").write_text(json.dumps({"registration_val": [entry]}))
    assert run("batch", f"{folder}/pairs.json", "-o", f"{folder}/batch", "--jobs", "1", *FAST) == 0
    assert (folder / "batch/table.csv").read_text(encoding="utf-8").count("done") == 1
    assert (folder / "batch/index.html").read_text(encoding="utf-8")


@pytest.mark.fault(47)
def test_what_killed_writers_left_is_removed_and_what_lives_is_kept(tmp_path):
    """A temporary file is removed when the folder is used again, unless a process still writes it."""
    code = (
        "import os, sys, time; from pathlib import Path; import rdmm.io.files as files\n"
        "with files._temporary_file(Path(sys.argv[1])) as f:\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )

    def writer():
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        return process

    dead, alive = writer(), writer()
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    assert len(list(tmp_path.glob(".rdmm-*.part"))) == 2
    with Outputs(f"{tmp_path}/").locked():
        assert len(list(tmp_path.glob(".rdmm-*.part"))) == 1
    alive.kill()
    alive.wait()
    check_output(tmp_path / "x", overwrite=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(71, 101)
def test_names_that_are_not_utf8_are_printed_as_they_are(tmp_path, images, monkeypatch):
    from rdmm.__main__ import main as program

    path = tmp_path / f"{UNDECODABLE}.nii.gz"
    path.write_bytes((images / "f.nii.gz").read_bytes())
    stream = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(stream, encoding="utf-8"))
    monkeypatch.setattr(sys, "argv", ["rdmm", "info", str(path)])
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        program()
    signal.signal(signal.SIGINT, before)
    sys.stdout.flush()
    assert not ended.value.code and os.fsencode(path) in stream.getvalue()
