"""prep: every image looked at, the same shards whatever happens on the way."""

import html.parser
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pipeline.data import shards
from pipeline.data.prepare import build, duplicates, examine
from pipeline.data.prepare.shard_record import KEPT
from pipeline.data.sources import changes
from pipeline.data.sources.choose import source
from pipeline.errors import UserError
from pipeline.planning import freshness
from tests.launcher import PROJECT, wait_for
from tests.pipeline.data.preparing import Prepared, encoded, folder, picture

pytestmark = pytest.mark.long


@pytest.fixture
def images(tmp_path):
    return folder(tmp_path / "images")


def prepared(tmp_path, images, name="o", **changes):
    return Prepared(tmp_path / name, name="imagefolder", root=str(images), **changes)


def test_good_images_are_stored_as_they_are_once_each(tmp_path, images):
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


def test_a_training_image_that_is_a_validation_image_is_taken_out(tmp_path):
    root = tmp_path / "images"
    folder(root / "train")
    folder(root / "val", images=3)  # the same pictures
    (root / "val" / "dog" / "000.jpg").write_bytes(encoded(picture(77)))
    again = Image.open(root / "train" / "cat" / "005.jpg")
    again.save(root / "train" / "cat" / "copy.png")  # another format, the same pixels
    (root / "train" / "dog" / "copy.jpg").write_bytes(
        (root / "train" / "cat" / "006.jpg").read_bytes()
    )
    made = prepared(tmp_path, root, val_fraction=None, shard_images=4).run()
    leaks = {f"train/cat/00{n}.jpg" for n in range(3)} | {f"train/dog/00{n}.jpg" for n in (1, 2)}
    assert made.quarantine().keys() == leaks
    assert made.metrics["train_images"] == 18 - 5
    assert len(made.stored("train")) == 13
    assert made.metrics["copies"] == 2
    assert made.metrics["contradictions"] == 1
    assert "same picture" in str(made.remarks())


def test_killed_while_it_takes_out_leaks_it_ends_with_the_same_bytes(tmp_path, monkeypatch):
    root = tmp_path / "images"
    folder(root / "train")
    folder(root / "val", images=3)
    (root / "val" / "dog" / "x.jpg").write_bytes(encoded(picture(77)))
    settings = {"val_fraction": None, "shard_images": 2}
    whole = prepared(tmp_path, root, "whole", **settings).run()
    killed, real, dropped = prepared(tmp_path, root, "killed", **settings), build.drop, []

    def dies(*arguments):
        if dropped:
            raise KeyboardInterrupt
        dropped.append(real(*arguments))
        return dropped[0]

    monkeypatch.setattr(build, "drop", dies)
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    monkeypatch.undo()
    assert killed.run().files() == whole.files()
    assert killed.metrics == whole.metrics and len(killed.quarantine()) == 6


def test_pictures_that_only_look_alike_are_told(tmp_path):
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


def test_up_to_three_bits_of_looks_may_differ():
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


def test_equal_hashes_are_not_enough_to_be_taken_out(tmp_path):
    root = tmp_path / "images"
    image = picture(1, 200, 300)
    other = image.copy()
    other.putpixel((1, 1), (1, 2, 3))  # between the pixels that the hash looks at
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


def test_shrinking_keeps_shape_and_never_enlarges(tmp_path):
    root = folder(tmp_path / "images", images=4)
    (root / "cat" / "large.jpg").write_bytes(encoded(picture(5, 200, 300)))
    made = prepared(tmp_path, root, shrink=100).run()
    sizes = {
        Image.open(io.BytesIO(data)).size
        for split in ("train", "val")
        for data, _, _ in made.stored(split).values()
    }
    assert sizes == {(30, 24), (150, 100)}


def test_too_many_bad_images_refuse_and_mending_goes_on(tmp_path, images):
    (images / "cat" / "003.jpg").write_bytes(b"")
    made = prepared(tmp_path, images, shard_images=4)
    with pytest.raises(UserError, match=r"1 of 16 images are bad.*cat/003.jpg: empty file"):
        made.run()
    assert made.quarantine() == {"cat/003.jpg": "empty file"}
    assert not made.folder.exists()
    (images / "cat" / "003.jpg").write_bytes(encoded(picture(9)))
    assert made.run().metrics["images"] == 16
    assert not made.quarantine()


def test_a_few_bad_ones_may_be_allowed(tmp_path, images):
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


SLOW = """
import sys
from pathlib import Path
from pipeline.data.prepare import examine as check
from tests.pipeline.data.preparing import Prepared
examine = check.examine
def slowly(*arguments):
    import time
    time.sleep(0.02)
    return examine(*arguments)
from pipeline.data.prepare import build
build.examine = slowly
Prepared(Path(sys.argv[1]), shard_images=3, name="imagefolder", root=sys.argv[2]).run()
"""


def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path, images):
    whole = prepared(tmp_path, images, "whole", shard_images=3).run()
    root, kills = tmp_path / "killed", 0
    chance = random.Random(3)
    for _ in range(40):
        process = subprocess.Popen([sys.executable, "-c", SLOW, root, images], cwd=PROJECT)
        building = root / "data" / ".abc.building"
        until = time.monotonic() + 30
        before = len(list(building.glob("*.json"))) if building.exists() else 0
        while process.poll() is None and time.monotonic() < until:
            if len(list(building.glob("*.json"))) > before:
                time.sleep(chance.random() * 0.06)
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.002)
        kills += process.wait() == -signal.SIGKILL
        if (root / "data" / "abc").exists():
            break
    assert kills >= 3
    killed = prepared(tmp_path, images, "killed", shard_images=3)
    killed.run()
    assert killed.files() == whole.files()


def test_what_is_done_is_not_done_again(tmp_path, images, monkeypatch):
    made = prepared(tmp_path, images, shard_images=3)
    real, written = build.carry_out, []

    def stops(task):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(task.path.name)
        return real(task)

    monkeypatch.setattr(build, "carry_out", stops)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    monkeypatch.setattr(
        build, "carry_out", lambda task: written.append(task.path.name) or real(task)
    )
    made.run()
    assert len(written) == len(set(written)) == len(list(made.folder.glob("*.tar")))


def test_another_listing_is_not_mixed_with_what_was_begun(tmp_path, images, monkeypatch):
    made = prepared(tmp_path, images, shard_images=3)
    monkeypatch.setattr("pipeline.stages.prep._refuse_bad", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.run()
    monkeypatch.undo()
    (images / "cat" / "new.jpg").write_bytes(encoded(picture(123)))
    made.run()
    fresh = prepared(tmp_path, images, "fresh", shard_images=3).run()
    assert made.files() == fresh.files()


def test_a_process_that_is_killed_is_named(tmp_path, images, monkeypatch):
    monkeypatch.setattr(build, "ALONE", 0)
    config = prepared(tmp_path, images).context.config
    work = build.tasks(source(config.data).listing(), config.data, config.prep, tmp_path)
    monkeypatch.setattr(build, "carry_out", _die)
    with pytest.raises(UserError, match="a process of prep was killed"):
        build.build(work, 2, lambda done: None)


def _die(task):
    os.kill(os.getpid(), signal.SIGKILL)


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


def test_a_shard_that_loses_all_its_images_is_no_shard(tmp_path):
    writer = shards.Writer(tmp_path / "train-00000.tar")
    assert writer.close() is None
    assert not list(tmp_path.iterdir())


def test_files_replaced_under_the_same_names_are_read_again(tmp_path, images):
    for number in (3, 4):
        (images / "cat" / f"00{number}.jpg").write_bytes(b"")
    made = prepared(tmp_path, images, shard_images=4)
    with pytest.raises(UserError, match="2 of 16 images are bad"):
        made.run()
    for number in range(8):  # the bad ones, and good ones of shards that are done
        (images / "cat" / f"00{number}.jpg").write_bytes(encoded(picture(50 + number)))
    fresh = prepared(tmp_path, images, "fresh", shard_images=4).run()
    assert made.run().files() == fresh.files()


def test_prepared_data_of_other_files_is_set_aside(tmp_path, images):
    made = prepared(tmp_path, images).run()
    before = made.files()
    assert made.run().files() == before and not list(made.folder.parent.glob("*.before-*"))
    (images / "cat" / "000.jpg").write_bytes(encoded(picture(99)))
    assert made.run().files() != before
    kept = made.folder.parent / "abc.before-1" / "manifest.json"
    assert kept.read_bytes() == before["manifest.json"]
    (made.folder / "manifest.json").write_text("{")  # damaged: nothing can be made of it
    assert made.run().files()["manifest.json"] != before["manifest.json"]
    assert (made.folder.parent / "abc.before-2").is_dir()


def changes_of(made, images, seconds=60.0):
    return changes.compare(images, made.folder / changes.FILE, seconds)


def test_what_became_of_the_files_is_counted(tmp_path, images):
    (images / "loose.jpg").write_bytes(b"")
    made = prepared(tmp_path, images).run()
    assert not str(changes_of(made, images))
    (images / "cat" / "Thumbs.db").touch()
    (images / "cat" / ".hidden.jpg").touch()
    assert not str(changes_of(made, images))
    for name in ("cat/new.jpg", "dog/deep/down.jpg"):
        (images / name).parent.mkdir(exist_ok=True)
        shutil.copy(images / "cat" / "000.jpg", images / name)
    folder(images, ("fox",), images=3)
    (images / "cat" / "001.jpg").unlink()
    with (images / "dog" / "002.jpg").open("ab") as file:
        file.write(b"more")
    os.utime(images / "dog" / "003.jpg", (0, 1))
    assert str(changes_of(made, images)) == "5 added, 1 removed, 2 changed"
    in_no_time = changes_of(made, images, seconds=0.0)
    assert (in_no_time.unseen, in_no_time.files) == (16, 16)
    shutil.rmtree(images / "dog")
    assert str(changes_of(made, images)) == "4 added, 9 removed"


@pytest.mark.parametrize("change", ["nothing", "a file more", "no time", "no record", "no root"])
def test_a_launch_notes_what_changed_since(tmp_path, images, capsys, monkeypatch, change):
    made = prepared(tmp_path, images).run()
    words = {
        "nothing": "", "a file more": f"data.root={images} has changed since it was prepared: 1 added; ",
        "no time": "16 of 16 files below", "no record": "of an older version, so nobody knows",
        "no root": "is not there, so nobody knows",
    }[change]  # fmt: skip
    if change == "a file more":
        shutil.copy(images / "cat" / "000.jpg", images / "cat" / "new.jpg")
    elif change == "no time":
        monkeypatch.setattr(freshness, "PATIENCE", 0.0)
    elif change == "no record":
        (made.folder / changes.FILE).unlink()
    elif change == "no root":
        images.rename(tmp_path / "away")
    step = SimpleNamespace(
        state="done", repeats=False, wanted=True, dir=made.dir, fingerprint="abc"
    )
    capsys.readouterr()
    freshness.tell(made.context.config, step, ["name=x", "dry_run=true"])
    told = capsys.readouterr().out
    assert words in told and told.count("\n") == bool(words)
    assert not words or "python -m pipeline.launch name=x 'again=[prep]'" in told


def test_the_manifest_tells_what_was_read_and_what_was_passed_over(tmp_path, images):
    (images / "dog" / "notes.txt").touch()
    (images / "@eaDir").mkdir()
    made = prepared(tmp_path, images).run()
    assert made.manifest.source.keys() == {"files", "bytes", "sha256"}
    assert made.manifest.source["files"] == 16
    assert made.manifest.passed_over == made.metrics["ignored_files"] == 2
    rows = [json.loads(line) for line in (made.folder / "passed_over.jsonl").open()]
    assert [row["name"] for row in rows] == ["@eaDir/", "dog/notes.txt"]
    assert "no image by its name" in (made.dir / "data.html").read_text()


HANGS = """
import sys, time
from pathlib import Path
from pipeline.signals import interrupt
from pipeline.data.prepare import build
from pipeline.data.sources import folders
from tests.pipeline.data.preparing import Prepared
if __name__ == "__main__" or sys.argv[3] == "processes":
    def hangs(path):
        Path(sys.argv[1], "reading").touch()
        time.sleep(600)
    folders.read = hangs
if __name__ == "__main__":
    interrupt.install()
    build.ALONE = 0 if sys.argv[3] == "processes" else 4000
    made = Prepared(Path(sys.argv[1]), shard_images=3, name="imagefolder", root=sys.argv[2])
    made.context.stopping = interrupt.requested
    made.run()
"""


@pytest.mark.parametrize("where", ["here", "processes"])
def test_a_read_that_hangs_does_not_keep_it_from_stopping(tmp_path, images, where):
    script, root = tmp_path / "script.py", tmp_path / "o"
    script.write_text(HANGS)
    process = subprocess.Popen(
        [sys.executable, script, root, images, where],
        cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for((root / "reading").exists, process)
    process.terminate()
    _, told = process.communicate(timeout=20)
    assert process.returncode and "Interrupted" in told
