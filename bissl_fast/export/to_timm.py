"""``--format timm``: the weights by timm's names."""

from pathlib import Path

from bissl_fast.export.loading import TrainedModel
from bissl_fast.export.plain_networks import require_timm, timm_network, timm_options
from bissl_fast.export.usage import Usage
from bissl_fast.training.files import save_weights

FILE = "model.safetensors"


def require(architecture: str, channels: int) -> None:
    """Raises UserError: if timm has no such network."""
    require_timm(architecture)


def write(model: TrainedModel, folder: Path) -> Usage:
    """Write `model.safetensors`.

    Raises:
        UserError: if timm has no such network.
    """
    save_weights(folder / FILE, timm_network(model).state_dict())
    more = "".join(f", {name}={value}" for name, value in timm_options(model).items())
    classes = f"num_classes={len(model.classes)}"
    return Usage(
        "timm",
        "import timm\n\n"
        f'model = timm.create_model("{model.architecture}", {classes}{more}, checkpoint_path="{FILE}")\n'
        "model.eval()\n"
        "outputs = model(images)\n",
    )
