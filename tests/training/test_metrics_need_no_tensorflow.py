"""TensorBoard takes TensorFlow where it is installed: seconds, and a crash if torchvision is loaded after it."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from bissl_fast.training.log import Metrics
metrics = Metrics(Path(sys.argv[1]))
metrics.write(1, {"loss": 0.5})
metrics.close()
assert "tensorflow" not in sys.modules
"""


def test_an_installed_tensorflow_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('TensorFlow was loaded')\n")
    path = os.pathsep.join((str(tmp_path), *filter(None, sys.path)))
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert list((tmp_path / "tensorboard").iterdir())
