"""What reading an image may cost, and which names results may have."""

import contextlib
import gzip
import math
import struct
import time
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from rdmm import Grid, InputError, io
from rdmm.cli import main
from rdmm.io import read_grid
from rdmm.io.files import require_ending
from rdmm.io.tools.itk import read_warp
from rdmm.runtime.resources import available_memory, require_memory
from rdmm.spatial.transform import Identity
from rdmm.types import ConfigError, RdmmError, ResourceError
from rdmm.workflows.inspect import info


@pytest.mark.fault(35)
def test_more_memory_than_there_is():
    require_memory(1000, "x.nii")
    with pytest.raises(ResourceError, match=r"^x\.nii needs about [\d.]+ GiB, but only [\d.]+ GiB are free; crop it$"):
        require_memory(2 * available_memory(), "x.nii", "crop it")


@pytest.mark.fault(102)
@pytest.mark.parametrize("name", ["o.nii", "o.nii.gz", "O.NII.GZ", "a.b.Nii"])
def test_endings_in_any_case(name):
    assert require_ending(name, (".nii", ".nii.gz"), "an image").name == name


@pytest.mark.fault(102)
@pytest.mark.parametrize("name", ["o", "o.mha", "o.nii.bz2", "o.gz", "onii", "o.nii.gz.png"])
def test_endings_that_are_not_written(name):
    with pytest.raises(ConfigError, match=r"an image ends in \.nii or \.nii\.gz"):
        require_ending(name, (".nii", ".nii.gz"), "an image")


def encoded(shape=(8, 9, 10), dtype=np.float32):
    """The bytes of an image of random whole numbers."""
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    return nib.Nifti1Image(array, np.diag([2.0, 2, 2, 1]), dtype=dtype).to_bytes()


def with_field(data, offset, code, *values):
    out = bytearray(data)
    struct.pack_into(f"<{code}", out, offset, *values)
    return bytes(out)


READERS = {"image": io.read_image, "labels": io.read_labels, "grid": read_grid, "warp": read_warp, "info": info}


@pytest.fixture
def peak():
    """Measures the memory that Python and numpy take while a function runs, in MB."""

    def measure(function, *arguments):
        tracemalloc.start()
        try:
            with contextlib.suppress(RdmmError):
                function(*arguments)
            return tracemalloc.get_traced_memory()[1] / 1e6
        finally:
            tracemalloc.stop()

    return measure


@pytest.mark.fault(90)
@pytest.mark.parametrize("name", READERS)
def test_a_bomb_behind_the_image(tmp_path, peak, name):
    """16 MB of zeros behind an image of 3 kB, in the same or in another member of the gzip stream."""
    path, zeros = tmp_path / "x.nii.gz", bytes(2**24)
    for content in (gzip.compress(encoded() + zeros, 1), gzip.compress(encoded()) + gzip.compress(zeros, 1)):
        path.write_bytes(content)
        with pytest.raises(InputError, match="far more than the 3232 bytes of its header"):
            READERS[name](str(path))
        assert peak(READERS[name], str(path)) < 8


@pytest.mark.fault(90)
def test_members_of_a_gzip_stream(tmp_path):
    """An image in many members is read; a file of little but members is not read to its end."""
    path, data, none = tmp_path / "x.nii.gz", encoded((30, 30, 30), np.int16), gzip.compress(b"")
    whole = save(tmp_path / "y.nii", data)
    path.write_bytes(none * 1000 + b"".join(gzip.compress(data[k : k + 200]) for k in range(0, len(data), 200)) + none * 1000 + bytes(512))
    assert torch.equal(io.read_image(path).data, io.read_image(whole).data)
    for content in (none * 100_000 + gzip.compress(data), gzip.compress(data) + none * 100_000, none * 100_000):
        path.write_bytes(content)
        start = time.process_time()
        with pytest.raises(InputError):
            io.read_image(path)
        assert time.process_time() - start < 2


@pytest.mark.fault(5, 6, 7, 90)
@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("cut", [0.1, 0.5, 0.95, 0.999])
def test_cut_files(tmp_path, name, cut):
    for ending, data in ((".nii", encoded()), (".nii.gz", gzip.compress(encoded()))):
        path = tmp_path / f"x{ending}"
        path.write_bytes(data[: int(cut * len(data))])
        with pytest.raises(InputError, match=r"truncated|corrupted|not a NIfTI"):
            READERS[name](str(path))


@pytest.mark.fault(8, 35, 90)
@pytest.mark.parametrize("name", ["image", "labels", "warp", "info"])
@pytest.mark.parametrize("shape", [(32767, 32767, 2), (2000, 2000, 2000)])
def test_what_a_header_promises_is_asked_before_it_is_read(tmp_path, peak, monkeypatch, name, shape):
    """A small file cannot hold it; a sparse file that holds it does not fit into the memory."""
    monkeypatch.setattr("rdmm.runtime.resources.available_memory", lambda: 10**9)
    data = with_field(encoded(), 40, "4h", 3, *shape)
    path = tmp_path / "x.nii"
    path.write_bytes(data)
    with pytest.raises(InputError, match=f"truncated.*{'x'.join(map(str, shape))}"):
        READERS[name](str(path))
    with open(path, "r+b") as f:
        f.truncate(352 + 4 * math.prod(shape))
    with pytest.raises(ResourceError, match=f"{'x'.join(map(str, shape))} voxels needs about .* GiB"):
        READERS[name](str(path))
    assert peak(READERS[name], str(path)) < 8


@pytest.mark.fault(35)
def test_a_small_image_on_a_huge_reference(tmp_path, monkeypatch):
    save(tmp_path / "m.nii", encoded())
    path = save(tmp_path / "r.nii", with_field(encoded(), 40, "4h", 3, 1500, 1500, 1500))
    with open(path, "r+b") as f:
        f.truncate(352 + 4 * 1500**3)
    monkeypatch.setattr("rdmm.runtime.resources.available_memory", lambda: 10**9)
    assert read_grid(path).shape == (1500,) * 3
    with pytest.raises(ResourceError, match="a grid of 1500x1500x1500 voxels"):
        io.read_image(tmp_path / "m.nii").moved_by(Identity(), read_grid(path))


def save(path, data):
    path.write_bytes(data)
    return path


@pytest.mark.fault(35)
def test_a_file_is_held_once_while_it_is_read(tmp_path, peak):
    path = save(tmp_path / "x.nii.gz", gzip.compress(encoded((100, 100, 100)), 1))
    assert peak(io.read_image, path) < 4 + 4 + 1 + 3  # float32 read, its absolute values, which are finite; pieces


@pytest.mark.fault(22, 23)
def test_of_a_reference_only_the_grid_is_read(tmp_path):
    """Colors, complex numbers, NaN, volumes, vectors: the grid is that of the first three axes."""
    arrays = [
        np.zeros((8, 9, 10), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")]),
        np.zeros((8, 9, 10), np.complex64),
        np.full((8, 9, 10), np.nan, np.float32),
        np.zeros((8, 9, 10, 4), np.int16),
        np.zeros((8, 9, 10, 1, 3), np.float32),
    ]
    for k, array in enumerate(arrays):
        nib.save(nib.Nifti1Image(array, np.diag([2.0, 2, 2, 1])), tmp_path / f"{k}.nii.gz")
        assert read_grid(tmp_path / f"{k}.nii.gz") == Grid((8, 9, 10), np.diag([2.0, 2, 2, 1]))


IN_MEMORY = {
    "integers stored as bytes": lambda a: nib.Nifti1Image(a.astype(np.int32), AFFINE, nib.Nifti1Header()),
    "a header of bytes": lambda a: nib.Nifti1Image(a.astype(np.float64), AFFINE, bytes_header()),
    "NIfTI-2": lambda a: nib.Nifti2Image(a.astype(np.int16), AFFINE),
    "NIfTI pair": lambda a: nib.Nifti1Pair(a.astype(np.float32), AFFINE),
    "MGH": lambda a: nib.MGHImage(a.astype(np.float32), AFFINE),
    "SPM99": lambda a: nib.Spm99AnalyzeImage(a.astype(np.int16), AFFINE),
    "Analyze": lambda a: nib.AnalyzeImage(a.astype(np.int32), AFFINE),
    "MINC": lambda a: nib.spatialimages.SpatialImage(a.astype(np.uint16), AFFINE),
    "bool": lambda a: nib.spatialimages.SpatialImage(a > 500, AFFINE),
}
AFFINE = np.array([[0, -2.0, 0, 5], [3, 0, 0, -7], [0, 0, 1, 9], [0, 0, 0, 1]])


def bytes_header():
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    return header


@pytest.mark.fault(24)
@pytest.mark.parametrize("name", IN_MEMORY)
def test_nibabel_images_in_memory(name):
    """Values and affine count, whatever the header would store."""
    array = np.arange(8 * 9 * 10).reshape(8, 9, 10)
    image = IN_MEMORY[name](array)
    read = io.read_image(image)
    assert np.array_equal(read.data[0, 0], array > 500 if name == "bool" else array)
    assert np.allclose(read.grid.affine, AFFINE)
    assert read_grid(image) == read.grid


@pytest.mark.fault(5, 6)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mgz"])
def test_the_proxy_of_a_cut_file(tmp_path, ending):
    path = tmp_path / f"x{ending}"
    array = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    (nib.MGHImage if ending == ".mgz" else nib.Nifti1Image)(array, AFFINE).to_filename(path)
    image = nib.load(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"x{ending}.*voxels cannot be read"):
        io.read_image(image)
    path.unlink()
    with pytest.raises(InputError, match=rf"x{ending}.*voxels cannot be read"):
        io.read_image(image)


@pytest.mark.fault(102)
@pytest.mark.parametrize("name", ["o.img", "o.png", "o", "o.nii.bz2", "o.dcm"])
def test_commands_refuse_names_before_they_read(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for words in (
        ["apply", "no.nii", "-t", "no.txt", "-r", "no.nii"],
        ["jacobian", "no.nii"],
        ["barycenter", "no.nii", "no.nii"],
        ["transfer", "no.nii", "no.nii", "no.nii"],
    ):
        done = CliRunner().invoke(main, [*words, "-o", name])
        assert done.exit_code == 2 and "ends in .nii or .nii.gz" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(102)
def test_upper_case_is_compressed(tmp_path):
    io.write_image(tmp_path / "O.NII.GZ", torch.ones(1, 1, 5, 6, 7), Grid((5, 6, 7), np.eye(4)))
    assert (tmp_path / "O.NII.GZ").read_bytes()[:2] == b"\x1f\x8b"
    assert io.read_image(tmp_path / "O.NII.GZ").data.sum() == 210
    assert info(str(tmp_path / "O.NII.GZ"))["kind"] == "image"
