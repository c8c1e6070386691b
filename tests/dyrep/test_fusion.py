"""Fusing gives the plain network, proves it, and says which block is to blame if it cannot."""

import pytest
import torch
import torchvision
from torch import nn

import dyrep
from dyrep.fusion import relative_error


def grown():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False)
    )
    dyrep.expand(model, branches=dyrep.ALL_BRANCHES)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return model.eval()


def test_the_original_is_untouched_and_the_copy_is_plain():
    model, x = grown(), torch.randn(2, 3, 8, 8)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fused = dyrep.fuse(model, inputs=x)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert {type(m) for m in fused} == {nn.Conv2d, nn.BatchNorm2d, nn.ReLU}
    assert not any(m.training for m in fused.modules())
    assert relative_error(model(x), fused(x)) < 1e-5


def test_the_fused_state_loads_strictly_into_the_plain_network():
    fused = dyrep.fuse(grown())
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)
    )
    plain.load_state_dict(fused.state_dict(), strict=True)


def test_a_wrong_fold_names_its_block(monkeypatch):
    from dyrep.block import RepBlock

    right = RepBlock.equivalent

    def wrong(self):
        kernel, bias = right(self)
        return (kernel + 1e-3, bias) if self.geometry.in_channels == 8 else (kernel, bias)

    monkeypatch.setattr(RepBlock, "equivalent", wrong)
    with pytest.raises(dyrep.FusionError, match=r"^3 differs"):
        dyrep.fuse(grown(), inputs=torch.randn(2, 3, 8, 8))


def test_not_a_number_is_not_equal():
    model = grown()
    with torch.no_grad():
        model[3].kxk.conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(dyrep.FusionError, match=r"^3 differs by nan"):
        dyrep.fuse(model)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121"])
def test_torchvision_networks_fuse_exactly(name):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).double().eval()
    done = dyrep.expand(model, branches=dyrep.ALL_BRANCHES)
    assert len(done.grown) >= 8
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    fused = dyrep.fuse(model, inputs=x)
    assert relative_error(model(x), fused(x)) < 1e-9
    assert {type(m).__name__ for m in fused.modules()} == {
        type(m).__name__ for m in torchvision.models.get_model(name, weights=None).modules()
    }
