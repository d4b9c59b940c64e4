"""``--format hf``: a folder as the Hugging Face Hub keeps timm's models, weights beside what they are."""

from pathlib import Path
from typing import Any

from bissl_fast.export.loading import TrainedModel
from bissl_fast.export.plain_networks import require_timm, timm_network, timm_options
from bissl_fast.export.usage import Usage, preprocessing
from bissl_fast.training.files import save_weights, write_json

OF_THE_NETWORK = ("first_conv", "classifier", "fixed_input_size")  # what timm needs to change channels or classes


def require(architecture: str, channels: int) -> None:
    """Raises UserError: if timm has no such network."""
    require_timm(architecture)


def write(model: TrainedModel, folder: Path) -> Usage:
    """Write `model.safetensors` and `config.json`.

    Raises:
        UserError: if timm has no such network.
    """
    network = timm_network(model)
    known: Any = network.pretrained_cfg
    own = {name: known[name] for name in OF_THE_NETWORK if known.get(name) is not None}
    named = {"label_names": list(model.classes)} if model.classes else {}
    config = {
        "architecture": model.architecture,
        "num_classes": len(model.classes),
        "num_features": network.num_features,
        **named,
        "model_args": timm_options(model),
        "pretrained_cfg": {**preprocessing(model), "num_classes": len(model.classes), **own},
    }
    save_weights(folder / "model.safetensors", network.state_dict())
    write_json(folder / "config.json", config)
    return Usage(
        "timm",
        "import timm\n\n"
        'model = timm.create_model("local-dir:.", pretrained=True)  # or "hf-hub:OWNER/NAME", once it is there\n'
        "model.eval()\n"
        "outputs = model(images)\n",
    )
