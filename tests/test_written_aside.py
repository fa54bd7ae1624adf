"""Files that another thread compresses and writes."""

import contextlib
import shutil
import threading

import numpy as np
import pytest
import torch

from rdmm import Grid, io
from rdmm.io import nifti
from rdmm.io.files import Outputs, write_atomically, written_aside
from rdmm.runtime.interrupt import temporary
from rdmm.types import OutputError


def test_who_writes_does_not_wait(tmp_path, monkeypatch):
    """The caller's next step is what the compression waits for."""
    goes_on, compress = threading.Event(), nifti.gzip_bytes
    monkeypatch.setattr(nifti, "gzip_bytes", lambda data: compress(data) if goes_on.wait(20) else b"")
    with written_aside():
        io.write_image(tmp_path / "a.nii.gz", torch.ones(1, 1, 4, 5), Grid.unit((4, 5)))
        goes_on.set()
    assert np.asarray(io.read_image(tmp_path / "a.nii.gz").data).sum() == 20
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"]


def test_files_are_there_at_the_end_in_any_case(tmp_path):
    with contextlib.suppress(KeyError), written_aside():
        write_atomically(tmp_path / "a", b"1" * 100_000)
        raise KeyError
    assert (tmp_path / "a").read_bytes() == b"1" * 100_000


def test_errors_come_at_the_end(tmp_path):
    def write() -> None:
        with written_aside():
            write_atomically(tmp_path / "missing" / "a", b"")
            write_atomically(tmp_path / "b", b"2")

    with pytest.raises(OutputError, match="missing"):
        write()
    assert (tmp_path / "b").read_bytes() == b"2"
    write_atomically(tmp_path / "c", b"3")
    assert (tmp_path / "c").read_bytes() == b"3"


def test_a_path_is_that_of_the_folder_at_the_time(tmp_path, monkeypatch):
    """Other threads write later, when the program may have gone to another folder."""
    (tmp_path / "later").mkdir()
    monkeypatch.chdir(tmp_path)
    with written_aside():
        write_atomically("a.txt", b"1")
        monkeypatch.chdir(tmp_path / "later")
    assert (tmp_path / "a.txt").read_bytes() == b"1"


def test_an_error_in_a_locked_folder_that_is_gone_is_the_one_that_is_seen(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()

    def lose() -> None:
        with Outputs(f"{folder}/").locked():
            shutil.rmtree(folder)
            folder.touch()
            raise OutputError("the real one")

    with pytest.raises(OutputError, match="the real one"):
        lose()
    assert not [path for path in temporary if path.startswith(str(folder))]
