"""What pip prints of a build: nothing that its user cannot act on, and all that they can."""

import subprocess
import sys
from pathlib import Path

BACKEND = Path(__file__).parents[1] / "build_tools"
WARNED = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
import backend
warnings.warn("Failed to initialize NumPy: No module named 'numpy' (Triggered internally)")
warnings.warn("Editable installation.\\n!!\\n        Please be careful with folders in your working directory")
warnings.warn("The native kernels are not built: no C++ compiler was found.")
"""


def test_a_build_warns_of_missing_kernels_alone() -> None:
    command = [sys.executable, "-c", WARNED, str(BACKEND)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "The native kernels are not built: no C++ compiler was found." in told
    assert "NumPy" not in told
    assert "Editable" not in told
