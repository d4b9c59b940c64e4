"""The `dali` pipeline: renders a table of view parameters with NVIDIA DALI, also from files that are not decoded yet.

The same views as `torch_pipeline.render`, within two levels of 255. It is worth its 200 MB where images are many or
large: decoding, on the GPU too, and all of a view's operations run in DALI's own threads.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from bissl_fast.data.views import HUE, NEUTRAL_FACTORS, ViewParameters, ViewSettings
from bissl_fast.errors import UserError

Encoded: TypeAlias = Sequence[bytes | npt.NDArray[np.uint8]]  # files as bytes, or as (L,) uint8
Decoded: TypeAlias = npt.NDArray[np.uint8] | torch.Tensor | Sequence[npt.NDArray[np.uint8]]  # N times (H, W, 3)

INSTALL = "pip install 'bissl-fast[dali]'"
_RADIUS = {"bilinear": 1, "bicubic": 2}  # of the filter in pixels, before the stretch of downscaling
_BLUR_RADIUS = 4.0  # standard deviations, as `filters.blur_matrices`
_NO_OPERATION = -1


class DaliPipeline:
    """Renders views of up to `batch_size` images per call; images are decoded once for all views.

    A sample's views do not depend on its batch, nor on the number of threads.

    Args:
        views: Settings of each view.
        batch_size: The most images per call.
        device: ``"cpu"`` or a CUDA device, where the views are wanted.
        encoded: Whether images come as encoded files. On CUDA, JPEGs are then decoded by nvJPEG.
        threads: Of DALI on the host; all cores that this process may use if left out.

    Raises:
        UserError: if DALI is not installed, or the device is not there.

    Example:
        >>> with DaliPipeline(vicreg_views(96), batch_size=256, encoded=True) as pipeline:
        ...     sizes = image_sizes(files)
        ...     tables = [draw_views(s, 0, 0, samples, view, sizes) for view, s in enumerate(vicreg_views(96))]
        ...     first, second = pipeline.render(files, tables)
    """

    def __init__(
        self,
        views: Sequence[ViewSettings],
        batch_size: int,
        device: torch.device | str = "cpu",
        encoded: bool = False,
        threads: int | None = None,
    ) -> None:
        self.views = tuple(views)
        self.batch_size = batch_size
        self.device = _usable(device)
        self.encoded = encoded
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pipeline = self._build()

    def _build(self) -> Any:
        try:
            graph = import_module("bissl_fast.data.dali_graph")
        except ImportError as error:
            raise UserError(f"The dali pipeline needs NVIDIA DALI ({error}): {INSTALL}.") from error
        gpu = self.device.type == "cuda"
        pipeline = graph.views_graph(
            self.views,
            self.encoded,
            gpu,
            batch_size=self.batch_size,
            num_threads=self._threads,
            device_id=(self.device.index or 0) if gpu else None,
            # The outputs of the dynamic executor are the caller's: DALI takes new memory for the next batch.
            exec_dynamic=True,
            prefetch_queue_depth=1,
        )
        pipeline.build()
        return pipeline

    def render(
        self, images: Decoded | Encoded, tables: Sequence[ViewParameters], dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, ...]:
        """Renders every view of each image.

        Args:
            images: N images on the host: (N, H, W, 3) uint8 or N arrays (H, W, 3), or N files if `encoded`.
            tables: One per view, drawn for the images' sizes.
            dtype: Of the result: float32, or what torch casts it to.

        Returns:
            One (N, 3, S, S) tensor per view, in channels_last memory. It is the caller's for as long as it is held. On
            the CPU, float32 is DALI's own memory, without a copy. On CUDA it is a copy, for which the call waits:
            DALI would not know which of torch's kernels still read its memory.

        Raises:
            UserError: if images are no images, or do not fit the tables.
        """
        self._check(images, tables)
        inputs: dict[str, object] = {"images": [_bytes(file) for file in images] if self.encoded else _arrays(images)}
        for view, (table, settings) in enumerate(zip(tables, self.views, strict=True)):
            inputs |= {f"{name}{view}": column for name, column in graph_inputs(table, settings).items()}
        try:
            outputs = self._pipeline.run(**inputs)
        except RuntimeError as error:
            self._pipeline = self._build()  # DALI refuses to go on with the old one
            raise UserError(f"DALI could not render a batch: {_reason(error)}") from error
        return tuple(self._tensor(output, dtype) for output in outputs)

    def close(self) -> None:
        """Frees DALI's threads and memory; tensors that were returned stay."""
        self._pipeline = None

    def __enter__(self) -> DaliPipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, images: Decoded | Encoded, tables: Sequence[ViewParameters]) -> None:
        n = len(images)
        if not 0 < n <= self.batch_size:
            raise UserError(f"The pipeline was built for 1 to {self.batch_size} images per call, not {n}.")
        if len(tables) != len(self.views) or any(len(table) != n for table in tables):
            found = " and ".join(str(len(table)) for table in tables) or "none"
            raise UserError(f"{len(self.views)} views of {n} images came with view parameters for {found}.")
        if self.encoded:
            return
        sizes = _sizes_of_arrays(images)
        for table in tables:
            beyond = (table.box[:, :2] + table.box[:, 2:] > sizes).any(axis=1)
            if beyond.any():
                height, width = sizes[beyond.argmax()]
                raise UserError(
                    f"A crop leaves an image of {height} x {width} pixels: draw the views with the images' own sizes."
                )

    def _tensor(self, output: Any, dtype: torch.dtype) -> torch.Tensor:
        view: torch.Tensor = torch.from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)
        if view.device.type == "cpu":
            return view.to(dtype)
        copy = view.to(dtype, copy=True)
        torch.cuda.current_stream(view.device).synchronize()
        return copy


def graph_inputs(table: ViewParameters, settings: ViewSettings) -> dict[str, npt.NDArray[Any]]:
    """The table in the terms of DALI's operators: one array of N rows for each input of the graph.

    Args:
        table: N views.
        settings: What it was drawn from.
    """
    n = len(table)
    start, shape = table.box[:, :2], table.box[:, 2:]
    stretch = np.maximum(1.0, shape / settings.size)
    margin = np.ceil(_RADIUS[settings.interpolation] * stretch).astype(np.int64) + 1  # of zeros around the crop
    radius = np.minimum(np.ceil(np.float32(_BLUR_RADIUS) * table.sigma), settings.size - 1)
    columns: dict[str, npt.NDArray[Any]] = {
        "crop_start": start.astype(np.int32),
        "crop_shape": shape.astype(np.int32),
        "pad_start": -margin.astype(np.int32),
        "pad_shape": (shape + 2 * margin).astype(np.int32),
        "roi_start": margin.astype(np.float32),
        "roi_end": (margin + shape).astype(np.float32),
        "mirror": table.flip.astype(np.int32),
        "gray": table.gray,
        "sigma": table.sigma,
        "window": (2 * radius + 1).astype(np.int32),
        "solarize": table.solarize,
    }
    rows = np.arange(n)
    for place in range(4):
        operation = table.order[:, place]
        factor = table.factors[rows, operation]
        neutral = factor == np.float32(NEUTRAL_FACTORS)[operation]
        columns[f"operation{place}_"] = np.where(neutral, _NO_OPERATION, operation).astype(np.int32)
        columns[f"factor{place}_"] = np.where(operation == HUE, 6 * factor, factor).astype(np.float32)
    return {name: np.ascontiguousarray(column) for name, column in columns.items()}


def image_sizes(files: Encoded) -> npt.NDArray[np.int64]:
    """Height and width of encoded images, from their headers: what `draw_views` needs.

    Args:
        files: N files as bytes.

    Returns:
        (N, 2) int64.

    Raises:
        UserError: if one is no image.
    """
    from PIL import Image

    sizes = []
    for i, file in enumerate(files):
        try:
            with Image.open(io.BytesIO(_bytes(file))) as image:
                sizes.append((image.height, image.width))
        except Exception as error:  # a broken file can make a decoder raise anything
            raise UserError(f"File {i} of the batch is no image: {error}.") from error
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def _usable(device: torch.device | str) -> torch.device:
    device = torch.device("cuda" if device == "gpu" else device)
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"DALI renders on cpu or cuda, not on {device.type}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("The dali pipeline was asked for a GPU, but torch sees none: use device='cpu'.")
    return device


def _bytes(file: bytes | npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    data = np.frombuffer(file, dtype=np.uint8) if isinstance(file, bytes) else file
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 1 or not len(data):
        raise UserError("An encoded pipeline takes files as bytes or (L,) uint8 arrays, none of them empty.")
    return data


def _arrays(images: Decoded) -> list[npt.NDArray[np.uint8]]:
    return [np.ascontiguousarray(image) for image in images]


def _sizes_of_arrays(images: Decoded) -> npt.NDArray[np.int64]:
    for image in images:
        if str(image.dtype).removeprefix("torch.") != "uint8" or image.ndim != 3 or image.shape[-1] != 3:
            raise UserError(f"Images must be (H, W, 3) uint8 each, not {tuple(image.shape)} {image.dtype}.")
    return np.array([tuple(image.shape[:2]) for image in images], dtype=np.int64)


def _reason(error: RuntimeError) -> str:
    """What DALI says after its account of where it happened."""
    message = str(error).rpartition("encountered:")[2].strip()
    return message.splitlines()[0] if message else "it gave no reason."
