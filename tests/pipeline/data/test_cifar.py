"""Test the source `cifar10`: images and labels of the authors' archive, and damaged archives."""

import hashlib
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from pipeline.data.sources.choose import source
from pipeline.display.errors import UserError
from tests.launcher import no_longer_than
from tests.pipeline.data.preparing import listing, settings


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Return a folder with a tiny stand-in for the archive of CIFAR-10, and the archive's content."""
    random = np.random.default_rng(0)
    known, content, sums = datasets.CIFAR10, {}, {}
    for name, _ in [*known.train_list, *known.test_list]:
        batch = {
            "data": random.integers(0, 256, (4, 3072), dtype=np.uint8),
            "labels": random.integers(0, 10, 4).tolist(),
        }
        content[name] = pickle.dumps(batch)
    meta = known.meta["filename"]
    content[meta] = pickle.dumps({"label_names": [f"class {n}" for n in range(10)]})
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(f"{known.base_folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
            sums[name] = hashlib.md5(data).hexdigest()
    (tmp_path / known.filename).write_bytes(stream.getvalue())
    monkeypatch.setattr(known, "tgz_md5", hashlib.md5(stream.getvalue()).hexdigest())
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(known, part, [[n, sums[n]] for n, _ in getattr(known, part)])
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": sums[meta]})
    return tmp_path, {name: pickle.loads(data) for name, data in content.items()}


@pytest.mark.parametrize("extracted", [False, True])
def test_the_source_gives_the_pixels_and_labels_of_the_archive(cifar, extracted):
    root, content = cifar
    if extracted:
        with tarfile.open(root / datasets.CIFAR10.filename) as tar:
            tar.extractall(root)
        (root / datasets.CIFAR10.filename).unlink()
    images = source(settings(name="cifar10", root=str(root), val_fraction=None))
    found = images.listing()
    assert found.classes == tuple(f"class {n}" for n in range(10))
    assert [len(found.splits[split]) for split in ("train", "val")] == [20, 4]
    second = content["data_batch_2"]
    item = found.splits["train"][5]
    assert item.label == second["labels"][1]
    pixels = np.asarray(Image.open(io.BytesIO(images.read(item.name))))
    assert np.array_equal(pixels, second["data"][1].reshape(3, 32, 32).transpose(1, 2, 0))


def test_a_damaged_archive_is_named(cifar):
    root, _ = cifar
    archive = root / datasets.CIFAR10.filename
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"cifar-10-python.tar.gz is damaged \(MD5 .* get it again"):
        listing(name="cifar10", root=str(root), val_fraction=None)


class Hostile:
    """An object whose pickle creates a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_batch_with_another_checksum_is_not_unpickled(cifar, tmp_path):
    root, _ = cifar
    with tarfile.open(root / datasets.CIFAR10.filename) as tar:
        tar.extractall(root)
    batch = root / datasets.CIFAR10.base_folder / "data_batch_1"
    batch.write_bytes(pickle.dumps(Hostile(tmp_path / "mark")))
    with pytest.raises(UserError, match=r"data_batch_1 is damaged \(MD5 .* get it again"):
        listing(name="cifar10", root=str(root), val_fraction=None)
    assert not (tmp_path / "mark").exists()


def test_a_missing_archive_says_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"cifar-100-python.tar.gz .*https://.*data.root"):
        source(settings(name="cifar100", root=str(tmp_path), val_fraction=None)).count()


@pytest.mark.parametrize("extracted", [False, True])
def test_a_fifo_in_place_of_a_file_is_refused_without_waiting(cifar, extracted):
    root, content = cifar
    known = datasets.CIFAR10
    archive = root / known.filename
    if extracted:
        with tarfile.open(archive) as tar:
            tar.extractall(root)
    replaced = root / known.base_folder / next(iter(content)) if extracted else archive
    replaced.unlink()
    os.mkfifo(replaced)
    with (
        no_longer_than(60),
        pytest.raises(UserError, match="it is not a regular file; get it again"),
    ):
        listing(name="cifar10", root=str(root), val_fraction=None)
