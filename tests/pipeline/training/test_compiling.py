"""Test `train.compile`: what is compiled, when it is compiled again, and that results agree."""

import copy
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dyrep.block import place_block
from pipeline.display.errors import UserError
from pipeline.networks import architectures
from pipeline.training import compiling
from pipeline.training.compiling import Compiler, blocks
from tests.pipeline.training.learning import ALONE, batch, learner

pytestmark = pytest.mark.long

needs_compiler = pytest.mark.skipif(
    not shutil.which("g++"), reason="torch.compile on a CPU needs g++, which is not installed"
)


@pytest.fixture
def graphs(monkeypatch):
    """Return the list of compiled graphs; the stand-in for the compiler returns each unchanged."""
    found = []

    def compiler(graph, inputs):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(compiling, "BACKEND", compiler)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: name)
    torch._dynamo.reset()
    return found


def grow(made, path):
    """Add a branch to a convolution as an adjustment does: unwrap, change, wrap."""
    made.unwrap()
    place_block(made.model, path, ("1x1",))
    made.wrap()
    made.train()


def steps(made, count=2):
    return [made.update(batch(number), lambda scaler: None).item() for number in range(count)]


@pytest.mark.parametrize(
    ("name", "first", "after"), [("resnet18", "layer1.0", "layer1.0"), ("vgg", None, "features.3")]
)
def test_compiled_blocks_are_repeated_modules_and_those_with_branches(name, first, after):
    model = (
        architectures.vgg([[4, 4], [8]], 3) if name == "vgg"
        else architectures.from_torchvision(name, small_stem=True, classes=3)
    )  # fmt: skip
    paths = {module: path for path, module in model.named_modules()}
    found = [paths[block] for block in blocks(model)]
    assert found[:1] == ([first] if first else [])
    assert len(found) == (8 if first else 0)
    place_block(model, "features.3" if name == "vgg" else "layer1.0.conv1", ("1x1",))
    assert next(paths.get(block, "features.3") for block in blocks(model)) == after
    assert len(list(blocks(model))) == (8 if first else 1)


def test_after_a_change_only_the_changed_block_is_compiled_again(graphs):
    made = learner("train.compile=blocks", "method=repvgg")
    names = list(made.model.state_dict())
    steps(made)
    before = len(graphs)
    assert before == 2  # two blocks
    made.unwrap()
    made.wrap()
    steps(made)
    assert len(graphs) == before
    grow(made, "features.4.branches.kxk.conv")
    assert names != list(made.model.state_dict())  # one more branch
    steps(made)
    assert len(graphs) == before + 1
    assert not any("_orig_mod" in name for name in made.state()["model"])


@pytest.mark.parametrize("mode", ["blocks", "model"])
def test_a_compiled_training_matches_an_uncompiled_one_and_resumes_exactly(graphs, mode):
    plain, compiled = learner("method=repvgg"), learner("method=repvgg", f"train.compile={mode}")
    assert steps(plain) == pytest.approx(steps(compiled), rel=1e-5)
    again = learner("method=repvgg", f"train.compile={mode}", saved=copy.deepcopy(compiled.state()))
    assert steps(again) == steps(compiled)
    assert graphs


def test_a_validation_compiles_nothing_and_compile_time_is_reported_once(graphs):
    made = learner("train.compile=model", "method=plain")
    made.compiler.seconds()
    made.validate([batch()], lambda: None)
    assert not graphs and made.compiler.seconds() == 0
    made.train()
    steps(made)
    assert graphs and made.compiler.seconds() > 0
    assert made.compiler.seconds() == 0


def test_a_network_without_blocks_to_compile_is_reported():
    assert (
        "model compiles it whole"
        in learner("train.compile=blocks", "method=plain").compiler.lacking()
    )
    assert not learner("train.compile=model", "method=plain").compiler.lacking()
    assert not learner("method=plain").compiler.lacking()


def test_a_network_that_cannot_be_compiled_is_refused_in_one_line(graphs, monkeypatch):
    def fails(graph, inputs):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(compiling, "BACKEND", fails)
    made = learner("train.compile=model", "method=plain")
    with pytest.raises(UserError, match=r"train.compile=model: .*cannot.*; use train.compile=off"):
        steps(made)


def test_a_missing_compiler_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"apt install g\+\+, or use train.compile=off"):
        Compiler(SimpleNamespace(compile="blocks", deterministic=False), ALONE.device)
    Compiler(SimpleNamespace(compile="off", deterministic=False), ALONE.device)


@pytest.mark.slow
@needs_compiler
def test_the_real_compiler_compiles_a_block_with_branches(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    place_block(model, "0", ("1x1",))
    images = torch.randn(2, 3, 6, 6)
    plain = model(images)
    compiler = Compiler(SimpleNamespace(compile="blocks", deterministic=False), ALONE.device)
    compiler.apply(model)
    model(images).sum().backward()
    torch.testing.assert_close(model(images), plain, rtol=1e-4, atol=1e-4)
