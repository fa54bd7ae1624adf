"""Training data: files by name or list, splits by subject, pairs by number, a common grid, augmentation."""

import json
import os

import numpy as np
import pytest
import torch
from conftest import bump
from test_faults_input import make_picture, save_nifti

from rdmm import ConfigError, InputError, io
from rdmm.data.intensity import Normalize
from rdmm.data.pair_list import read_pairs
from rdmm.data.synthetic.contrasts import Contrasts
from rdmm.data.synthetic.random_maps import random_diffeomorphism, smooth_noise
from rdmm.data.training.augment import Augment
from rdmm.data.training.library import CommonGrid, ImageCache
from rdmm.data.training.pairs import ContrastPairs, ImagePairs, SyntheticPairs
from rdmm.data.training.sources import FolderSource, Item
from rdmm.data.training.splits import PairSampler, seeded_generator, split
from rdmm.data.training.tables import PairSource, TableSource
from rdmm.spatial.grid import Grid
from rdmm.spatial.image import Image
from rdmm.spatial.ops import jacobian_determinant
from train.batches import both_ways, stack_pairs, stream


def items(*texts: str) -> list[Item]:
    """Items from "subject:time"."""
    return [Item(t.replace(":", "_"), t.split(":")[0], None, None, t.partition(":")[2]) for t in texts]


SIX = items("a:1", "a:2", "b:1", "c:1", "c:2", "c:2b")


@pytest.mark.parametrize("sampling", ["all", "within", "between", "longitudinal"])
def test_couples_are_all_pairs_of_their_kind_and_no_other(sampling):
    rule = {
        "all": lambda f, m: f != m,
        "within": lambda f, m: f != m and f.subject == m.subject,
        "between": lambda f, m: f.subject != m.subject,
        "longitudinal": lambda f, m: f.subject == m.subject and f.time < m.time,
    }[sampling]
    found = PairSampler(SIX, sampling)
    pairs = [(found[i][0].name, found[i][1].name) for i in range(len(found))]
    assert sorted(pairs) == sorted((f.name, m.name) for f in SIX for m in SIX if rule(f, m))
    with pytest.raises(IndexError):
        found[len(found)]


def test_couples_of_a_large_set_are_not_listed():
    many = PairSampler(items(*(f"s{i:05d}:1" for i in range(20000))), "all")
    assert len(many) == 20000 * 19999
    assert many[len(many) - 1][0].name == "s19999_1"


def test_no_such_pair_is_an_error():
    with pytest.raises(ConfigError, match="make no such pair"):
        PairSampler(items("a:1", "b:1"), "within")
    with pytest.raises(ConfigError, match="sampling must be one of all, within"):
        PairSampler(SIX, "al")  # type: ignore[arg-type]


def test_a_split_never_parts_a_subject():
    many = items(*(f"s{i}:{t}" for i in range(30) for t in (1, 2)))
    parts = split(many, (0.6, 0.2, 0.2), 3)
    subjects = {k: {i.subject for i in v} for k, v in parts.items()}
    assert [len(s) for s in subjects.values()] == [18, 6, 6]
    assert set.union(*subjects.values()) == {f"s{i}" for i in range(30)}
    assert sum(map(len, subjects.values())) == 30
    assert split(many[::-1], (0.6, 0.2, 0.2), 3) == parts  # the order of files does not matter, the seed does
    assert split(many, (0.6, 0.2, 0.2), 4) != parts
    with pytest.raises(ConfigError, match="too few"):
        split(many[:4], (0.6, 0.2, 0.2), 0)
    with pytest.raises(ConfigError, match="sum to 1"):
        split(many, (0.6, 0.2, 0.1), 0)


@pytest.mark.fault(76)
def test_given_splits_that_leak_are_an_error():
    """Fault 76."""
    rows = [Item("x", "s", None, None, split="train", where="row 2"), Item("y", "s", None, None, split="test", where="row 3")]
    with pytest.raises(ConfigError, match="must not be in both training and test") as caught:
        split(rows, (1, 0, 0), 0)
    assert "row 2" in str(caught.value) and "row 3" in str(caught.value)
    with pytest.raises(ConfigError, match="row 3: no split"):
        split([rows[0], Item("y", "t", None, None, where="row 3")], (1, 0, 0), 0)


def test_folders_by_pattern(tmp_path):
    for name in ("9001_00m_left", "9001_12m_left", "9002_00m_right"):
        subject, rest = name.split("_", 1)
        (tmp_path / subject / rest).mkdir(parents=True)
        (tmp_path / subject / rest / "image.nii.gz").touch()
        (tmp_path / subject / rest / "labels.nii.gz").touch()
    (tmp_path / "readme.txt").touch()
    found = FolderSource(str(tmp_path), "{subject}/{time}_{id}/image.nii.gz", "{subject}/{time}_{id}/labels.nii.gz").items()
    assert [(i.name, i.subject, i.time) for i in found] == [
        ("9001_00m_left", "9001", "00m"),
        ("9001_12m_left", "9001", "12m"),
        ("9002_00m_right", "9002", "00m"),
    ]
    assert found[0].labels == tmp_path / "9001/00m_left/labels.nii.gz"
    (tmp_path / "9001/12m_left/labels.nii.gz").unlink()
    with pytest.raises(InputError, match=r"its label map .* is missing"):
        FolderSource(str(tmp_path), "{subject}/{time}_{id}/image.nii.gz", "{subject}/{time}_{id}/labels.nii.gz").items()
    with pytest.raises(InputError, match="no file matches the pattern"):
        FolderSource(str(tmp_path), "{subject}.mha").items()
    for pattern, message in (
        ("{sbject}.nii", "did you mean 'subject'"),
        ("{id}.nii", "{subject} is missing"),
        ("../{subject}.nii", "below the root"),
    ):
        with pytest.raises(ConfigError, match=message):
            FolderSource(str(tmp_path), pattern)


def test_tables_of_images(tmp_path):
    """A byte-order mark, Windows line ends and spaces around names are accepted."""
    path = tmp_path / "list.csv"
    path.write_bytes("\ufeffimage, subject,labels,time,split\r\na.nii.gz,s1,a_l.nii.gz,2020,train\r\nb.nii.gz,s2,,2021,test\r\n".encode())
    one, two = TableSource(str(path)).items()
    assert (one.name, one.subject, one.labels, one.split, one.where) == ("a", "s1", tmp_path / "a_l.nii.gz", "train", f"{path}: line 2")
    assert (two.image, two.labels) == (tmp_path / "b.nii.gz", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,subjet\na,b\n", "line 1: no column 'subject' (did you mean 'subjet'?)"),
        ("image,subject,lables\na,b,c\n", "unknown column 'lables' (did you mean 'labels'?)"),
        ("image,subject\na,s\na,t\n", "name 'a' occurs twice: {0}: line 2 and {0}: line 3"),
        ("image,subject\n../a.nii,s\n", "line 2: {1}/../a.nii leads out of"),
        ("image,subject\n/etc/passwd,s\n", "leads out of"),
        ("image,subject,split\na,s,trian\n", "did you mean 'train'"),
        ("image,subject\n,s\n", "line 2: image is empty"),
        ("image,subject\na,s,t\n", "line 2: more fields"),
        ("image,subject\n", "no rows"),
        ("image,subject,name\na,s,../x\n", "cannot be the name of a result"),
    ],
)
@pytest.mark.fault(74, 75, 78)
def test_wrong_tables_name_the_line(tmp_path, text, message):
    """Faults 74, 75, 78."""
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        TableSource(str(path)).items()
    assert message.format(path, tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.fault(78)
def test_links_out_of_the_data_set(tmp_path):
    """Fault 78: a list, which may come from others, cannot lead out of its folder; the links of one's own folder may."""
    (tmp_path / "data").mkdir()
    save_nifti(tmp_path / "store.nii.gz", make_picture())
    (tmp_path / "data/s1.nii.gz").symlink_to(tmp_path / "store.nii.gz")
    (item,) = FolderSource(str(tmp_path / "data")).items()
    assert item.image == tmp_path / "data/s1.nii.gz"
    (tmp_path / "data/list.csv").write_text("image,subject\ns1.nii.gz,s1\n")
    with pytest.raises(ConfigError, match=r"line 2: .* leads out of"):
        TableSource(str(tmp_path / "data/list.csv")).items()


def test_learn2reg(tmp_path):
    path = tmp_path / "dataset.json"
    training = [{"image": "./imagesTr/OASIS_0001_0000.nii.gz", "label": "./labelsTr/OASIS_0001_0000.nii.gz"}]
    val = [{"fixed": "./imagesTr/OASIS_0004_0000.nii.gz", "moving": "./imagesTr/OASIS_0002_0000.nii.gz"}]
    path.write_text(
        json.dumps({"name": "OASIS", "training": training, "test": ["./imagesTs/OASIS_0003_0000.nii.gz"], "registration_val": val})
    )
    train, test = TableSource(str(path)).items()
    assert (train.name, train.subject, train.time, train.split) == ("OASIS_0001_0000", "0001", "0000", "train")
    assert train.labels == tmp_path / "labelsTr/OASIS_0001_0000.nii.gz"
    assert (test.subject, test.split) == ("0003", "test")
    (row,) = read_pairs(path)
    assert (row.id, row.split) == ("0004_0002", "validation")
    for text, message in (
        ("[]", "an object"),
        ("{", "not JSON"),
        ('{"training": 3}', "must be a list"),
        ('{"training": [{"img": "a"}]}', "an object with image"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message.replace("an object", "object")):
            TableSource(str(path)).items()


def test_lists_of_pairs_keep_linked_images_together(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("fixed,moving\na.nii,b.nii\nb.nii,c.nii\nd.nii,e.nii\n")
    source = PairSource(str(path))
    groups = {i.name: i.subject for i in source.items()}
    assert groups["a"] == groups["b"] == groups["c"] != groups["d"] == groups["e"]
    assert [(f.name, m.name) for f, m in source.image_pairs()] == [("a", "b"), ("b", "c"), ("d", "e")]
    path.write_text("id,fixed,moving,split\n1,a.nii,b.nii,train\n2,b.nii,c.nii,test\n")
    with pytest.raises(ConfigError, match=r"b.nii is in 'train' .*line 2.* and in 'test' .*line 3"):
        PairSource(str(path)).items()
    path.write_text("id,fixed,moving\n1,a.nii,b.nii\n1,c.nii,d.nii\n")
    with pytest.raises(ConfigError, match=r"id '1' occurs twice: .*line 2 and .*line 3"):
        read_pairs(path)


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        save_nifti(tmp_path / f"s{i}.nii.gz", make_picture(i))
    return tmp_path


def pairs_of(folder, **more):
    return ImagePairs(FolderSource(str(folder)), **{"shape": (16, 16, 16), "shares": (0.6, 0.2, 0.2), "centre": "world", **more})


def test_a_pair_is_a_function_of_its_number(folder):
    data = pairs_of(folder, augment=Augment(0.02, noise=0.01), shares=(0.34, 0.33, 0.33))
    late = [data.pair(i) for i in (5, 3)]
    again = pairs_of(folder, augment=Augment(0.02, noise=0.01), shares=(0.34, 0.33, 0.33))
    for number, expected in zip((5, 3), late, strict=True):
        assert torch.equal(again.pair(number).pair.fixed.data, expected.pair.fixed.data)
        assert torch.equal(again.pair(number).pair.moving.data, expected.pair.moving.data)
    assert not torch.equal(data.pair(4).pair.fixed.data, data.pair(5).pair.fixed.data)
    test = data.held_out("test")
    names = {n for k in test for n in k.split("-")}
    assert len(names) == 2 and not names & {i.name for i in data.parts["train"]}
    with pytest.raises(ConfigError, match=r"test: .* make no such pair; change data.shares"):
        pairs_of(folder).held_out("test")


@pytest.mark.fault(66)
def test_batches_do_not_depend_on_the_workers(folder):
    """Fault 66."""
    data = pairs_of(folder, augment=Augment(0.02))
    numbers = [[0, 1], [2, 3], [4, 5]]
    alone, helped = (list(stream(data, numbers, workers)) for workers in (0, 2))
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.pair.fixed.data, b.pair.fixed.data)
    assert alone[0].pair.fixed.data.shape == (2, 1, 16, 16, 16)
    assert all(b.pair.fixed.data.is_shared() for b in helped)  # stacked by the worker, and not copied since


def test_both_ways_swaps_images_and_labels():
    sample = stack_pairs([SyntheticPairs((32, 32)).pair(i) for i in range(2)])
    both = both_ways(sample)
    assert torch.equal(both.pair.fixed.data[2:], sample.pair.moving.data)
    assert torch.equal(both.pair.moving.data[2:], sample.pair.fixed.data)
    assert torch.equal(both.fixed_labels.data[2:], sample.moving_labels.data)
    assert torch.equal(both.moving_labels.data[:2], sample.moving_labels.data)


@pytest.mark.fault(53)
def test_bad_files_are_named_and_left_out_on_request(folder):
    """Fault 53."""
    whole = (folder / "s2.nii.gz").read_bytes()
    (folder / "s2.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"s2.nii.gz.*data.skip_bad=true"):
        list(stream(pairs_of(folder, shares=(1, 0, 0)), [[i] for i in range(40)], 0))
    data = pairs_of(folder, shares=(1, 0, 0), skip_bad=True)
    for i in range(40):
        data.pair(i)
    assert list(data.unreadable) == ["s2"]
    for i in range(6):
        (folder / f"s{i}.nii.gz").write_bytes(b"nothing")
    with pytest.raises(InputError, match="none of the 6 images can be used"):
        pairs_of(folder, shares=(1, 0, 0), skip_bad=True).pair(0)


class Dying:
    """A data set whose fourth pair kills the process that reads it."""

    def name(self, number):
        return f"pair{number}.nii.gz"

    def pair(self, number):
        if number == 3:
            os._exit(9)
        return SyntheticPairs((32, 32)).pair(number)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.fault(52)
def test_a_worker_that_dies_is_an_error_that_names_the_file(workers):
    """Fault 52."""
    with pytest.raises(InputError, match=r"died while it read pair3.nii.gz;"):
        list(stream(Dying(), [[0, 1], [2, 3], [4, 5]], workers))


def test_the_common_grid_keeps_places_in_the_world(grid):
    """World positions are kept with centre=world; with centre=image, the image is in the center."""
    image = Image(bump(grid, 0.15).float(), grid)
    shape = tuple(n + 6 for n in grid.shape)
    common = CommonGrid(shape, spacing=tuple(h * 1.25 for h in grid.voxel))
    target = common.grid(image)
    moved, _ = common.resample(target, image, None)
    x = target.to_world(target.identity(image.data))
    index = torch.tensor(grid.extent).view(1, -1, *(1,) * grid.ndim)
    inside = ((grid.from_world(x) > 0.05) & (grid.from_world(x) < index - 0.05)).all(1, keepdim=True)
    from rdmm.spatial.ops import sample

    expected = sample(image.data, grid.from_world(x), grid)
    assert float(((moved.data - expected).abs() * inside).max()) < 0.04  # a low-pass and interpolation
    assert np.allclose(target.corners().mean(0), grid.corners().mean(0), atol=1e-3)
    far = np.asarray(grid.affine).copy()
    far[:-1, -1] += 300
    other = Image(image.data, Grid(grid.shape, far))
    for centre in ("image", "mass"):
        common = CommonGrid(shape, tuple(h * 1.25 for h in grid.voxel), centre)
        a, b = (common.resample(target, i, i) for i in (image, other))
        assert torch.allclose(a[0].data, b[0].data, atol=1e-3)
    with pytest.raises(ConfigError, match="2 or 3 sizes"):
        CommonGrid((4, 4))
    with pytest.raises(ConfigError, match="world, image, mass"):
        CommonGrid((16, 16), centre="middle")  # type: ignore[arg-type]


def test_coarser_grids_come_after_a_low_pass(tmp_path):
    """A checkerboard of single voxels becomes gray, not black or white."""
    fine = Grid((64, 64), np.diag([1.0, 1, 1]))
    board = Image(((torch.arange(64).view(1, 1, 64, 1) + torch.arange(64)) % 2).float(), fine)
    common = CommonGrid((16, 16))
    moved, _ = common.resample(common.grid(board), board, None)
    assert float((moved.data[..., 2:-2, 2:-2] - 0.5).abs().max()) < 0.05


def test_files_are_read_once(folder, monkeypatch):
    calls = []
    read = io.read_image
    monkeypatch.setattr(io, "read_image", lambda *a, **k: calls.append(a) or read(*a, **k))
    library = ImageCache(FolderSource(str(folder)).items(), CommonGrid((16, 16, 16)), Normalize())
    for _ in range(3):
        for item in library.items:
            library(item)
    assert len(calls) <= 7  # one more for the grid


@pytest.mark.parametrize("shape", [(48, 48), (24, 28, 20)])
def test_random_diffeomorphisms_do_not_fold(shape):
    grid = Grid(shape, np.eye(len(shape) + 1))
    transform = random_diffeomorphism(seeded_generator(1), grid, 0.03, 0.1)
    assert float(jacobian_determinant(transform.displacement.double(), transform.grid).min()) > 0
    assert float(transform.displacement.square().mean(dim=(0, *range(2, 2 + len(shape)))).sqrt().max()) > 0.01
    field = smooth_noise(seeded_generator(2), 3, grid, 0.1)
    assert torch.allclose(field.square().flatten(2).mean(2), torch.ones(1, 3), atol=0.25)


def test_labels_are_varied_as_their_image_is():
    data = SyntheticPairs((64, 64)).pair(3)
    image, labels = Augment(0.02, turn=0.1, stretch=0.1, gamma=0.0)(data.pair.fixed, data.fixed_labels, seeded_generator(5))
    inside = image.data[labels.data == 1]
    assert float((inside - 0.5).abs().median()) < 0.05  # the foreground's intensity
    assert not torch.equal(labels.data, data.fixed_labels.data)
    with pytest.raises(ConfigError, match=">= 0"):
        Augment(noise=-1)


@pytest.mark.parametrize("shape", [(64, 64), (32, 36, 28)])
def test_random_contrasts(shape):
    """Labels match intensities, both images have the same regions, and the same seed gives the same pair."""
    data = ContrastPairs(Contrasts(shape, regions=6))
    sample, again = data.pair(3), data.pair(3)
    assert torch.equal(sample.pair.fixed.data, again.pair.fixed.data)
    assert torch.equal(sample.moving_labels.data, again.moving_labels.data)
    a, b = (set(x.data.unique().tolist()) for x in (sample.fixed_labels, sample.moving_labels))
    assert a & b > {0.0} and len(a & b) >= 4
    x, labels = sample.pair.fixed.data, sample.fixed_labels.data
    within = [x[labels == k] for k in sorted(a)]
    unexplained = sum(float((w - w.mean()).square().sum()) for w in within) / float((x - x.mean()).square().sum())
    assert unexplained < 0.4  # regions explain most of the intensities; the rest is blur, bias and noise
    assert len(data.held_out("validation")) == 10
    first, second = (next(iter(data.held_out(p).values()))() for p in ("validation", "test"))
    assert not torch.equal(first.pair.fixed.data, second.pair.fixed.data)
    with pytest.raises(ConfigError, match="regions >= 2"):
        Contrasts(shape, regions=1)
