"""Test that networks of torchvision and timm compute the same after branches are fused.

The networks are all classifiers of torchvision and one network of each of 64 timm families. Small
ones are always tested, the others with `pytest -m zoo`.
"""

import pytest
import timm
import torch
import torchvision
from torch import nn

import dyrep
from dyrep import eligible
from dyrep.block import RepBlock
from dyrep.proof import relative_error
from tests.dyrep.drawn import randomise

pytestmark = pytest.mark.long

TORCHVISION = torchvision.models.list_models(module=torchvision.models)
TIMM = [
    "cait_xxs24_224",
    "coat_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "convnext_atto",
    "cpubone_nano",
    "crossvit_tiny_240",
    "cs3darknet_focus_s",
    "cspnext_tiny",
    "deit_tiny_patch16_224",
    "densenet121",
    "dla46_c",
    "dpn48b",
    "eca_botnext26ts_256",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "ese_vovnet19b_slim_dw",
    "eva02_tiny_patch14_224",
    "fasternet_t0",
    "fastvit_t8",
    "gcvit_xxtiny",
    "ghostnet_050",
    "gmlp_ti16_224",
    "hardcorenas_b",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "lcnetv2_small",
    "legacy_seresnet18",
    "levit_128",
    "lowformer_b0",
    "maxvit_pico_rw_256",
    "mobilenetv3_small_050",
    "mobileone_s1",
    "mobilevit_xxs",
    "nest_tiny",
    "pit_ti_224",
    "poolformerv2_s12",
    "pvt_v2_b0",
    "regnetx_002",
    "repghostnet_050",
    "repvgg_a0",
    "repvit_m1",
    "resnest14d",
    "resnet10t",
    "resnetv2_18",
    "rexnet_100",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "swiftformer_xs",
    "test_mambaout",
    "test_vit_relpos",
    "tiny_vit_5m_224",
    "tinynet_e",
    "visformer_tiny",
    "vit_tiny_patch16_224",
    "vit_tiny_r_s16_p8_224",
    "xcit_nano_12_p8_224",
]
ALWAYS = {
    "resnet18", "mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5",
    "regnet_y_400mf", "convnext_atto", "dla46_c", "ghostnet_050", "mobilenetv3_small_050",
    "starnet_s050", "test_mambaout", "test_vit_relpos", "tinynet_e", "repghostnet_050",
    "legacy_seresnet18",
}  # fmt: skip

HUGE = {"regnet_y_128gf", "vit_h_14"}  # 5 GB in float64, held three times: few layers grow
# networks with fresh weights whose scores change by more than a tenth if rounded to float32
WILD = {"efficientnet_v2_s", "visformer_tiny"}


def marked(names):
    return [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.zoo) for name in names]


@pytest.mark.parametrize("name", marked(TORCHVISION))
def test_torchvision(name):
    heads = {"googlenet": {"aux_logits": False}, "inception_v3": {"aux_logits": False}}
    size = {"inception_v3": 96}.get(name, 224 if name.startswith(("vit", "maxvit")) else 64)
    build = torchvision.models.get_model
    check(
        lambda: build(name, weights=None, **heads.get(name, {})), size, name in HUGE, name in WILD
    )


@pytest.mark.parametrize("name", marked(TIMM))
def test_timm(name):
    size = timm.get_pretrained_cfg(name).input_size[1]
    check(lambda: timm.create_model(name, pretrained=False), size, wild=name in WILD)


def check(build, size, few=False, wild=False):
    """Add branches to a network, randomise and fuse it; compare scores, classes and keys."""
    torch.manual_seed(0)
    model = build().double().eval()
    classes = [type(module) for module in model.modules()]
    keys = set(model.state_dict())
    convs = [m for m in model.modules() if type(m) is nn.Conv2d and max(m.kernel_size) > 1]
    x = torch.randn(1, 3, size, size, dtype=torch.float64)
    chosen = [path for path, _ in eligible.convs(model)][:4] if few else None
    done = dyrep.expand(model, chosen, branches=dyrep.ALL_BRANCHES)
    randomise(model, spread=0.1)
    assert len(done.grown) + len(done.left) >= len(convs if chosen is None else chosen) > 0
    assert all(isinstance(model.get_submodule(path), RepBlock) for path in done.grown)
    fused = dyrep.fuse(model, inputs=x)
    with torch.no_grad():
        true = model(x)
        assert relative_error(true, fused(x)) <= 1e-9
        single = model.float()(x.float())
        allowed = 2 * relative_error(true, single.double()) if wild else 1e-4
        assert relative_error(single, fused.float()(x.float())) <= allowed
    assert [type(module) for module in fused.modules()] == classes
    assert set(fused.state_dict()) - keys <= {f"{path}.bias" for path in done.grown}
