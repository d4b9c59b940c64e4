"""The best backend serves; a choice that cannot raises; the reference steps in once and says so."""

import subprocess
import sys
import warnings

import pytest
import torch
from contrastive_cases import needs_native, views

from bissl_fast.errors import UserError
from bissl_fast.ops import NTXentLoss, available_backends, backend, native, nt_xent_loss
from bissl_fast.ops import backend as backend_context
from bissl_fast.ops.backend import choose, say_once


@needs_native
def test_cpu_embeddings_go_to_cpp_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    z = views(4, 3)[0]
    assert choose(z) == "cpp"
    monkeypatch.setenv("BISSL_FAST_BACKEND", "reference")
    assert choose(z) == "reference"
    with backend("cpp"):
        assert choose(z) == "cpp"
        with backend("auto"):
            assert choose(z) == "cpp"
    assert choose(z) == "reference"


@needs_native
def test_both_backends_give_the_same_loss() -> None:
    z1, z2 = views(20, 7)
    found = NTXentLoss(0.2)(z1, z2)
    with backend("reference"):
        torch.testing.assert_close(found, NTXentLoss(0.2)(z1, z2), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_choice_that_cannot_serve_raises(name: str) -> None:
    with backend(name), pytest.raises(UserError, match="serves cuda tensors, not cpu"):
        nt_xent_loss(*views(4, 3))


def test_an_unknown_backend_is_named_beside_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="reference, cpp, triton, cuda"), backend_context("cudnn"):
        pass
    monkeypatch.setenv("BISSL_FAST_BACKEND", "cudnn")
    with pytest.raises(UserError, match="cudnn"):
        nt_xent_loss(*views(4, 3))


def test_without_compiled_kernels_the_reference_serves_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "IMPORT_ERROR", ImportError("No module named 'bissl_fast._C'"))
    say_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="plain PyTorch .*bissl_fast._C"):
        nt_xent_loss(*views(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nt_xent_loss(*views(4, 3))
    with backend("cpp"), pytest.raises(UserError, match="cannot be imported"):
        nt_xent_loss(*views(4, 3))
    assert "pip install" in available_backends()["cpp"]


def test_importing_the_losses_imports_neither_triton_nor_the_trainers_libraries() -> None:
    script = (
        "import sys, torch; before = set(sys.modules); import bissl_fast.ops;"
        "print([m for m in ('triton', 'timm', 'torchvision', 'sklearn') if m in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
