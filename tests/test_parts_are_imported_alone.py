"""Losses, optimiser, products and views are imported without the libraries that whole runs are made of."""

import subprocess
import sys

CODE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("timm", "safetensors", "yaml", "matplotlib", "optuna", "sklearn"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
from bissl_fast import LARS, HessianOperator, NTXentLoss, TwoViewAugment, implicit_gradient
import bissl_fast.ops.batch_norm
import bissl_fast.ops.collectives
"""


def test_the_parts_that_the_readme_names_import_no_library_of_runs() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
