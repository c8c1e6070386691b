"""Provide a folder of images for the tests of the stages."""

import pytest

from tests.pipeline.data.preparing import folder


@pytest.fixture
def images(tmp_path):
    return folder(tmp_path / "images")
