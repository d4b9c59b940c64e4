"""``--format onnx``: the network as a graph that runs without PyTorch."""

import json
import warnings
from pathlib import Path

import torch

from bissl_fast.errors import UserError
from bissl_fast.export.loading import TrainedModel
from bissl_fast.export.plain_networks import plain_network, random_images, require_same
from bissl_fast.export.usage import Usage, preprocessing

FILE = "model.onnx"


def require(architecture: str, channels: int) -> None:
    """Raises UserError: if what writes and runs ONNX files is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401  PyTorch's exporter is built on it
    except ImportError as error:
        raise UserError(
            f"ONNX files are written by onnx and onnxscript and tried by onnxruntime ({error.name} is not here): "
            "install them with `pip install 'bissl-fast[onnx]'`."
        ) from None


def write(model: TrainedModel, folder: Path) -> Usage:
    """Write `model.onnx`: input ``images`` (N, C, S, S) float32, output ``features`` (N, F) or ``scores`` (N, K).

    N is free. PyTorch's exporter of traced programs is taken: the older one, of TorchScript, is to be removed.

    Raises:
        UserError: if the extra `onnx` is not installed, or the network cannot be translated.
    """
    require(model.architecture, len(model.view.mean))
    import onnx
    import onnxruntime

    network, output = plain_network(model), "scores" if model.classes else "features"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own making
            program = torch.onnx.export(
                network,
                (random_images(model),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("N")},),
                input_names=["images"],
                output_names=[output],
                verbose=False,
            )
    except Exception as error:  # whatever a network holds that ONNX has no word for
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{model.architecture} cannot be written as ONNX ({reason}): choose another --format."
        ) from None
    assert program is not None
    graph = program.model_proto
    told = {"preprocessing": json.dumps(preprocessing(model)), "classes": json.dumps(model.classes)}
    onnx.helper.set_model_props(graph, told)
    onnx.save(graph, folder / FILE)
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    require_same(lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), model, "ONNX", 3)
    return Usage(
        "onnxruntime",
        "import onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{FILE}")\n'
        '(outputs,) = session.run(None, {"images": images})\n',
    )
