import errno
import os
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import oblique

from rdmm import Grid, Image, InputError, OutputError, io
from rdmm.io.files import Outputs, write_atomically
from rdmm.spatial.transform import Affine, Dense, Placed


def random_warp(grid: Grid) -> torch.Tensor:
    return 0.02 * torch.randn(1, grid.ndim, *grid.shape)


@pytest.mark.parametrize("grid", [oblique((9, 8, 7), (1.0, 1.5, 2.0), flip=True), oblique((9, 8), (1.0, 2.0))], ids=["3d", "2d"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_image_round_trip(tmp_path, grid, suffix):
    data = torch.randn(1, 1, *grid.shape)
    io.write_image(tmp_path / f"x{suffix}", data, grid)
    again = io.read_image(tmp_path / f"x{suffix}")
    assert torch.equal(again.data, data)
    assert again.grid.same_frame(grid)


@pytest.mark.parametrize("grid", [oblique((9, 8, 7), (1.0, 1.5, 2.0), flip=True), oblique((9, 8), (1.0, 2.0))], ids=["3d", "2d"])
def test_warp_round_trip_in_itk_layout(tmp_path, grid):
    u = random_warp(grid)
    io.write_warp(tmp_path / "w.nii.gz", u, grid)
    stored = nib.load(tmp_path / "w.nii.gz")
    assert stored.shape == ((9, 8, 7, 1, 3) if grid.ndim == 3 else (9, 8, 1, 1, 2))
    assert int(stored.header["intent_code"]) == 1007
    back = io.read_transform(str(tmp_path / "w.nii.gz"))
    assert isinstance(back, Placed)
    assert isinstance(back.transform, Dense)
    assert torch.allclose(back.transform.displacement, u, atol=1e-6)
    x = grid.identity(torch.zeros(1, dtype=torch.float64))
    world = grid.to_world(Dense(u.double(), grid)(x))
    assert torch.allclose(back(grid.to_world(x)), world, atol=1e-4)


@pytest.mark.parametrize("d", [2, 3])
def test_affine_round_trip(tmp_path, d):
    matrix = np.eye(d + 1)
    matrix[:d] += 0.2 * np.random.default_rng(0).normal(size=(d, d + 1))
    io.write_affine(tmp_path / "a.mat", matrix)
    assert np.allclose(io.read_transform(str(tmp_path / "a.mat")).matrix.numpy(), matrix)
    inverse = io.read_transform(f"[{tmp_path / 'a.mat'},1]")
    assert np.allclose(inverse.matrix.numpy(), np.linalg.inv(matrix))


@pytest.mark.parametrize("grid", [oblique((14, 12, 10), (1.0, 1.5, 2.0), flip=True), oblique((14, 12), (1.0, 2.0))], ids=["3d", "2d"])
def test_simpleitk_reads_our_transforms_alike(tmp_path, grid):
    sitk = pytest.importorskip("SimpleITK")
    d, signs = grid.ndim, np.array([-1, -1, 1])[: grid.ndim]
    u, matrix = random_warp(grid), np.eye(grid.ndim + 1)
    matrix[:d] += 0.1 * np.random.default_rng(0).normal(size=(d, d + 1))
    io.write_warp(tmp_path / "w.nii.gz", u, grid)
    io.write_affine(tmp_path / "a.mat", matrix)
    field = sitk.ReadImage(str(tmp_path / "w.nii.gz"), sitk.sitkVectorFloat64)
    warp, affine = sitk.DisplacementFieldTransform(field), sitk.ReadTransform(str(tmp_path / "a.mat"))
    ours = io.read_transforms([str(tmp_path / "w.nii.gz"), str(tmp_path / "a.mat")])
    rng = np.random.default_rng(1)
    x = torch.as_tensor(rng.uniform(0.2, 0.8, (1, d, 20))) * torch.tensor(grid.extent).view(1, -1, 1)
    points = grid.to_world(x)
    for p, q in zip(points[0].numpy().T, ours(points)[0].numpy().T, strict=True):
        there = affine.TransformPoint(warp.TransformPoint((p * signs).tolist()))
        assert np.allclose(np.array(there) * signs, q, atol=1e-4)


def test_transforms_compose_in_the_order_of_ants(tmp_path):
    """Points go through the first -t first: y = A(x + u(x))."""
    grid = oblique((9, 8, 7), (1.0, 1.5, 2.0))
    u = random_warp(grid)
    io.write_warp(tmp_path / "w.nii.gz", u, grid)
    matrix = np.diag([2.0, 1, 1, 1])
    io.write_affine(tmp_path / "a.mat", matrix)
    both = io.read_transforms([str(tmp_path / "w.nii.gz"), str(tmp_path / "a.mat")])
    x = grid.to_world(grid.identity(torch.zeros(1, dtype=torch.float64)))
    expected = Affine(torch.as_tensor(matrix))(Placed(Dense(u.double(), grid), grid)(x))
    assert torch.allclose(both(x), expected, atol=1e-4)


def test_sheared_grids_are_refused_by_the_warp_writer(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.8
    grid = Grid((9, 8, 7), affine)
    with pytest.raises(OutputError, match="sheared"):
        io.write_warp(tmp_path / "w.nii.gz", random_warp(grid), grid)
    assert not list(tmp_path.iterdir())


def test_other_vector_files_are_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((5, 5, 5, 3), np.float32), np.eye(4)), tmp_path / "x.nii")
    with pytest.raises(InputError, match="does not tell which tool"):
        io.read_transform(str(tmp_path / "x.nii"))
    image = nib.Nifti1Image(np.zeros((5, 5, 5, 1, 3), np.float32), np.eye(4))
    image.header.set_intent(1006)
    nib.save(image, tmp_path / "y.nii")
    with pytest.raises(InputError, match="does not tell which tool"):
        io.read_transform(str(tmp_path / "y.nii"))
    (tmp_path / "z.mat").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a transform of a known tool"):
        io.read_transform(str(tmp_path / "z.mat"))
    with pytest.raises(InputError, match="no such file"):
        io.read_transform(str(tmp_path / "missing.txt"))


def test_itk_text_affines_are_read(tmp_path):
    text = "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
    text += "Parameters: 1 0 0 0 1 0 0 0 1 5 6 7\nFixedParameters: 1 2 3\n"
    (tmp_path / "a.txt").write_text(text)
    matrix = io.read_transform(str(tmp_path / "a.txt")).matrix.numpy()
    assert np.allclose(matrix[:3, 3], [-5, -6, 7])  # LPS to RAS


def test_equal_images_give_equal_files(tmp_path):
    grid = oblique((9, 8, 7), (1.0, 1.5, 2.0))
    for name in ("a", "b"):
        io.write_image(tmp_path / f"{name}.nii.gz", torch.ones(1, 1, *grid.shape), grid)
    assert io.sha256(tmp_path / "a.nii.gz") == io.sha256(tmp_path / "b.nii.gz")


@pytest.mark.fault(42)
def test_landmarks(tmp_path):
    header = "fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z,region"
    (tmp_path / "l.csv").write_bytes(b"\xef\xbb\xbf" + f"{header}\r\n1,2,3,4,5,6,liver\r\n".encode())
    fixed, moving, regions = io.read_landmarks(tmp_path / "l.csv")
    assert fixed.tolist() == [[1, 2, 3]]
    assert moving.tolist() == [[4, 5, 6]]
    assert regions == ["liver"]
    for text, message in (
        (f"{header}\n1,2,3,4,x,6,a", "row 2: moving_y"),
        (f"{header}\n1,2,3,4,nan,6,a", "row 2"),
        ("a,b\n1,2", "fixed_x"),
        (header, "no rows"),
    ):
        (tmp_path / "l.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            io.read_landmarks(tmp_path / "l.csv")


def test_points_round_trip(tmp_path):
    points = np.random.default_rng(0).normal(size=(5, 3)) * 10.0 ** np.arange(-6, 9, 3)[:, None]
    np.savetxt(tmp_path / "p.csv", points, "%.17g", ",", header="x,y,z", comments="")
    read = io.read_points(tmp_path / "p.csv", 3)
    assert (read.points == points).all()
    io.write_points(tmp_path / "q.csv", read)
    assert np.allclose(io.read_points(tmp_path / "q.csv", 3).points, points, rtol=1e-8, atol=0)


@pytest.mark.fault(43, 45)
def test_outputs_are_checked_before_work(tmp_path):
    with pytest.raises(OutputError, match="no such folder"):
        Outputs.prepare(tmp_path / "missing" / "prefix_", ["a"], overwrite=False)
    assert Outputs.prepare(f"{tmp_path}/new/", ["a"], overwrite=False).path("a") == tmp_path / "new" / "a"
    (tmp_path / "p_a").write_text("x")
    with pytest.raises(OutputError, match="overwrite=True"):
        Outputs.prepare(tmp_path / "p_", ["a"], overwrite=False)
    Outputs.prepare(tmp_path / "p_", ["a"], overwrite=True)
    with pytest.raises(OutputError, match="cannot write"):
        Outputs.prepare("/proc/nowhere/", ["a"], overwrite=False)


@pytest.mark.fault(44)
def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys; from rdmm.io.files import write_atomically; from rdmm.types import OutputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomically(sys.argv[1], b'x' * 5000)\n"
        "except OutputError as e: print(e); sys.exit(e.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == OutputError.exit_code, done.stderr
    assert "cannot write" in done.stdout
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.fault(47)
def test_kill_during_a_write_leaves_the_old_or_the_new_file(tmp_path):
    path = tmp_path / "x.bin"
    write_atomically(path, b"0" * 1_000_000)
    code = (
        "import sys; from rdmm.io.files import write_atomically\n"
        "print('ready', flush=True)\n"
        "for i in range(10**6): write_atomically(sys.argv[1], str(i % 10).encode() * 1_000_000)\n"
    )
    for delay in range(4):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01 + 0.013 * delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        data = path.read_bytes()
        assert len(data) == 1_000_000
        assert len(set(data)) == 1


@pytest.mark.fault(37, 38, 39)
def test_masks(tmp_path):
    grid = oblique((9, 8, 7), (1.0, 1.5, 2.0))
    image = Image(torch.randn(1, 1, *grid.shape), grid)
    soft = torch.zeros_like(image.data)
    soft[..., 2:5] = 0.3
    io.write_image(tmp_path / "m.nii", soft, grid)
    assert float(io.read_mask(tmp_path / "m.nii", image).mask.sum()) == float((soft > 0).sum())  # 39: > 0 counts
    io.write_image(tmp_path / "empty.nii", torch.zeros_like(soft), grid)
    with pytest.raises(InputError, match="empty"):
        io.read_mask(tmp_path / "empty.nii", image)
    finer = grid.resized((17, 15, 13))
    io.write_image(tmp_path / "finer.nii", torch.ones(1, 1, *finer.shape), finer)
    assert float(io.read_mask(tmp_path / "finer.nii", image).mask.mean()) == 1  # 38: through the world
    crop = Grid((6, 8, 7), grid.affine)
    io.write_image(tmp_path / "crop.nii", torch.ones(1, 1, *crop.shape), crop)
    with pytest.raises(InputError, match="one of the two is wrong"):
        io.read_mask(tmp_path / "crop.nii", image)


@pytest.mark.fault(38)
def test_labels_must_be_whole_and_on_the_images_grid(tmp_path):
    grid = oblique((9, 8, 7), (1.0, 1.5, 2.0))
    io.write_image(tmp_path / "l.nii", torch.full((1, 1, *grid.shape), 0.5), grid)
    with pytest.raises(InputError, match="whole"):
        io.read_labels(tmp_path / "l.nii")
    io.write_image(tmp_path / "k.nii", torch.full((1, 1, *grid.shape), 300.0), grid, integer=True)
    assert float(io.read_labels(tmp_path / "k.nii").data.max()) == 300
    far = Grid((5, 5, 5), np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * 500)
    with pytest.raises(InputError, match="do not overlap"):
        io.read_labels(tmp_path / "k.nii", Image(torch.zeros(1, 1, 5, 5, 5), far))


@pytest.mark.parametrize("error", [NotImplementedError("no flock"), OSError(errno.ENOSYS, "Function not implemented")])
def test_file_systems_without_locks_are_written_to(tmp_path, monkeypatch, caplog, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with Outputs(f"{tmp_path}/").locked():
        (tmp_path / "x").touch()
    assert "has no locks" in caplog.text and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_locked_prefix_leaves_others_free(tmp_path):
    with Outputs(f"{tmp_path}/a_").locked():
        with Outputs(f"{tmp_path}/b_").locked():
            pass
        with pytest.raises(OutputError, match="another run"), Outputs(f"{tmp_path}/a_").locked():
            pass
    assert not list(tmp_path.iterdir())
