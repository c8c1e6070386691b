"""Test checking and loading images on a CUDA device; without one, the tests are skipped."""

import pytest
import torch

from pipeline.data.loaders.choose import make
from pipeline.data.prepare import examine
from tests.pipeline.data.loaders.loading import spec
from tests.pipeline.data.preparing import Prepared, encoded, folder, picture

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_the_second_decoder_refuses_a_truncated_image_and_accepts_a_whole_one():
    pytest.importorskip("nvidia.nvimgcodec")
    examine._check_other_decoder(encoded(picture(1, 375, 500)))
    with pytest.raises(examine.Bad):
        examine._check_other_decoder(encoded(picture(1, 375, 500))[:700])


@pytest.mark.parametrize("kind", ["dali", "memory", "torch"])
def test_a_loader_gives_the_same_validation_images_on_gpu_and_cpu(tmp_path, kind):
    if kind == "dali":
        pytest.importorskip("nvidia.dali")
    made = Prepared(
        tmp_path / "o", name="imagefolder", root=str(folder(tmp_path / "images")), val_fraction=0.5
    ).run()
    shown = [
        torch.cat(
            [batch.images.cpu() for batch in make(kind, spec(made.folder, "val", device=device))]
        )
        for device in (torch.device("cpu"), torch.device("cuda"))
    ]
    # a decoder on the GPU may round differently
    assert (shown[0] - shown[1]).abs().max() <= 3 / 255 / min(made.manifest.std)
