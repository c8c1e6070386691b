"""Test `--trust`: code in a file runs only if the file is trusted, and safe formats need no trust."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline import evaluate
from pipeline.display.errors import UserError
from pipeline.records import disk, rundir
from pipeline.stages import earlier
from pipeline.stages.export import formats, runtime
from pipeline.stages.export.formats import Source
from pipeline.stages.metrics.files import open_file
from tests.launcher import PROJECT
from tests.pipeline.hostile import CARD, Script, pickled, unread

IN_PT2 = ("weights", "inputs", "expression", "library")
ATTACKS = (*[f"{name}.pt2" for name in IN_PT2], "library.aoti.pt2", "inputs.trt.pt2", "setstate.ts")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Return the members of a `.pt2` file as fuse writes them."""
    path = tmp_path_factory.mktemp("sound") / "model.pt2"
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)).eval()
    images = torch.zeros(2, 3, 8, 8)
    source = Source(network=network, images=images, card=json.dumps(CARD), opset=18)
    formats._pt2(source, path)
    with ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Return a function that builds a shared library, which creates a folder when it is loaded."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")

    def build(mark):
        folder = tmp_path_factory.mktemp("library")
        (folder / "x.c").write_text(
            "#include <sys/stat.h>\n"
            f'__attribute__((constructor)) void f(void) {{ mkdir("{mark}", 0777); }}'
        )
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-o", "x.so", "x.c"], cwd=folder, check=True
        )  # fmt: skip
        return (folder / "x.so").read_bytes()

    return build


@pytest.fixture
def hostile(sound, request, tmp_path):
    """Return a function that writes a hostile file, and the path that its code creates."""
    mark = tmp_path / "mark"

    def write(name):
        path = tmp_path / name
        attack, _, ending = name.partition(".")
        if ending == "ts":
            torch.jit.save(
                torch.jit.script(Script(mark)), path, _extra_files={"card.json": json.dumps(CARD)}
            )
            return path
        members = dict(sound)
        if attack == "weights":
            name = "model/data/weights/model_weights_config.json"
            config = json.loads(members[name])
            (weight, *_) = config["config"].values()
            weight["use_pickle"] = True
            members[name] = json.dumps(config)
            members[f"model/data/weights/{weight['path_name']}"] = pickled(mark)
        elif attack == "inputs":
            members["model/data/sample_inputs/model.pt"] = pickled(mark)
        elif attack == "expression":
            graph = members["model/models/model.json"].decode()
            evil = f"\"expr_str\": \"__import__('os').mkdir('{mark}')\""
            members["model/models/model.json"] = re.sub(
                r'"expr_str": ?"[^"]*"', evil, graph, count=1
            )
        else:
            folder = "model/data/aotinductor/model/x.wrapper"
            members[f"{folder}.so"] = request.getfixturevalue("library")(mark)
            metadata = {"AOTI_DEVICE_KEY": "cpu", "card.json": json.dumps(CARD)}
            members[f"{folder}_metadata.json"] = json.dumps(metadata)
        with ZipFile(path, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        return path

    return write, mark


@pytest.fixture
def data(tmp_path):
    return unread(tmp_path / "data")


@pytest.mark.parametrize("name", ATTACKS)
def test_code_in_a_file_runs_only_if_the_file_is_trusted(hostile, data, capsys, name):
    write, mark = hostile
    path = write(name)
    mark.exists() and mark.unlink()  # saving a TorchScript runs the code, too
    assert evaluate.main([str(path), "--data", str(data)]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {path} is not opened: it may hold ")
    assert "add --trust if you know who made it" in errors and errors.count("\n") == 1
    with pytest.raises(runtime.Untrusted):
        runtime.load(path)
    assert json.loads(runtime.card(path)) == CARD
    assert not mark.exists()
    if "trt" not in name:  # TensorRT is not installed here
        with suppress(Exception):
            runtime.load(path, trust=True)
        assert mark.exists(), "loading the trusted file did not run its code"


@pytest.mark.parametrize("name", ["inputs.pt2", "setstate.ts", "inputs.pth"])
def test_the_example_runs_no_code_of_an_untrusted_file(hostile, tmp_path, name):
    write, mark = hostile
    path = write(name)
    mark.exists() and mark.unlink()
    done = subprocess.run(
        [sys.executable, "-I", PROJECT / "examples/deploy.py", path, tmp_path / "x.png"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "add --trust" in done.stderr
    assert not mark.exists()


def test_a_trusted_file_is_evaluated(sound, tmp_path):
    path = tmp_path / "model.pt2"
    with ZipFile(path, "w") as archive:
        for member, content in sound.items():
            archive.writestr(member, content)
    opened = open_file(path, trust=True)
    assert opened.preprocess.classes == ["a", "b"]
    assert opened.network(torch.zeros(5, 3, 8, 8)).shape == (5, 2)


@pytest.fixture
def fused(hostile, tmp_path):
    """Return the context of a stage after `fuse`, and the hostile `model.pt2` that fuse recorded."""
    folder = tmp_path / "fuse-1"
    folder.mkdir()
    path = hostile[0]("weights.pt2").rename(folder / "model.pt2")
    output = {"path": "model.pt2", "bytes": path.stat().st_size, "sha256": disk.sha256(path)}
    result = {"stage": "fuse", "seconds": 1.0, "metrics": {}, "outputs": {"model.pt2": output}}
    rundir.write_json(folder / rundir.RESULT, result)
    return SimpleNamespace(parents={"fuse": folder}), path


def test_a_later_stage_executes_a_file_only_as_fuse_wrote_it(fused, hostile):
    context, path = fused
    written = path.stat()
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\1")  # of the same length; the next line restores the time
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
    with pytest.raises(UserError, match=r"model.pt2 is not as fuse wrote it and is not opened"):
        earlier.exported(context, "pt2")
    assert not hostile[1].exists()
    path.write_bytes(content)
    with suppress(ValueError):
        earlier.exported(context, "pt2")
    assert hostile[1].exists()


def test_a_file_that_fuse_did_not_write_is_not_executed(fused, hostile):
    context, path = fused
    assert earlier.exported(context, "torchscript") is None
    shutil.copy(path, path.with_name("model.ts"))
    with pytest.raises(UserError, match=r"model.ts is not as fuse wrote it"):
        earlier.exported(context, "torchscript")
    path.unlink()
    with pytest.raises(UserError, match=r"model.pt2 is not as fuse wrote it"):
        earlier.exported(context, "pt2")
    assert not hostile[1].exists()


def with_weights_elsewhere(path, place, offset=0):
    """Write an ONNX network that refers to another file for its weights."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weight = onnx.TensorProto(name="w", data_type=1, dims=[2], data_location=1)
    for key, value in {"location": place, "offset": str(offset), "length": "8"}.items():
        weight.external_data.add(key=key, value=value)
    ends = [onnx.helper.make_tensor_value_info(name, 1, [2]) for name in ("images", "scores")]
    node = onnx.helper.make_node("Add", ["images", "w"], ["scores"])
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
    )
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("place", ["/etc/passwd", "../secret", "link", "sub/../../secret"])
def test_onnx_reads_no_weights_outside_its_folder(tmp_path, place):
    folder = tmp_path / "given"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret" * 99)
    (folder / "link").symlink_to("../secret")
    with_weights_elsewhere(folder / "model.onnx", place)
    with pytest.raises(ValueError, match=r"model.onnx is damaged .*xternal data path"):
        runtime.load(folder / "model.onnx")


@pytest.mark.parametrize(("place", "offset"), [("short", 0), ("short", -5), ("pipe", 0)])
def test_damaged_external_weights_of_onnx_are_reported_once(tmp_path, capfd, place, offset):
    (tmp_path / "short").write_bytes(b"abc")
    os.mkfifo(tmp_path / "pipe")
    with_weights_elsewhere(tmp_path / "model.onnx", place, offset)
    with pytest.raises(ValueError, match=r"model.onnx is damaged"):
        runtime.load(tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("code", ["0" * 12, "some==1"])
def test_a_network_that_a_card_names_by_its_code_is_called_only_if_trusted(tmp_path, code):
    mark, path = tmp_path / "mark", tmp_path / "stages" / "fuse-1" / "model.safetensors"
    path.parent.mkdir(parents=True)
    named = {"name": "custom", "family": "custom", "target": "os:mkdir", "code": code}
    card = CARD | {"architecture": named | {"args": {"path": str(mark)}}}
    save_file({"x": torch.zeros(1)}, path, {runtime.CARD: json.dumps(card)})
    with pytest.raises(UserError, match=r"is code that its card names, os:mkdir; --trust"):
        open_file(path)
    assert not mark.exists()
    if "==" not in code:
        with pytest.raises(UserError, match="the copy of os:mkdir, is gone"):
            open_file(path, trust=True)
