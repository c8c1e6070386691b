"""Test `examples/deploy.py`: it refuses unusable files, and reads images as the stage `prep` does."""

import os
import runpy
import struct
import zlib
from zipfile import ZipFile

import pytest
from PIL import Image

from tests.launcher import PROJECT
from tests.pipeline.hostile import CARD


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        (None, "no archive", "File is not a zip file"),
        ("x/other", "{}", "it has no model card"),
        ("x/extra/card.json", "{", "Expecting property name"),
        ("x/extra/card.json", "[" * 10**5, "maximum recursion depth"),
    ],
)
def test_the_example_names_the_fault_of_a_card(tmp_path, member, content, message):
    path = tmp_path / "model.pt2"
    path.write_text(content)
    if member:
        with ZipFile(path, "w") as archive:
            archive.writestr(member, content)
    example = runpy.run_path(str(PROJECT / "examples/deploy.py"))
    with pytest.raises(
        ValueError, match=f"model.pt2 is not an exported network, or is damaged: {message}"
    ):
        example["read_card"](path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.onnx", "none.onnx: No such file or directory"),
        ("none.pt2", "none.pt2: No such file or directory"),
        ("bad.onnx", "bad.onnx cannot be loaded: Protobuf parsing failed."),
        ("fifo.onnx", "fifo.onnx is not a regular file"),
    ],
)
def test_the_example_names_a_file_that_it_cannot_open(tmp_path, monkeypatch, capsys, name, message):
    (tmp_path / "bad.onnx").write_text("no network")
    os.mkfifo(tmp_path / "fifo.onnx")
    monkeypatch.setattr("sys.argv", ["deploy.py", str(tmp_path / name), "x.png"])
    assert runpy.run_path(str(PROJECT / "examples/deploy.py"))["main"]() == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/{message}\n"


def declared(width, height):
    """Return a PNG without pixels, whose header claims a size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (declared(2**31 - 1, 2**31 - 1), "(could be decompression bomb|pixels are more than)"),
        (declared(13_000, 13_000), "13000x13000 pixels are more than 100,000,000"),
        (declared(1, 3_000_000), "1x3000000 pixels are thinner than 1:50"),
        (declared(8, 8), "image file is truncated"),
        (b"", "no image that Pillow knows"),
        (Image.new("F", (8, 8)), "the range of its pixels is not known"),
    ],
    ids=["bomb", "large", "thin", "cut", "empty", "float"],
)
def test_the_example_refuses_an_image_as_prep_does(tmp_path, content, message, recwarn):
    path = tmp_path / "x.tif"
    path.write_bytes(content) if isinstance(content, bytes) else content.save(path)
    example = runpy.run_path(str(PROJECT / "examples/deploy.py"))
    with pytest.raises(ValueError, match=f"x.tif: .*{message}"):
        example["prepare"](path, CARD["preprocess"])
    assert not recwarn


def test_the_example_scales_16_bits_as_prep_does(tmp_path):
    Image.new("I;16", (8, 8), 40000).save(tmp_path / "x.png")
    example = runpy.run_path(str(PROJECT / "examples/deploy.py"))
    values, _ = example["prepare"](tmp_path / "x.png", CARD["preprocess"])
    assert {round(255 * value) for value in values} == {round(40000 / 257)}


@pytest.mark.parametrize(
    "wrong", [{"resize": 10**9}, {"image_size": -1}, {"mean": [0.0]}, {"std": [0.0] * 3}]
)
def test_the_example_refuses_a_card_with_impossible_values(tmp_path, wrong):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    example = runpy.run_path(str(PROJECT / "examples/deploy.py"))
    with pytest.raises(example["CARD_ERRORS"]):
        example["prepare"](tmp_path / "x.png", CARD["preprocess"] | wrong)
