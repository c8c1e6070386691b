"""Test `records.outfile`: a regular file is replaced; a link, device or FIFO is written to."""

import os
import re
import subprocess
import sys
import threading
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from pipeline import lr_finder
from pipeline.compare import __main__ as compare
from pipeline.display.errors import UserError
from pipeline.records import outfile
from tests.launcher import PROJECT
from tests.runs import make_run


def test_a_regular_file_is_replaced_and_a_new_one_made(tmp_path):
    outfile.write(tmp_path / "new" / "file", "first, which is long")
    outfile.write(tmp_path / "new" / "file", "then")
    assert (tmp_path / "new" / "file").read_text() == "then"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/target")
    (tmp_path / "second").symlink_to("link")
    for text in ("first", "then"):
        outfile.write(tmp_path / "second", text)
        assert (tmp_path / "there" / "target").read_text() == text
    assert (tmp_path / "link").is_symlink() and (tmp_path / "second").is_symlink()


def test_a_device_stays_a_device(tmp_path):
    (tmp_path / "link").symlink_to(os.devnull)
    outfile.write(tmp_path / "link", "text")
    assert Path(os.devnull).is_char_device()


def test_a_fifo_is_written_to(tmp_path):
    fifo, read = tmp_path / "fifo", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: read.append(fifo.read_text()))
    reader.start()
    outfile.write(fifo, "text")
    reader.join(10)
    assert read == ["text"] and fifo.is_fifo()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.symlink_to(path), "symbolic link"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_in_one_line(tmp_path, make, message):
    make(tmp_path / "it")
    with pytest.raises(UserError, match=message):
        outfile.write(tmp_path / "it", "text")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("-", "- is not a file; /dev/stdout is standard output"),
        (".", "is a folder; name a file in it"),
        ("file/below", "Not a directory"),
        ("circle", "symbolic link"),
        ("/proc/none/x", "cannot be written"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_before_any_work(
    tmp_path, monkeypatch, name, message
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("circle").symlink_to("circle")
    with pytest.raises(UserError, match=message):
        outfile.check(Path(name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "file"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "https://h/x.json",
            "https://h/x.json is an address, and a folder or file that this machine sees",
        ),
        ("s3://b/x.json", "is an address"),
        ("link", "is a link to {}/nowhere/x, where nothing is; restore that"),
        ("folder/x.json", "is a link to {}/nowhere, where nothing is; restore that"),
    ],
)
def test_no_folder_is_made_for_an_address_or_a_dangling_link(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to(tmp_path / "nowhere" / "x")
    Path("folder").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=re.escape(message.format(tmp_path))):
        outfile.check(json=Path(path))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_check_accepts_a_writable_path_without_creating_it(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    outfile.check(Path(os.devnull), tmp_path / "new" / "file")
    outfile.check(None, tmp_path / "fifo")
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


REPLACED = [
    ("model.onnx", b"\x08\x09pytorch", "is not {}; name another file, or remove it"),
    ("notes.txt", b"all I know", "is not {}; name another file, or remove it"),
    ("page", b"<!doctype html>", {"JSON": "is not JSON"}),
    ("kept", b'{"a": 1}', {"HTML": "is not HTML"}),
    ("bom", b"\xef\xbb\xbf\n [1]", {"HTML": "is not HTML"}),
    ("empty", b"", {}),
    ("stages/train-1/result.json", b"{}", "is a file of a run; name another file"),
    ("stages/train-1/checkpoints/step-1.json", b"{}", "is a file of a run; name another file"),
    ("data/0a1b/manifest.json", b"{}", "is a file of a run; name another file"),
    ("mine/manifest.json", b"{}", {"HTML": "is there and is not HTML"}),
    ("runs/one/report.html", b"<html>", "is a file of a run; name another file"),
]


@pytest.mark.parametrize("kind", ["JSON", "HTML"])
@pytest.mark.parametrize(("name", "content", "message"), REPLACED)
def test_only_a_file_that_an_earlier_call_may_have_written_is_replaced(
    tmp_path, kind, name, content, message
):
    for file in ("stages/train-1/stage.yaml", "runs/one/run.json", name):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(content if file == name else b"")
    path, words = tmp_path / name, message if isinstance(message, str) else message.get(kind)
    asked = {kind.lower(): path}
    if words is None:
        outfile.check(**asked)
        return
    with pytest.raises(UserError, match=words.format(kind)):
        outfile.check(**asked)
    assert path.read_bytes() == content


def test_a_page_that_cannot_be_written_is_refused_before_runs_are_read(tmp_path, capsys):
    make_run(tmp_path, "one")
    asked = ["one", f"--root={tmp_path}", "--html"]
    assert compare.main([*asked, str(tmp_path)]) == 2
    assert lr_finder.main([*asked, str(tmp_path / "runs" / "one" / "run.json" / "x")]) == 2
    printed = capsys.readouterr()
    assert "is a folder; name a file in it" in printed.err
    assert "Not a directory; name another file" in printed.err
    assert not printed.out


def test_stdout_that_is_a_file_keeps_the_text_before_and_after(tmp_path):
    make_run(tmp_path, "one")
    with (tmp_path / "out").open("w") as out:
        out.write("before\n")
        out.flush()
        subprocess.run(
            [sys.executable, "-m", "pipeline.compare", "one", f"--root={tmp_path}",
             "--json=/dev/stdout", f"--html={tmp_path / 'page'}"],
            cwd=PROJECT, stdout=out, check=True,
        )  # fmt: skip
    text = (tmp_path / "out").read_text()
    places = [text.index(part) for part in ("before\n", "Which is better", "\n{\n", "\npage: ")]
    assert places == sorted(places)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/{}", "/proc/self/fd/{}", "link"])
def test_an_open_file_is_written_from_its_current_position(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("/dev/stdout")
    with Path("out").open("w") as out, redirect_stdout(out):
        kept = os.dup(1)
        os.dup2(out.fileno(), 1)
        try:
            print("before")
            outfile.write(Path(name.format(out.fileno())), "text\n")
            print("after")
        finally:
            os.dup2(kept, 1)
            os.close(kept)
    assert Path("out").read_text() == "before\ntext\nafter\n"
