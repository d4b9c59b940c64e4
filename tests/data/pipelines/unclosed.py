"""An interpreter that ends while a loader is open."""

import subprocess
import sys
from typing import Any

SCRIPT = """
import numpy as np
from bissl_fast.data.sets.dataset import ImageSet
from {module} import {name}
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.views.presets import vicreg_views
images = ImageSet("noise", np.zeros((64, 64, 64, 3), np.uint8), None, (), "0")
loader = {name}(images, vicreg_views(48), BatchOrder(64, 32, seed=0), 0, "cpu")
print(len(loader.load(0).samples), flush=True)
{ending}
"""


def assert_exits(loader: type[Any], ending: str) -> None:
    """It loads a batch, ends as it is told to, and neither hangs nor crashes."""
    script = SCRIPT.format(module=loader.__module__, name=loader.__name__, ending=ending)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "32\n"
    assert (done.returncode == 0) == (ending == "")
    assert "Fatal" not in done.stderr
