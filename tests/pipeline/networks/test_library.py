"""Test `networks.library`: cached weights of torchvision and timm are found; nothing is downloaded."""

import pytest

from pipeline.display.errors import UserError
from pipeline.networks import library


@pytest.fixture
def disks(tmp_path, monkeypatch):
    """Return a folder in which torchvision and timm look for cached weights."""
    from huggingface_hub import constants

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path


def touched(path):
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_weights_that_torchvision_has_fetched_are_found(disks):
    file = touched(disks / "torch/hub/checkpoints/resnet18-f37072fd.pth")
    for word in ("IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1", "imagenet1k_v1", "default"):
        assert library.cached("torchvision", "resnet18", word) == file


def test_weights_that_timm_has_fetched_are_found(disks):
    hub = disks / "hf/models--timm--resnet18.a1_in1k"
    file = touched(hub / "snapshots/abc/model.safetensors")
    touched(hub / "refs/main").write_text("abc")
    names = ("a1_in1k", "resnet18.a1_in1k", "timm/resnet18.a1_in1k", "default")
    for word in (*names, "hf-hub:timm/resnet18.a1_in1k", "hf_hub:timm/resnet18.a1_in1k"):
        assert library.cached("timm", "resnet18", word) == file
    old = touched(disks / "torch/hub/checkpoints/resnet18_a2_0-b61bd467.pth")
    assert library.cached("timm", "resnet18", "a2_in1k") == old


@pytest.mark.parametrize(
    ("family", "word", "message"),
    [
        ("torchvision", "default", "get_model('resnet18', weights='IMAGENET1K_V1')"),
        ("timm", "a1_in1k", "timm.create_model('resnet18.a1_in1k', pretrained=True)"),
        ("timm", "resnet50.a1_in1k", "is of another network than model.name=resnet18; choose that"),
        ("torchvision", "ResNet50_Weights.IMAGENET1K_V1", "or weights of ResNet18_Weights"),
        ("timm", "a1_in2k", "published for resnet18; did you mean 'a1_in1k'"),
        ("torchvision", "teacher", "is not a file, a run, or weights that are published for"),
    ],
)
def test_weights_that_are_not_in_the_cache_are_refused_with_the_cure(disks, family, word, message):
    with pytest.raises(UserError) as refused:
        library.cached(family, "resnet18", word)
    assert message in str(refused.value)
