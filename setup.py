"""Builds ``bissl_fast._C``. Without a compiler, or where the build fails, the package installs without it.

Environment:
    BISSL_FAST_NATIVE: ``0`` builds nothing, ``1`` makes every failure fatal, unset tries and warns.
    BISSL_FAST_CUDA: ``0`` leaves the CUDA kernels out; otherwise they are built where nvcc is, GPU or not.
    TORCH_CUDA_ARCH_LIST: CUDA architectures, by default 8.0, 9.0 and 10.0 + PTX (as far as nvcc knows them).
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = Path("csrc")
OLDEST_TORCH = "0x020b000000000000"  # 2.11: the binary loads under this torch and every newer one
CXX_FLAGS = ["-std=c++20", "-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-Wall"]
NVCC_FLAGS = ["-std=c++20", "-O3", "--extended-lambda", "--expt-relaxed-constexpr"]
WANTED = os.environ.get("BISSL_FAST_NATIVE", "")
WITH_CUDA = os.environ.get("BISSL_FAST_CUDA", "") != "0"
CUDA_RUNTIME = "cudart_static"  # linked in: the binary needs no library of CUDA, and PyTorch without CUDA can load it
TO_MEND = "bissl-fast works without it, slower; `BISSL_FAST_NATIVE=1 pip install .` shows the whole error."


class NativeUnavailableError(Exception):
    """What keeps the native code from being built."""


def sources(with_cuda: bool) -> list[str]:
    """The sources of csrc/sources.txt, which CMakeLists.txt reads too."""
    lines = (ROOT / CSRC / "sources.txt").read_text().splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    return [str(CSRC / name) for name in names if with_cuda or not name.startswith("cuda/")]


def import_torch():
    """Torch of the build environment, else of the one installed into, seen through pip's isolation."""
    try:
        import torch
    except ImportError:
        sys.path.append(sysconfig.get_path("purelib"))
        try:
            import torch
        except ImportError as error:
            raise NativeUnavailableError(f"torch cannot be imported ({error})") from error
    return torch


def cuda_root() -> Path | None:
    """The toolkit's folder as nvcc names it: nvcc on PATH may be a wrapper that lies elsewhere."""
    home = os.environ.get("CUDA_HOME")
    nvcc = str(Path(home) / "bin" / "nvcc") if home else shutil.which("nvcc")
    if nvcc is None or not os.access(nvcc, os.X_OK):
        return None
    dry_run = subprocess.run([nvcc, "-v", "--dryrun", "x.cu"], capture_output=True, text=True)
    top = re.search(r"TOP=(\S+)", dry_run.stdout + dry_run.stderr)
    return Path(top[1]).resolve() if top else None


def cuda_architectures(root: Path) -> str:
    """Default architectures, less those that this nvcc is too old for."""
    known = subprocess.run([root / "bin" / "nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout
    names = [name for name in ("8.0", "9.0", "10.0") if f"compute_{name.replace('.', '')}" in known]
    return ";".join(names) + "+PTX"


def without_paths(torch) -> list[str]:
    """Compiler flags by which the binary is the same wherever it is built: it names no folder of this machine."""
    found = Path(torch.__file__).parent
    names = {str(ROOT.resolve()): ".", str(found): "torch", str(found.resolve()): "torch"}
    return ["-g0", *(f"-ffile-prefix-map={folder}={name}" for folder, name in names.items())]


def host(flags: list[str]) -> list[str]:
    """Flags that nvcc hands on to the host's compiler."""
    return [part for flag in flags for part in ("-Xcompiler", flag)]


def write_build_info(torch, architectures: str) -> None:
    """The header from which ``bissl_fast._C.build_info()`` speaks."""
    facts = {
        "FLAGS": " ".join(CXX_FLAGS),
        "CUDA_ARCHITECTURES": architectures,
        "TORCH_HEADERS": torch.__version__,
        "OLDEST_TORCH": "2.11",
    }
    text = "".join(f'#define BISSL_FAST_{name} "{value}"\n' for name, value in facts.items())
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    header = folder / "bissl_fast_build_info.h"
    if not header.exists() or header.read_text() != text:
        header.write_text(text)


def native_build() -> tuple[list[Extension], type[build_ext]]:
    """The extension and the command that builds it."""
    if shutil.which(shlex.split(os.environ.get("CXX") or "c++")[0]) is None:
        raise NativeUnavailableError("no C++ compiler was found")
    torch = import_torch()
    root = cuda_root() if torch.version.cuda and WITH_CUDA else None  # not cuda.is_available(): no GPU is needed
    if root is not None:
        os.environ["CUDA_HOME"] = str(root)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", cuda_architectures(root))
    from torch.utils import cpp_extension

    write_build_info(torch, os.environ["TORCH_CUDA_ARCH_LIST"] if root else "")
    extension = cpp_extension.CppExtension(
        "bissl_fast._C",
        sources(with_cuda=root is not None),
        include_dirs=[str(ROOT / CSRC), str(ROOT / "build")],
        library_dirs=[str(root / "lib64")] if root else [],
        libraries=[CUDA_RUNTIME, "dl", "rt", "pthread"] if root else [],
        define_macros=[("TORCH_TARGET_VERSION", OLDEST_TORCH)],
        extra_compile_args={
            "cxx": [*CXX_FLAGS, *without_paths(torch)],
            "nvcc": NVCC_FLAGS + host(without_paths(torch)),
        },
        depends=[str(path.relative_to(ROOT)) for path in sorted((ROOT / CSRC).rglob("*.*h"))],
    )
    return [extension], forgiving(cpp_extension.BuildExtension, lambda: write_build_info(torch, ""))


def forgiving(command: type[build_ext], without_cuda: Callable[[], None]) -> type[build_ext]:
    """``command``, which tries again without CUDA, then does without, unless native code was demanded."""

    class BuildNative(command):
        def run(self):
            remove_built("bissl_fast" if self.inplace else "build/lib*/bissl_fast")
            found = {"compiler": self.compiler, "inplace": self.inplace}  # a run that fails leaves them changed
            try:
                super().run()
            except Exception as error:
                if WANTED == "1":
                    raise
                vars(self).update(found)
                self.run_without(error)

        def run_without(self, error):
            if any(remove_cuda(extension) for extension in self.extensions):
                warnings.warn(f"The CUDA kernels were not built: {error}. {TO_MEND}", stacklevel=1)
                without_cuda()
                self.run()
            else:
                warnings.warn(f"The native kernels were not built: {error}. {TO_MEND}", stacklevel=1)
                self.extensions = []

    return BuildNative


def remove_built(place: str) -> None:
    """Delete earlier binaries where this build puts its own, so that one that fails cannot hand on an old one."""
    for path in ROOT.glob(f"{place}/_C.*"):
        path.unlink()


def remove_cuda(extension: Extension) -> bool:
    """Leave the CUDA sources out of ``extension``; whether there were any."""
    kept = [name for name in extension.sources if not name.endswith(".cu")]
    removed = len(kept) < len(extension.sources)
    extension.sources = kept
    extension.libraries = [name for name in extension.libraries if name != CUDA_RUNTIME]
    return removed


def main() -> None:
    """Set up the package with the native code that can be built here."""
    extensions, command = [], build_ext
    if WANTED == "0":
        remove_built("build/lib*/bissl_fast")
    else:
        try:
            extensions, command = native_build()
        except NativeUnavailableError as error:
            if WANTED == "1":
                raise SystemExit(f"BISSL_FAST_NATIVE=1, but {error}.") from error
            remove_built("build/lib*/bissl_fast")
            warnings.warn(f"The native kernels are not built: {error}. {TO_MEND}", stacklevel=1)
    setup(ext_modules=extensions, cmdclass={"build_ext": command})


main()
