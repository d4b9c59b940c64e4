"""Runs as training leaves them, with random networks, for what is taken away from them."""

import json
from pathlib import Path

import torch

from bissl_fast.cli.train import parse_config
from bissl_fast.methods.config import save_config
from bissl_fast.models import Network, build_backbone, build_classifier
from bissl_fast.training.files import save_weights

CLASSES = ("bark", "moss, wet", "stone")


def network(backbone: str, size: int, channels: int) -> Network:
    """A random network whose batch norms have seen images."""
    body = build_backbone(backbone, 0, size, channels)
    with torch.no_grad():
        features = body.train()(torch.rand(8, channels, size, size, generator=torch.Generator().manual_seed(0)) * 3)
    return Network(body.eval(), build_classifier(features.shape[1], len(CLASSES), 0))


def numbered(tensors: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    """Others for each stage, without drawing a network anew."""
    return {
        name: value * (1 + number / 100) if value.is_floating_point() else value.clone()
        for name, value in tensors.items()
    }


def write_stage(folder: Path, tensors: dict[str, torch.Tensor], validation: tuple[float, ...] = ()) -> None:
    folder.mkdir(parents=True)
    save_weights(folder / "weights.safetensors", tensors)
    records = [{"step": step, "val_top1": score, "val_loss": 9.0} for step, score in enumerate(validation)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "DONE").write_text("{}")


def write_run(folder: Path, backbone: str = "test_resnet", size: int = 16, channels: int = 3, *more: str) -> Path:
    """A finished run of BiSSL and its baseline; of BiSSL's two fine-tuned models the second is the better one."""
    arguments = ["--backbone", backbone, "--images.size", str(size), "--images.channels", str(channels)]
    arguments += ["--images.cache-size", "20", "--output", str(folder.parent), "--name", folder.name, *more]
    config = parse_config(arguments).located()
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(save_config(config))
    stages = {"pretext-warmup": 1, "pretext-baseline": 2, "bissl": 3, "finetune-bissl-0": 4, "finetune-bissl-1": 5}
    stages |= {"finetune-baseline-0": 6}
    scores = {"finetune-bissl-0": (40.0, 41.0), "finetune-bissl-1": (43.0, 42.0), "finetune-baseline-0": (39.0,)}
    made = network(backbone, size, channels).state_dict()
    for stage, number in stages.items():
        tensors = numbered(made, number)
        if stage == "bissl":
            tensors |= {f"downstream.{name}": value for name, value in numbered(made, 9).items()}
        write_stage(folder / stage, tensors, scores.get(stage, ()))
        if stage.startswith("finetune"):
            (folder / stage / "classes.json").write_text(json.dumps(CLASSES))
    arms = {
        "bissl": {"scores": {"top1": [50.0, 52.0]}, "stages": ["pretext-warmup", "bissl"]},
        "baseline": {"scores": {"top1": [47.0, 49.0]}, "stages": ["pretext-baseline"]},
    }
    (folder / "results.json").write_text(
        json.dumps({"dataset": config.dataset, "judged_by": "fine-tuning", "classes": len(CLASSES), "arms": arms})
    )
    return folder
