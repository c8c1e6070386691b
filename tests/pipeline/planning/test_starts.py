"""Test `planning.starts`: the file of `model.pretrained` or `method.structure`, and its hash."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from pipeline.display.errors import UserError
from pipeline.planning import outline, starts
from pipeline.planning.plan import make_plan
from pipeline.records import rundir, store
from pipeline.records.schemas import Output, Result
from tests.pipeline.planning.test_plan import config, fingerprints
from tests.pipeline.planning.test_taking_up import Name
from tests.runs import make_run

BLOCK = '{"version": 1, "blocks": [{"path": "features.3"}], "absorbed": [], "biases": []}'


@pytest.fixture
def root(tmp_path):
    return tmp_path / "outputs"


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(b"PK\x03\x04 weights")
    return path


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def teacher(root, *overrides, structure=BLOCK, name="teacher", **changed):
    """Write a finished run with fused weights and a grown structure."""
    run = make_run(root, name, *overrides, **changed)
    for stage, file, content in (
        ("fuse", "model.safetensors", b"shipped"),
        ("train", "structure.json", structure.encode()),
    ):
        if not (run / stage / rundir.RESULT).exists():
            continue
        (run / stage / file).write_bytes(content)
        facts = Output(path=file, bytes=len(content), sha256=sha256(content))
        result = store.read(Result, run / stage)
        store.write(result.model_copy(update={"outputs": {file: facts}}), run / stage)
    return run


def pinned(root, word, key="pretrained", **more):
    values = {"root": str(root), "model": {"family": "vgg", "name": "v"}, "method": {}}
    values["model" if key == "pretrained" else "method"] |= {key: str(word), **more}
    starts.pin(values)
    return values["model" if key == "pretrained" else "method"]


# -- which file a value names ----------------------------------------------------------------------


def test_a_file_of_unknown_size_is_not_called_empty(root):
    assert pinned(root, "/proc/version")["pretrained"] == "/proc/version"


def test_a_file_is_named_by_any_path(tmp_path, root, weights, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").write_bytes(b"\x80 also weights")
    for word, file in ((weights, weights), ("w.pth", weights), ("./w.pth", weights),
                       ("plain", tmp_path / "plain")):  # fmt: skip
        found = pinned(root, word)
        assert found["pretrained"] == str(file)
        assert found["pretrained_sha256"] == sha256(file.read_bytes())


def test_the_name_of_a_run_means_its_fused_weights_and_its_structure(root):
    run = teacher(root)
    for word in ("teacher", run, f"{run}/"):
        assert pinned(root, word)["pretrained"] == str(run / "fuse/model.safetensors")
        assert pinned(root, word, "structure")["structure"] == str(run / "train/structure.json")


def test_a_structure_starts_as_its_run_did(root):
    teacher(root, "method=grow")
    assert pinned(root, "teacher", "structure", start=None)["start"] == "identity"
    assert pinned(root, "teacher", "structure", start="drawn")["start"] == "drawn"
    run = f"method.structure={root}/runs/teacher"
    assert config(root, "method=structure", run).method.start == "identity"
    assert config(root, "method=structure", run, "method.start=drawn").method.start == "drawn"


def test_any_other_word_is_looked_up_in_the_library_of_the_network(root, monkeypatch, weights):
    asked = []
    monkeypatch.setattr(outline, "weights", lambda *words: asked.append(words) or weights)
    found = pinned(root, "IMAGENET1K_V1", family="torchvision", name="resnet18")
    assert asked == [("torchvision", "resnet18", "IMAGENET1K_V1")]
    assert found["pretrained"] == str(weights)
    for word in ("hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"):
        pinned(root, word, family="timm", name="resnet18")
        assert asked[-1] == ("timm", "resnet18", word)
    monkeypatch.setattr(outline, "weights", lambda *_: outline.Unknown(why="torch is not here"))
    with pytest.raises(UserError, match="is not known: torch is not here; give a file"):
        pinned(root, "IMAGENET1K_V1", family="torchvision", name="resnet18")


def lfs(path):
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


def archive(*names):
    def make(path):
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(f"model/{name}", b"x")

    return make


@pytest.mark.parametrize(
    "make",
    [
        archive("data.pkl", "data/0"),
        lambda path: path.write_bytes(b" <" + bytes(6) + b'{"w":'),  # a safetensors header
        lambda path: path.write_bytes(b"PK\x03\x04 cut off"),
    ],
)
def test_a_file_that_may_hold_weights_is_accepted_for_torch_to_read(tmp_path, root, make):
    make(tmp_path / "w")
    assert pinned(root, tmp_path / "w")["pretrained"] == str(tmp_path / "w")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "w is not there; give a file, or a run by its name"),
        (Path.mkdir, "is a folder and no run; give a file in it"),
        (Path.touch, "is empty; restore it"),
        (lfs, "is a pointer of Git LFS; `git lfs pull` fetches"),
        (lambda path: path.write_text("<!DOCTYPE html>"), "is a page of the web"),
        (archive("archive_format", "byteorder"), "is an exported program (.pt2), which holds code"),
        (archive("constants.pkl", "data.pkl"), "is a TorchScript program, which holds code; give"),
        (archive("a.npy", "b.npy"), "is an archive of numpy arrays (.npz)"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n"), "is an HDF5 file"),
        (lambda path: path.write_bytes(b"\x1f\x8b\x08"), "is compressed (gzip); unpack it"),
        (lambda path: path.write_text('{"weight_map": 1}'), "lists several files of weights; load"),
        (os.mkfifo, "cannot be read (it is not a regular file)"),
        (lambda path: path.symlink_to("nowhere"), "is not there"),
        (lambda path: path.symlink_to(path), "cannot be read"),
    ],
)
def test_a_file_that_cannot_hold_weights_is_refused_in_one_line(tmp_path, root, make, message):
    make(tmp_path / "w")
    for word in (tmp_path / "w", f"{tmp_path}//w"):
        with pytest.raises(UserError) as refused:
            pinned(root, word)
        assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["pretrained", "structure"])
def test_an_unknown_value_is_refused_with_the_nearest_run(root, key):
    with pytest.raises(UserError, match="is neither a file nor a run; there are no runs in"):
        pinned(root, "teacher", key)
    teacher(root)
    with pytest.raises(UserError, match="is neither a file nor a run; did you mean 'teacher'"):
        pinned(root, "taecher", key)
    with pytest.raises(UserError, match=r"is an address, and nothing is downloaded"):
        pinned(root, "https://example.org/w.pth", key)
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)"):
        pinned(root, "x" * 999, key)


def test_a_run_without_the_file_that_is_needed_is_refused(root):
    teacher(root, finished=("prep",))
    with pytest.raises(UserError, match=r"whose fuse is not finished; `.* name=teacher stage=all"):
        pinned(root, "teacher")
    with pytest.raises(UserError, match=r"whose train is not finished; `"):
        pinned(root, "teacher", "structure")
    run = teacher(root, name="other")
    (run / "fuse/model.safetensors").write_bytes(b"edited")
    with pytest.raises(UserError, match="is not as fuse wrote it; restore it"):
        pinned(root, "other")


def test_a_file_without_the_given_hash_is_refused(root, weights):
    right = sha256(weights.read_bytes())
    assert pinned(root, weights, pretrained_sha256=right)["pretrained_sha256"] == right
    with pytest.raises(UserError, match=f"has the SHA-256 {right}, and .* says 000"):
        pinned(root, weights, pretrained_sha256="0" * 64)


# -- the fingerprint -------------------------------------------------------------------------------


def test_a_fingerprint_depends_on_the_content_of_the_weights_file(tmp_path, weights):
    before = fingerprints(tmp_path, "method=plain")
    asked = fingerprints(tmp_path, "method=plain", f"model.pretrained={weights}")
    moved = {name for name in before if before[name] != asked[name]}
    assert moved == {"train", "fuse", "eval", "latency"}
    weights.rename(moved := tmp_path / "moved.pth")
    assert fingerprints(tmp_path, "method=plain", f"model.pretrained={moved}") == asked
    moved.write_bytes(b"PK\x03\x04 others")
    assert fingerprints(tmp_path, "method=plain", f"model.pretrained={moved}") != asked


def test_freezing_and_the_rate_of_the_head_change_the_fingerprint_of_train(tmp_path):
    before = fingerprints(tmp_path)
    for override in ("model.freeze=[features.0]", "train.head_lr=0.5"):
        assert fingerprints(tmp_path, override)["train"] != before["train"]
    assert config(tmp_path, "model.freeze=features.0").model.freeze == ["features.0"]
    assert config(tmp_path, "model.freeze=[0,x]").model.freeze == ["0", "x"]
    assert config(tmp_path, "model.freeze=0").model.freeze == ["0"]


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (("method=grow",), "identity"),
        (("method=grow", "model.pretrained=W"), "drawn"),
        (("method=grow", "method.start=drawn"), "drawn"),
        (("method=dyrep", "model.pretrained=W"), "drawn"),
    ],
)
def test_the_identity_is_added_only_to_fresh_kernels(tmp_path, weights, overrides, start):
    words = [word.replace("W", str(weights)) for word in overrides]
    assert config(tmp_path, *words).method.start == start


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=grow", "method.start=identity"], "would undo model.pretrained; leave method.sta"),
        (["method=dbb"], "method=dbb puts fresh branches on the network, which would undo"),
        (["method=structure", "method.structure=S"], "method=structure puts fresh branches"),
    ],
)
def test_a_method_that_would_undo_trained_weights_is_refused(tmp_path, weights, overrides, message):
    (tmp_path / "S.json").write_text(BLOCK)
    words = [word.replace("=S", f"={tmp_path}/S.json") for word in overrides]
    with pytest.raises(UserError, match=message):
        config(tmp_path, f"model.pretrained={weights}", *words)


# -- a second launch of the same name --------------------------------------------------------------


def test_a_name_goes_on_with_the_weights_it_was_frozen_with(tmp_path, root, weights):
    run = Name(root)
    asked = ("method=plain", f"model.pretrained={weights}")
    frozen = run.launch(*asked)
    assert run.launch() == run.launch(*asked) == frozen
    assert starts.changed_files(frozen, make_plan(frozen)) == []
    weights.write_bytes(b"PK\x03\x04 others")
    with pytest.raises(UserError, match=r"has changed since the run was frozen .* instead"):
        starts.changed_files(frozen, make_plan(frozen))
    assert run.launch(*asked) != frozen  # no training has begun, so the run takes the new weights


def test_a_training_that_has_begun_keeps_its_weights(root, weights, inside):
    run = Name(root)
    asked = ("method=plain", f"model.pretrained={weights}")
    frozen = run.launch(*asked)
    run.mark("train", "started")
    copied = weights.with_name("copied.pth")
    copied.write_bytes(weights.read_bytes())
    assert run.launch(f"model.pretrained={copied}").model.pretrained == str(copied)
    weights.write_bytes(b"PK\x03\x04 others")
    with pytest.raises(UserError, match=r"exists with other settings: model.pretrained_sha256 is"):
        run.launch(*asked)
    checkpoints = rundir.run_dir(root, "x") / "train/checkpoints"
    checkpoints.mkdir()
    (checkpoints / "step-00000001-e000-a001.json").touch()
    (note,) = starts.changed_files(frozen, make_plan(frozen))
    assert note.endswith("the training goes on from its checkpoint")
    copied.write_bytes(b"PK\x03\x04 others")
    code, out, errors = inside("name=x", "dry_run=true")  # a note, because a checkpoint exists
    assert code == 0, errors
    assert "the training goes on from its checkpoint" in out


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"structure": BLOCK.replace('{"path": "features.3"}', "")}, "had grown in the end; use"),
        ({"overrides": ("model=resnet18",)}, r"another network \(model.name resnet18 → vgg_small"),
        ({"changed": {"model.widths": [[1]]}}, r"another network \(model.widths \[\[1\]\] → "),
        ({"overrides": ("method=dbb",)}, "its branches are those of method=dbb"),
        ({"overrides": ("method=grow",)}, None),
        ({"changed": {"model.freeze": ["x"]}}, None),
    ],
)
def test_a_structure_must_come_from_the_same_network_and_have_branches(root, made, message):
    teacher(root, *made.pop("overrides", ()), **made)
    asked = config(root, "method=structure", f"method.structure={root}/runs/teacher")
    if message is None:
        assert starts.changed_files(asked, make_plan(asked)) == []
        return
    with pytest.raises(UserError, match=message):
        starts.changed_files(asked, make_plan(asked))
