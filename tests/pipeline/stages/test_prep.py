"""Test the stage `prep`: it examines each image, removes copies, and writes the same shards each time."""

import html.parser
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from pipeline.data import shards
from pipeline.data.prepare import build, duplicates, examine
from pipeline.data.prepare.shard_record import KEPT
from pipeline.data.sources.choose import source
from pipeline.display.errors import UserError
from tests.pipeline.data.preparing import encoded, folder, picture, prepared

pytestmark = pytest.mark.long


def test_good_images_are_stored_unchanged_and_once(tmp_path, images):
    made = prepared(tmp_path, images).run()
    assert (made.metrics["train_images"], made.metrics["val_images"]) == (12, 4)
    assert not made.quarantine() and not made.remarks()
    listing = made.context.config.data and build.numbered(
        source(made.context.config.data).listing()
    )
    stored = made.stored("train") | made.stored("val")
    assert sorted(stored) == list(range(16))
    for number, (data, extension, label) in stored.items():
        assert (images / listing[number].name).read_bytes() == data
        assert (extension, label) == ("jpg", listing[number].label)
    assert made.manifest.splits["val"].counts == (2, 2)
    assert made.manifest.size == (24, 30)


def test_the_index_is_what_dali_would_write(tmp_path, images):
    tool = pytest.importorskip("wds2idx")
    made = prepared(tmp_path, images).run()
    for tar in made.folder.glob("*.tar"):
        with tool.IndexCreator(str(tar), str(tmp_path / "idx")) as creator:
            creator.create_index()
        assert tar.with_suffix(".idx").read_text() == (tmp_path / "idx").read_text()


def test_members_are_as_tarfile_would_write_them():
    for number, kind, size in ((0, "jpg", 0), (99_999_999, "target", 8), (7, "png", 123_456_789)):
        member = tarfile.TarInfo(f"{number:08d}.{kind}")
        member.size = size
        assert shards._header(number, kind, size) == member.tobuf(tarfile.USTAR_FORMAT)


def test_mean_and_deviation_are_those_of_the_training_pixels(tmp_path, images):
    made = prepared(tmp_path, images).run()
    pixels = np.concatenate(
        [
            np.asarray(Image.open(io.BytesIO(data))).reshape(-1, 3) / 255
            for data, _, _ in made.stored("train").values()
        ]
    )
    assert np.allclose(made.manifest.mean, pixels.mean(0), atol=1e-5)
    assert np.allclose(made.manifest.std, pixels.std(0), atol=1e-5)


def test_a_training_image_that_is_also_a_validation_image_is_removed(tmp_path, capsys):
    root = tmp_path / "images"
    folder(root / "train")
    folder(root / "val", images=3)  # the same images as in train
    (root / "val" / "dog" / "000.jpg").write_bytes(encoded(picture(77)))
    again = Image.open(root / "train" / "cat" / "005.jpg")
    again.save(root / "train" / "cat" / "copy.png")  # another format, the same pixels
    (root / "train" / "dog" / "copy.jpg").write_bytes(
        (root / "train" / "cat" / "006.jpg").read_bytes()
    )
    made = prepared(tmp_path, root, val_fraction=None, shard_images=4).run()
    output = capsys.readouterr().out
    assert "1 images have a copy of another class, e.g. 'train/dog/copy.jpg': of another" in output
    leaks = {f"train/cat/00{n}.jpg" for n in range(3)} | {f"train/dog/00{n}.jpg" for n in (1, 2)}
    assert made.quarantine().keys() == leaks
    assert made.metrics["train_images"] == 18 - 5
    assert len(made.stored("train")) == 13
    assert made.metrics["copies"] == 2
    assert made.metrics["contradictions"] == 1
    assert "same picture" in str(made.remarks())


def test_images_that_only_look_alike_are_counted_and_kept(tmp_path):
    root = tmp_path / "images"
    for split, quality in (("train", 95), ("val", 60)):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            data = encoded(picture(ord(label), 128, 128), quality=quality)
            (root / split / label / "x.jpg").write_bytes(data)
    made = prepared(tmp_path, root, val_fraction=None).run()
    assert made.metrics["alike"] == 2
    assert made.metrics["train_images"] == 2


def kept(looks, pixels=0, first=0):
    rows = [(first + n, 0, 9, 9, pixels, bits) for n, bits in enumerate(looks)]
    return np.array(rows, dtype=KEPT)


def test_images_look_alike_up_to_three_different_bits_of_their_hash():
    chance = np.random.default_rng(0)
    train, val = chance.integers(1, 1 << 63, 600), chance.integers(1, 1 << 63, 50)
    for place in range(400):
        flipped = chance.choice(63, place % 8, replace=False)
        train[place] = val[place % 50] ^ np.bitwise_or.reduce(1 << flipped, initial=0)
    found = duplicates.find(kept(train), kept(val, 1, first=1000), lambda a, b: False)
    near = np.bitwise_count(train[:, None] ^ val[None]) <= 3
    assert dict(found.alike).keys() == set(np.flatnonzero(near.any(1)))
    assert all(near[one, other - 1000] for one, other in found.alike)
    assert 150 < len(found.alike) <= 200


def test_an_image_with_an_equal_hash_but_other_pixels_is_kept(tmp_path):
    root = tmp_path / "images"
    image = picture(1, 200, 300)
    other = image.copy()
    other.putpixel((1, 1), (1, 2, 3))  # a pixel that the hash does not use
    for split, pixels in (("train", image), ("val", other)):
        for label, shown in (("a", pixels), ("b", picture(2 + (split == "val"), 24, 30))):
            (root / split / label).mkdir(parents=True)
            (root / split / label / "x.png").write_bytes(encoded(shown, "PNG"))
    made = prepared(tmp_path, root, val_fraction=None).run()
    assert not made.quarantine()
    assert made.metrics["alike"] == 1
    hashes = {examine.examine("x", encoded(shown, "PNG"), made.context.config.prep).pixels
              for shown in (image, other)}  # fmt: skip
    assert len(hashes) == 1


def test_shrinking_keeps_the_aspect_ratio_and_never_enlarges(tmp_path):
    root = folder(tmp_path / "images", images=4)
    (root / "cat" / "large.jpg").write_bytes(encoded(picture(5, 200, 300)))
    made = prepared(tmp_path, root, shrink=100).run()
    sizes = {
        Image.open(io.BytesIO(data)).size
        for split in ("train", "val")
        for data, _, _ in made.stored(split).values()
    }
    assert sizes == {(30, 24), (150, 100)}


def test_too_many_bad_images_are_refused_until_they_are_replaced(tmp_path, images):
    (images / "cat" / "003.jpg").write_bytes(b"")
    made = prepared(tmp_path, images, shard_images=4)
    with pytest.raises(UserError, match=r"1 of 16 images are bad.*cat/003.jpg: empty file"):
        made.run()
    assert made.quarantine() == {"cat/003.jpg": "empty file"}
    shown = (made.context.dir / "data.html").read_text()
    assert "refused" in shown and "cat/003.jpg" in shown and "empty file" in shown
    assert not made.folder.exists()
    (images / "cat" / "003.jpg").write_bytes(encoded(picture(9)))
    assert made.run().metrics["images"] == 16
    assert not made.quarantine()


def test_a_few_bad_images_may_be_allowed(tmp_path, images):
    (images / "cat" / "003.jpg").write_bytes(b"")
    made = prepared(tmp_path, images, max_bad=0.07).run()
    assert made.metrics["images"] == 15
    assert made.metrics["quarantined"] == 1


def test_the_number_of_processes_changes_no_byte(tmp_path, images, monkeypatch):
    alone = prepared(tmp_path, images, "alone", shard_images=3).run()
    monkeypatch.setattr(build, "ALONE", 0)
    monkeypatch.setattr("pipeline.stages.prep.cores", lambda: 2)
    several = prepared(tmp_path, images, "several", shard_images=3).run()
    assert alone.files() == several.files()


def test_the_page_shows_each_class_and_what_was_left_out(tmp_path):
    root = folder(tmp_path / "images", classes=("<b>odd & ends", "dog"))
    (root / "dog" / "<script>.jpg").write_bytes(b"no image")
    made = prepared(tmp_path, root, max_bad=0.1).run()
    text = (made.dir / "data.html").read_text()

    class Page(html.parser.HTMLParser):
        tags, words = [], ""

        def handle_starttag(self, tag, attrs):
            self.tags.append((tag, dict(attrs)))

        def handle_data(self, data):
            self.words += data

    page = Page()
    page.feed(text)
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 2 and all(source.startswith("data:image/") for source in sources)
    assert not [tag for tag, _ in page.tags if tag in ("script", "b", "link")]
    assert "<b>odd & ends" in page.words and "<script>.jpg" in page.words
    assert "no image that Pillow knows" in page.words


def test_a_shard_without_images_is_not_written(tmp_path):
    writer = shards.Writer(tmp_path / "train-00000.tar")
    assert writer.close() is None
    assert not list(tmp_path.iterdir())


def test_a_class_that_loses_all_its_training_images_is_refused(tmp_path):
    root = tmp_path / "images"
    folder(root / "train", images=3)
    folder(root / "val", images=1)
    made = prepared(tmp_path, root, shard_images=2, val_fraction=None, max_bad=0.9)
    for number in range(3):
        (root / "train" / "dog" / f"{number:03d}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"no train image of class 'dog' is left: 3 cannot be used"):
        made.run()
    for number in range(3):  # copies of a validation image
        copy = (root / "val" / "dog" / "000.jpg").read_bytes()
        (root / "train" / "dog" / f"{number:03d}.jpg").write_bytes(copy)
    with pytest.raises(UserError, match="4 training images are validation images, too"):
        made.run()
    assert not made.folder.exists()
    # another image of the same name
    (root / "val" / "dog" / "000.jpg").write_bytes(encoded(picture(99)))
    made.run()
    assert len(made.stored("train")) == made.metrics["train_images"] == 5
