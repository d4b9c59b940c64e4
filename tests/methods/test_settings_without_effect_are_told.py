"""A setting that has been given and does nothing beside the others gets a sentence; all others get none."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from rich.console import Console

from bissl_fast.methods.abrl.settings import ABRLSettings, Variant
from bissl_fast.methods.checks import without_effect
from bissl_fast.methods.fussl.fuzzy_labels import Memberships, Ties
from bissl_fast.methods.fussl.settings import FUSSLSettings
from bissl_fast.methods.gessl.settings import Differentiation, GeSSLSettings
from bissl_fast.methods.presets import preset_config
from tests.methods import fussl_runs

GROUPS = {FUSSLSettings: "fussl", ABRLSettings: "abrl", GeSSLSettings: "gessl"}


def told(settings: Any) -> list[str]:
    return [sentence.split()[0] for sentence in without_effect(GROUPS[type(settings)], settings, settings.idle)]


@pytest.mark.parametrize(
    ("settings", "idle"),
    [
        (FUSSLSettings(case="hard", ties="all", memberships="uniform"), ["--fussl.ties", "--fussl.memberships"]),
        (FUSSLSettings(case="soft", ties="all", memberships="uniform"), ["--fussl.ties"]),
        (FUSSLSettings(ties="all", memberships="uniform"), []),
        (FUSSLSettings(rounds=2), ["--fussl.rounds"]),
        (FUSSLSettings(case="progressive", rounds=2, trained_whole=0.5), ["--fussl.trained-whole"]),
        (FUSSLSettings(recipe="pretext", first_rate=0.1), ["--fussl.first-rate"]),
        (FUSSLSettings(first_rate=0.1), []),
        (
            ABRLSettings(variant="no-implicit", hypergradient="neumann", damping=2.0, ridge=0.5),
            ["--abrl.hypergradient", "--abrl.damping", "--abrl.ridge"],
        ),
        (ABRLSettings(variant="no-implicit", hypergradient="converged", ridge=0.5), []),  # its head is solved
        (
            ABRLSettings(variant="single-level", hypergradient="converged", ridge=0.5, inner_steps=9),
            ["--abrl.inner-steps", "--abrl.hypergradient", "--abrl.ridge"],
        ),
        (ABRLSettings(hypergradient="converged", damping=2.0, ridge=0.5), ["--abrl.damping"]),
        (ABRLSettings(variant="no-penalty", penalty=2.0, damping=2.0), ["--abrl.penalty"]),
        (GeSSLSettings(solver_iterations=9), ["--gessl.solver-iterations"]),
        (GeSSLSettings(solver_iterations=9, differentiation="cg"), []),
    ],
)
def test_what_does_nothing_beside_the_others_is_named(settings: Any, idle: list[str]) -> None:
    assert told(settings) == idle


@pytest.mark.parametrize("preset", ["paper", "official", "quick"])
def test_no_preset_has_such_a_setting_whatever_else_is_chosen(preset: Any) -> None:
    config = preset_config(preset, "textures")
    chosen = [replace(config.fussl, case=case) for case in ("hard", "soft", "progressive")]
    chosen += [replace(config.fussl, recipe=recipe) for recipe in ("paper", "pretext")]
    chosen += [replace(config.abrl, variant=variant) for variant in get_args(Variant)]
    chosen += [replace(config.gessl, differentiation=kind) for kind in get_args(Differentiation)]
    assert [sentence for settings in chosen for sentence in told(settings)] == []


@pytest.mark.parametrize("case", ["fuzzy", "hard", "soft"])
def test_labels_change_with_ties_and_memberships_just_where_nothing_is_told(case: Any) -> None:
    votes = torch.tensor([[1, 1, 2, 2, 3], [1, 2, 3, 4, 4], [1, 2, 3, 4, 5]])
    confidences = torch.rand(3, 5, generator=torch.Generator().manual_seed(0)) + 0.1
    usual = FUSSLSettings(case=case)
    for name, values in (("ties", get_args(Ties)), ("memberships", get_args(Memberships))):
        changed = [FUSSLSettings(case=case, **{name: value}) for value in values]
        same = all(torch.equal(s.rule(votes, confidences), usual.rule(votes, confidences)) for s in changed)
        assert same == (name in usual.idle)


def test_a_run_tells_it_at_its_start(small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fussl_runs.training(small_data, tmp_path, "--fussl.rounds", "9", console=Console(width=500))
    assert "fussl: --fussl.rounds has no effect but with --fussl.case progressive" in capsys.readouterr().out
