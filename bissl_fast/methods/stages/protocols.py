"""Protocols on an arm's backbone as it is before fine-tuning."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn

from bissl_fast.evaluation import protocols
from bissl_fast.evaluation.protocols import PAPERS, ProtocolName, ProtocolSettings, Subject
from bissl_fast.methods.run import Run
from bissl_fast.training.files import write_json
from bissl_fast.training.stage import StageOutput
from bissl_fast.training.tracking import tracked


def score(
    run: Run,
    name: str,
    backbone: StageOutput,
    chosen: Sequence[ProtocolName],
    settings: ProtocolSettings = PAPERS,
) -> dict[str, float]:
    """The stage ``name``: scores of a backbone on the run's test split, in percent, by key.

    Args:
        run: the run.
        name: of the stage.
        backbone: the stage that has left it.
        chosen: the protocols.
        settings: of them.

    Raises:
        UserError: if the run's set cannot serve one of them.
    """
    splits, images = run.data.splits, run.settings.images

    def body(folder: Path) -> None:
        write_json(folder / "results.json", protocols.scores(subject_of(run, backbone), chosen, settings))

    key = {
        "protocols": {protocol: settings.of(protocol) for protocol in chosen},
        "views": (images.evaluation_view, images.finetune_view),
    }
    inputs = {"backbone": backbone.hash, "train": splits.train.content_hash, "test": splits.test.content_hash}
    stage = run.stage(name, key, inputs, body, ("results.json",))
    found: dict[str, float] = json.loads((stage.folder / "results.json").read_text())
    return found


def subject_of(run: Run, backbone: StageOutput) -> Subject:
    """A backbone that a stage has left, and the run's labelled set, as a protocol takes them."""
    images = run.settings.images
    network = run.downstream_network(backbone, nn.Identity()).backbone
    shown = (images.evaluation_view, images.finetune_view)
    seed, track = run.seed("protocols"), partial(tracked, run.console)
    return Subject(network, run.data.splits, *shown, run.device, seed, track, run.say)
