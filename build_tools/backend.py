"""setuptools as a build backend, which asks for torch only where native code is going to be built without it.

An isolated build cannot import the torch of the environment that it installs into, but it can see it, and
setup.py builds against it. So a second torch is downloaded only for an environment that has none.
"""

import importlib.machinery
import os
import shlex
import shutil
import sysconfig
import warnings

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

TORCH = "torch>=2.11,<3"

# pip prints every warning of a build. These two ask for nothing: torch's headers need no NumPy, and an editable
# installation is what was asked for. What keeps the native code from being built is still told.
for message in ("Failed to initialize NumPy", r"Editable installation\."):
    warnings.filterwarnings("ignore", message=message)


def _native_requirements() -> list[str]:
    if (
        os.environ.get("BISSL_FAST_NATIVE") == "0"
        or shutil.which(shlex.split(os.environ.get("CXX") or "c++")[0]) is None
    ):
        return []
    visible = importlib.machinery.PathFinder.find_spec("torch", [sysconfig.get_path("purelib")])
    return ["ninja"] if visible else ["ninja", TORCH]


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _native_requirements()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _native_requirements()
