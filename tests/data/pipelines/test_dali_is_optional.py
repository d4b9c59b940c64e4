"""Without DALI the package works, and says what to install where DALI is asked for."""

import sys

import numpy as np
import pytest
import torch

from bissl_fast.data.pipelines.choice import Pipeline
from bissl_fast.data.pipelines.dali_loader import EncodedSet
from bissl_fast.data.pipelines.dali_pipeline import DaliPipeline, image_sizes
from bissl_fast.data.views.presets import eval_view
from bissl_fast.errors import UserError

INSTALL = r"needs NVIDIA DALI .*pip install 'bissl-fast\[dali\]'"


@pytest.fixture
def _without_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bissl_fast.data.pipelines.dali_graph", raising=False)
    for name in ("nvidia.dali", "nvidia.nvimgcodec"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("_without_dali")
def test_the_package_to_install_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match=INSTALL):
        DaliPipeline([eval_view(24)], 4)
    with pytest.raises(UserError, match=INSTALL):
        Pipeline("dali", torch.device("cpu"))
    with pytest.raises(UserError, match=INSTALL):
        image_sizes([np.zeros(10, np.uint8)])
    (tmp_path / "image.jpg").write_bytes(b"any")
    with pytest.raises(UserError, match=INSTALL):
        EncodedSet.from_files("mine", [tmp_path / "image.jpg"])
