"""Test the source `custom`: images from the user's code are checked and stored like all others."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.prepare import build
from pipeline.data.sources.custom import Custom
from pipeline.data.sources.pairs import Unfit, encoded, label
from pipeline.display.errors import UserError
from tests.pipeline.data.preparing import Prepared, picture, settings
from tests.pipeline.data.preparing import encoded as saved

GIVES = """
import numpy as np
from tests.pipeline.data.preparing import encoded, picture

NAMES = ["cat", "dog"]

def image(n):
    kinds = [lambda p: p, lambda p: encoded(p, "PNG"), np.asarray]
    return kinds[n % 3](picture(n))

def names(count=24):
    for n in range(count):
        yield image(n), NAMES[n % 2]

class Numbers(list):
    classes = NAMES
    def __init__(self, count=24, root=None):
        super().__init__((image(n), n % 2) for n in range(count))
        self.root = root

class Targets(Numbers):
    reads = []
    def __init__(self):
        super().__init__()
        self.targets = np.arange(24) % 2
    def __getitem__(self, n):
        self.reads.append(n)
        return super().__getitem__(n)

def both():
    return {"train": Targets(), "val": names(8)}

class IterableDataset: pass
class Streamed(IterableDataset, list):
    def __getitem__(self, n): raise NotImplementedError
def streamed():
    return Streamed(names())
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Return a function that writes the module `mine`, which is forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (tmp_path / "mine.py").write_text(text)
        sys.modules.pop("mine", None)

    yield write
    sys.modules.pop("mine", None)
    build._opened.clear()


def chosen(name, args=None, **more):
    return {"name": "custom", "target": f"mine:{name}", "args": args, "code": None, **more}


def pixels(prepared):
    """Return the class and the pixels of each stored image, by its number."""
    names = prepared.manifest.classes
    return {
        number: (names[label], np.asarray(Image.open(io.BytesIO(data))).tobytes())
        for split in ("train", "val")
        for number, (data, _, label) in prepared.stored(split).items()
    }


@pytest.mark.parametrize("name", ["names", "Numbers", "Targets", "streamed"])
def test_images_and_classes_are_those_that_the_code_gives(tmp_path, mine, name):
    mine(GIVES)
    prepared = Prepared(tmp_path, **chosen(name)).run()
    expected = {n: (["cat", "dog"][n % 2], np.asarray(picture(n)).tobytes()) for n in range(24)}
    assert pixels(prepared) == expected
    assert prepared.manifest.classes == ("cat", "dog")
    assert (prepared.metrics["train_images"], prepared.metrics["val_images"]) == (18, 6)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [
        "abc"
    ]  # no temporary folder is left


def test_images_with_known_classes_are_read_once(tmp_path, mine):
    mine(GIVES)
    Prepared(tmp_path, **chosen("Targets")).run()
    assert sorted(sys.modules["mine"].Targets.reads) == list(range(24))


def test_a_target_may_give_both_splits(tmp_path, mine):
    mine(GIVES.replace("range(count):", "range(100, 100 + count):"))
    prepared = Prepared(tmp_path, **chosen("both", val_fraction=None)).run()
    assert (prepared.metrics["train_images"], prepared.metrics["val_images"]) == (24, 8)


def test_a_root_is_handed_to_the_target(mine):
    mine(GIVES)
    source = Custom(settings(**chosen("Numbers", {"count": 10}, root="/data/x")))
    assert source.sizes()[:2] == (7, 2)
    assert source._given["all"].root == "/data/x"


IMAGES = {
    "grey": (picture(0, mode="L"), "L"),
    "cmyk": (picture(0, mode="CMYK"), "CMYK"),
    "float": (picture(0, mode="L").convert("F"), "F"),
    "palette": (picture(0).convert("P"), "P"),
    "bytes": (saved(picture(0), "PNG"), "RGB"),
    "array": (np.asarray(picture(0)), "RGB"),
    "one channel": (np.zeros((4, 5, 1), np.uint8), "L"),
    "tensor": (torch.zeros(3, 4, 5, dtype=torch.uint8), "RGB"),
    "flat tensor": (torch.zeros(4, 5, dtype=torch.uint8), "L"),
    "one of a tensor": (torch.zeros(1, 4, 5, dtype=torch.uint8), "L"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_is_encoded_without_loss(kind):
    given, mode = IMAGES[kind]
    image = Image.open(io.BytesIO(encoded(given)))
    assert image.mode == mode
    if isinstance(given, Image.Image):
        assert image.tobytes() == given.tobytes()


def test_an_image_keeps_its_orientation():
    image, exif = picture(0), Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(io.BytesIO(saved(image, "JPEG", exif=exif)))
    assert Image.open(io.BytesIO(encoded(turned))).getexif()[0x0112] == 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 5), np.float32), "its image is float32; give uint8"),
        (torch.zeros(3, 4, 5), "its image is float32"),
        (np.zeros((3, 4, 5), np.uint8), r"has the shape \(3, 4, 5\); give \(H, W\)"),
        (np.zeros((0, 5, 3), np.uint8), r"has the shape \(0, 5, 3\)"),
        ("cat.jpg", "its image is of type str; give a PIL image, encoded bytes"),
        (None, "its image is of type NoneType"),
    ],
)
def test_a_value_that_is_not_an_image_is_refused(given, message):
    with pytest.raises(Unfit, match=message):
        encoded(given)


@pytest.mark.parametrize(("given", "kept"), [(np.int64(3), 3), (torch.tensor(2), 2), ("a", "a")])
def test_a_label_is_a_number_or_a_name(given, kept):
    assert (label(given), type(label(given))) == (kept, type(kept))


@pytest.mark.parametrize(
    "given", [1.0, None, np.zeros(3), torch.tensor(1.5), [1], -1, "", np.int8(-3)]
)
def test_another_label_is_refused(given):
    with pytest.raises(Unfit, match=r"its class is (of type|'';|-\d;)"):
        label(given)


ITEM = "(b'x', 0)"
REFUSED = {
    "def f(): return None": "returns NoneType, which gives no images",
    "def f(): return []": "gives no image",
    "def f():\n    return\n    yield": "gives no image",
    "def f(): return [1]": "image 0: it is of type int, no pair (image, class)",
    f"def f(): return [({ITEM[1:-1]}, 1)]": "image 0: it is of type tuple, no pair",
    "def f(): return [(b'x', 1.5)]": "image 0: its class is of type float",
    "def f(): return [([1], 1)]": "image 0: its image is of type list; give a PIL image",
    "def f():\n    yield 1 / 0": "raised ZeroDivisionError: division by zero (mine.py line 2) at image 0",
    "def f(): return {'train': [], 'test': []}": "a mapping of 'train', 'test'; name train and val",
    f"def f(): return {{'train': [{ITEM}], 'val': [{ITEM}]}}": "launch with data.val_fraction=null",
    f"class f(list):\n    classes = 3\n    def __init__(self): self.append({ITEM})": "classes is 3; it",
    f"class f(list):\n    targets = [1]\n    def __init__(self): self.append({ITEM})": (
        "gives image 0 the class 0, but its targets begin with 1; make them agree"
    ),
    f"class f(list):\n    targets = [0, 1]\n    def __init__(self): self.append({ITEM})": (
        "has 1 images, but 2 classes in targets"
    ),
    "def f(): return [(b'x', -1)]": "image 0: its class is -1; give a name, or a number from 0",
    "class f(list):\n    targets = [0, -1]\n    def __init__(self): self += [(b'x', 0)] * 2": (
        "targets, image 1: its class is -1; give a name"
    ),
    "import os\nclass f(list):\n    def __init__(self): self.append(1)\n"
    "    def __getitem__(self, n): return os.urandom(9), 0": "gives another image 0 each time",
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_a_target_that_gives_no_images_is_refused_in_one_line(mine, text):
    mine(text)
    with pytest.raises(UserError) as refused:
        Custom(settings(**chosen("f"))).sizes()
    assert str(refused.value).startswith("data.target=mine:f")
    assert REFUSED[text] in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("self += [(b'x', 2)] * 3", "mine:f/00000000 has the label 2, but the 2 classes go from 0"),
        ("self += [(b'x', 0)] * 3; self.targets = [0, 1, 2]", "mine:f/00000002 has the label 2"),
        ("self += [(b'x', 'c')] * 3", "has the label 'c', but the 2 classes"),
    ],
)
def test_a_class_without_a_name_is_refused_before_prep(mine, text, message):
    mine(f"class f(list):\n    classes = ['a', 'b']\n    def __init__(self): {text}")
    with pytest.raises(UserError) as refused:
        Custom(settings(**chosen("f"))).sizes()
    assert message in str(refused.value)


def test_one_set_of_images_without_a_validation_fraction_is_refused(mine):
    mine(f"def f(): return [{ITEM}]")
    with pytest.raises(UserError, match=r"returns one set of images; data\.val_fraction=0\.1"):
        Custom(settings(**chosen("f", val_fraction=None))).sizes()


def test_an_error_during_prep_ends_it_or_leaves_the_image_out(tmp_path, mine):
    mine(GIVES + "\ndef f():\n    yield from names(7)\n    raise OSError('gone')\n")
    with pytest.raises(UserError, match=r"raised OSError: gone \(mine.py line \d+\) at image 7"):
        Prepared(tmp_path / "a", **chosen("f")).run()
    mine(GIVES + "\ndef f():\n    yield from names(7)\n    raise SystemExit(0)\n")
    with pytest.raises(UserError, match=r"raised SystemExit: 0 \(mine.py line \d+\) at image 7"):
        Prepared(tmp_path / "c", **chosen("f")).run()
    mine(GIVES.replace("self.reads.append(n)", "1 / (n - 20)"))
    prepared = Prepared(tmp_path / "b", **chosen("Targets", max_bad=0.2)).run()
    assert prepared.quarantine() == {
        "00000020": "cannot be read: it raised ZeroDivisionError: division by zero (mine.py line 27)"
    }


def test_labels_are_checked_like_those_of_other_sources(tmp_path, mine):
    mine(GIVES.replace("n % 2)", "n % 3)"))
    with pytest.raises(UserError, match="has the label 2, but the 2 classes go from 0 to 1"):
        Prepared(tmp_path, **chosen("Numbers")).run()
    assert not any((tmp_path / "data").glob("*"))
