"""Protocols on an arm's backbone as it is before fine-tuning."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import nn

from bissl_fast.evaluation import protocols
from bissl_fast.evaluation.protocols import PAPERS, ProtocolName, Score, Scores, Subject
from bissl_fast.methods.run import Run
from bissl_fast.training.files import write_json
from bissl_fast.training.stage import StageOutput

FORMAT = 2
"""Raised when the stage's results are laid out otherwise: 2 has intervals."""

WORK = "work"
"""Where protocols that train keep what they have begun; gone when they have ended."""


def score(run: Run, name: str, backbone: StageOutput, chosen: Sequence[ProtocolName]) -> Scores:
    """The stage ``name``: scores of a backbone on the run's test split, in percent, by key.

    Args:
        run: the run.
        name: of the stage.
        backbone: the stage that has left it.
        chosen: the protocols, with their papers' settings.

    Raises:
        UserError: if the run's set cannot serve one of them.
    """
    splits, images = run.data.splits, run.settings.images

    def body(folder: Path) -> None:
        subject = subject_of(run, backbone)
        outcomes = [protocols.run(name, subject, PAPERS, folder / WORK) for name in chosen]
        found = {key: made for outcome in outcomes for key, made in outcome.scores.items()}
        write_json(folder / "results.json", {key: asdict(made) for key, made in found.items()})
        shutil.rmtree(folder / WORK, ignore_errors=True)

    key = {
        "format": FORMAT,
        "protocols": {protocol: PAPERS.of(protocol) for protocol in chosen},
        "views": (images.evaluation_view, images.finetune_view),
    }
    inputs = {"backbone": backbone.hash, "train": splits.train.content_hash, "test": splits.test.content_hash}
    stage = run.stage(name, key, inputs, body, ("results.json",), alone=True)
    return {key: Score(**made) for key, made in json.loads((stage.folder / "results.json").read_text()).items()}


def subject_of(run: Run, backbone: StageOutput) -> Subject:
    """A backbone that a stage has left, and the run's labelled set, as a protocol takes them."""
    images = run.settings.images
    network = run.downstream_network(backbone, nn.Identity()).backbone
    shown = (images.evaluation_view, images.finetune_view)
    name, seed = backbone.folder.name, run.seed("protocols")
    return Subject(network, run.data.splits, *shown, run.device, seed, name, run.console, run.say)
