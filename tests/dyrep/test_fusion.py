"""Test that fusing gives the plain network, verifies it, and names the block that differs."""

import pytest
import torch
import torchvision
from torch import nn

import dyrep
from dyrep.fusion import fold_norms, plain_state, suspicious_norms
from dyrep.norm_pairs import following_norms
from dyrep.proof import relative_error
from tests.dyrep.drawn import randomise

pytestmark = pytest.mark.long


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


def test_a_weight_that_is_not_finite_is_named():
    model = grown()
    with torch.no_grad():
        model[3].kxk.conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(dyrep.FusionError, match=r"^3.branches.kxk.conv.weight holds values that"):
        dyrep.fuse(model)


def test_a_norm_that_is_not_finite_is_named():
    model = grown()
    model[1].running_var[2] = float("inf")
    with pytest.raises(dyrep.FusionError, match=r"^1.running_var holds values that are not finite"):
        dyrep.fuse(model)


def test_a_block_with_a_negative_variance_is_refused():
    model = grown()
    model[0].branches["1x1"].norm.running_var[2] = -1.0
    with pytest.raises(dyrep.FusionError, match=r"^0 differs by nan"):
        dyrep.fuse(model)


def test_a_variance_of_zero_folds_exactly_and_is_reported():
    model, x = grown().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model[0].branches["1x1"].norm.running_var[2] = 0
    model[1].num_batches_tracked.fill_(1)
    fused = dyrep.fuse(model, inputs=x)
    assert relative_error(model(x), fused(x)) < 1e-12
    found = suspicious_norms(model)
    assert found["0.branches.1x1.norm"] == "1 of 8 channels have a variance of zero"
    assert found["0.branches.kxk.norm"] == "it never saw a batch in training"
    assert "1" not in found


NETWORKS = {
    "resnet18": lambda: torchvision.models.resnet18(weights=None),
    "densenet121": lambda: torchvision.models.densenet121(weights=None),
}


@pytest.mark.parametrize(("name", "folded"), [("resnet18", 20), ("densenet121", 59)])
def test_the_norms_behind_convs_are_folded_too(name, folded):
    """A ResNet loses all its norms, a DenseNet those whose conv feeds nothing else."""
    torch.manual_seed(0)
    model = NETWORKS[name]().double().eval()
    dyrep.expand(model, branches=["kxk", "1x1", "1xk"])
    randomise(model)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = sum(isinstance(m, nn.BatchNorm2d) for m in dyrep.fuse(model).modules())
    fused = dyrep.fuse(model, inputs=x, fold_bn=True)
    after = sum(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert before - after == folded
    assert relative_error(model(x), fused(x)) < 1e-9
    assert not any(key.startswith("bn1") for key in fused.state_dict())


def test_norms_cannot_be_folded_without_inputs():
    with pytest.raises(ValueError, match="inputs"):
        dyrep.fuse(grown(), fold_bn=True)


class Forked(nn.Module):
    """A network in which a norm and, if `forked`, a ReLU read the output of one conv."""

    def __init__(self, forked):
        super().__init__()
        self.conv, self.norm, self.forked = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), forked

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + (y.relu() if self.forked else 0)


@pytest.mark.parametrize("forked", [True, False])
def test_a_norm_is_that_of_a_conv_only_if_nothing_else_reads_the_conv(forked):
    found = following_norms(Forked(forked), torch.randn(2, 3, 8, 8))
    assert found == ({} if forked else {"conv": "norm"})


def test_a_conv_that_is_called_twice_has_no_norm_of_its_own():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv, nn.BatchNorm2d(3))
    assert following_norms(model, torch.randn(2, 3, 8, 8)) == {}


def test_the_search_for_norms_changes_nothing():
    model = grown().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert following_norms(model, torch.randn(2, 3, 8, 8))["0"] == "1"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_a_static_block_may_take_the_place_of_conv_and_norm():
    """The published blocks of DBB, ACB and RepVGG, too, replace a conv and its norm."""
    model = torchvision.models.resnet18(weights=None).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    done = dyrep.expand(model, absorb=x)
    assert len(done.absorbed) == len(done.grown) == 17
    randomise(model)
    model.eval()
    fresh = torchvision.models.resnet18(weights=None).double().eval()
    dyrep.apply_structure(fresh, dyrep.structure(model))
    fresh.load_state_dict(model.state_dict(), strict=True)
    fused = dyrep.fuse(fresh, inputs=x)
    assert relative_error(model(x), fused(x)) < 1e-9
    assert type(fused.bn1) is nn.Identity
    assert isinstance(fused.layer2[0].downsample[1], nn.BatchNorm2d)


@pytest.mark.parametrize("absorb", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenet_v2"])
def test_the_plain_state_has_the_keys_of_torchvision(name, absorb):
    """The plain state has the norms of the plain network and no bias that folding added.

    The bias of a folded conv moves into its norm, and a norm that a block replaced is restored.
    """
    torch.manual_seed(0)
    build = getattr(torchvision.models, name)
    model, x = build(weights=None).double(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    dyrep.expand(model, branches=["kxk", "1x1", "1x1_avg"], absorb=x if absorb else None)
    randomise(model)
    model.eval()
    plain = build(weights=None).double().eval()
    state = plain_state(dyrep.fuse(model, inputs=x), plain, x)
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict(state, strict=True)
    assert relative_error(model(x), plain(x)) < 1e-9
    assert fold_norms(plain, x)
    assert relative_error(model(x), plain(x)) < 1e-9


def test_a_bias_without_a_norm_behind_it_stays_in_the_plain_state():
    model, x = grown().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False)
    )
    state = plain_state(dyrep.fuse(model, inputs=x), plain.double().eval(), x)
    assert set(state) - set(plain.state_dict()) == {"3.bias"}


def test_the_fused_network_has_the_dtype_of_each_layer():
    model = grown()
    model[0].bfloat16()
    fused = dyrep.fuse(model)
    assert fused[0].weight.dtype is torch.bfloat16
    assert fused[1].weight.dtype is fused[3].weight.dtype is torch.float32
