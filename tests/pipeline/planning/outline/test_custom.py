"""Test `planning.outline` on the user's networks: each is tried before a training, or refused."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from pipeline.config.model import Custom
from pipeline.display.errors import UserError
from pipeline.networks import architectures
from pipeline.planning import outline
from pipeline.planning.outline import Request
from pipeline.planning.outline import __main__ as side
from tests.launcher import PROJECT


def custom(name, **args):
    return Custom(name="custom", family="custom", target=f"mine:{name}", args=args, code="0" * 12)


def asked(name, classes=7, counted=True, size=16, processes=1, freeze=(), **args):
    model = custom(name, **args).model_copy(update={"freeze": list(freeze)})
    return Request(
        model=model.model_dump(), sides=[size], batch=4, branches=["kxk", "1x1"],
        classes=classes, counted=counted, processes=processes,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "width", "classes"),
    [
        (asked("net"), 4, 7),
        (asked("net", width=8), 8, 7),
        (asked("needs_values"), 6, 7),
        (asked("ten", classes=10), 4, 10),
        (asked("ten", classes=1000, counted=False), 4, 10),
    ],
)
def test_the_outline_counts_parameters_and_growable_convolutions(request_, width, classes):
    found = side.outline(request_)
    assert found.growable == 2
    weights = 27 * width + 9 * width**2 + width * classes
    assert found.parameters == weights + 4 * width + classes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "returned int; it must return a torch.nn.Module"),
        ("kind", "returned type; it must return a torch.nn.Module"),
        ("empty", "returned a network without parameters"),
        ("lazy", "lazy modules; give them their sizes"),
        (
            "sized",
            "cannot be trained on images of 16 pixels: it raised RuntimeError: ",
        ),
        ("ten", "it returns (1, 10) for 1 images and 7 classes, not one score for each class"),
        ("Pair", "it returns a tuple, no tensor of scores"),
        ("Locked", "cannot be copied (TypeError: cannot pickle '_thread.lock' object)"),
        ("Twice", "in which net.0.weight and again.0.weight are one tensor"),
        ("Noted", "with '_extra_state' in its state, which is not a tensor"),
        ("moody", "of another structure each time"),
    ],
)
def test_a_network_that_cannot_go_through_the_stages_is_refused(name, message):
    with torch.no_grad(), pytest.raises(UserError) as refused:
        side.outline(asked(name))
    assert str(refused.value).startswith(f"model.target=mine:{name} return")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_network_is_built_with_its_arguments():
    network = architectures.build(custom("net", width=6), 3)
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
    assert network[0].out_channels == 6


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("detach", "no parameter would learn from its scores"),
        ("no_grad", "no parameter would learn from its scores"),
        ("integers", "no parameter would learn from its scores"),
        ("frozen", "no parameter would learn from its scores"),
        ("inplace", "modified by an inplace operation"),
    ],
)
def test_a_network_that_cannot_learn_is_refused(how, message):
    with torch.no_grad(), pytest.raises(UserError, match=message) as refused:
        side.outline(asked("Deaf", how=how))
    assert str(refused.value).startswith("model.target=mine:Deaf returns a network that cannot be")


def test_an_unused_parameter_is_refused_for_several_processes():
    message = "2 of its parameters take no part in its scores (spare.weight)"
    with torch.no_grad():
        side.outline(asked("Spare"))
        side.outline(asked("Spare", processes=2, freeze=["spare"]))
        with pytest.raises(UserError, match=re.escape(message)):
            side.outline(asked("Spare", processes=2))


@pytest.mark.parametrize(
    ("last", "code", "message"),
    [
        (
            {"calls": "model.target=mine:net"},
            3,
            "model.target=mine:net ends the process that calls",
        ),
        ({"calls": "data.target=mine:f"}, 0, "it, with exit code 0; it must return"),
        ({"calls": "data.target=mine:f"}, -11, "it, by a signal (Segmentation fault); it must"),
    ],
)
def test_code_that_ends_its_process_is_refused(monkeypatch, last, code, message):
    done = subprocess.CompletedProcess([], code, f"{json.dumps(last)}\n", "bye")
    monkeypatch.setattr(outline.subprocess, "run", lambda *_, **__: done)
    assert message in outline.ask(["--outline"])["refused"]


@pytest.mark.long
def test_a_launch_refuses_code_that_ends_its_process(tmp_path):
    (tmp_path / "ends.py").write_text("import os\ndef net(num_classes): os.kill(os.getpid(), 9)\n")
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.launch", "model=custom", "model.target=ends:net"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PROJECT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert (
        "model.target=ends:net ends the process that calls it, by a signal (Killed)" in done.stderr
    )
    assert not (tmp_path / "outputs").exists()


@pytest.mark.long
def test_a_launch_names_the_parameter_that_is_not_finite_before_the_first_step(tmp_path):
    (tmp_path / "spoilt.py").write_text(
        "from torch import nn\n"
        "def net(num_classes):\n"
        "    made = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1),\n"
        "                         nn.Flatten(), nn.Linear(4, num_classes))\n"
        "    made[0].register_buffer('mask', made[0].weight.new_full((1,), float('-inf')))\n"
        "    made[4].bias.data[0] = float('nan')\n"
        "    return made\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.launch", "model=custom", "model.target=spoilt:net"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PROJECT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    message = "4.bias of model.target=spoilt:net holds values that are not finite before the first"
    assert message in done.stderr
    assert not (tmp_path / "outputs").exists()
