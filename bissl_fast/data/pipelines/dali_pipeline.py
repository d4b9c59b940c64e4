"""The `dali` pipeline: renders a table of view parameters with NVIDIA DALI, also from files that are not decoded yet.

The same views as `torch_pipeline.render`, within two levels of 255. It is worth its 200 MB where images are many or
large: decoding, on the GPU too, and all of a view's operations run in DALI's own threads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from bissl_fast.data.pipelines.filters import box_blur_taps
from bissl_fast.data.views.parameters import HUE, NEUTRAL_FACTORS, ViewParameters, ViewSettings
from bissl_fast.errors import UserError

File: TypeAlias = bytes | npt.NDArray[np.uint8]  # as bytes or (L,) uint8
Images: TypeAlias = npt.NDArray[np.uint8] | torch.Tensor | Sequence[File]  # N times (H, W, 3) uint8, or N files

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
        >>> with DaliPipeline(vicreg_views(96), batch_size=256, encoded=True) as pipeline:  # doctest: +SKIP
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
        if not self.views:
            raise UserError("A pipeline needs the settings of at least one view, found none.")
        self.batch_size = batch_size
        self.device = check_usable(device)
        self.encoded = encoded
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pipeline = self._build()

    def _build(self) -> Any:
        graph = _import("bissl_fast.data.pipelines.dali_graph")
        gpu = self.device.type == "cuda"
        pipeline = graph.views_graph(
            self.views,
            self.encoded,
            gpu,
            batch_size=self.batch_size,
            num_threads=self._threads,
            device_id=self.device.index if gpu else None,
            # The outputs of the dynamic executor are the caller's: DALI takes new memory for the next batch.
            exec_dynamic=True,
            prefetch_queue_depth=1,
        )
        pipeline.build()
        return pipeline

    def render(
        self, images: Images, tables: Sequence[ViewParameters], dtype: torch.dtype = torch.float32
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

    def _check(self, images: Images, tables: Sequence[ViewParameters]) -> None:
        n = len(images)
        if not 0 < n <= self.batch_size:
            raise UserError(f"The pipeline was built for 1 to {self.batch_size} images per call, not {n}.")
        if len(tables) != len(self.views) or any(len(table) != n for table in tables):
            found = " and ".join(str(len(table)) for table in tables) or "none"
            raise UserError(f"{len(self.views)} views of {n} images came with view parameters for {found}.")
        # The sizes also of files: DALI damages its own memory when it meets a file that it cannot parse.
        sizes = image_sizes(images) if self.encoded else _sizes_of_arrays(images)
        for table in tables:
            beyond = (table.box[:, :2] + table.box[:, 2:] > sizes).any(axis=1)
            if beyond.any():
                height, width = sizes[beyond.argmax()]
                raise UserError(
                    f"A crop leaves an image of {height} x {width} pixels: draw the views with the images' own sizes."
                )

    def _tensor(self, output: Any, dtype: torch.dtype) -> torch.Tensor:
        view: torch.Tensor = torch.utils.dlpack.from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)
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
        "solarize": table.solarize,
    }
    if settings.blur_filter == "box":
        weights = box_blur_taps(torch.from_numpy(table.sigma), settings.size)
        columns["box"] = weights.numpy()
    else:
        radius = np.minimum(np.ceil(np.float32(_BLUR_RADIUS) * table.sigma), settings.size - 1)
        columns["window"] = (2 * radius + 1).astype(np.int32)
    rows = np.arange(n)
    for place in range(4):
        operation = table.order[:, place]
        factor = table.factors[rows, operation]
        neutral = factor == np.array(NEUTRAL_FACTORS, dtype=np.float32)[operation]
        columns[f"operation{place}_"] = np.where(neutral, _NO_OPERATION, operation).astype(np.int32)
        columns[f"factor{place}_"] = np.where(operation == HUE, 6 * factor, factor).astype(np.float32)
    return {name: np.ascontiguousarray(column) for name, column in columns.items()}


def image_sizes(files: Images | Sequence[str]) -> npt.NDArray[np.int64]:
    """Height and width of encoded images, from their headers, as DALI's decoder reads them: what `draw_views` needs.

    Args:
        files: N files as bytes, or their paths.

    Returns:
        (N, 2) int64. A turn that the EXIF data ask for is not made, as in the cache of a published set.

    Raises:
        UserError: if one is no image that DALI can read, or has more than 8 bits, which the cache scales and DALI does
            not; or DALI is not installed.
    """
    parse = _import("nvidia.nvimgcodec").CodeStream
    sizes = np.empty((len(files), 2), dtype=np.int64)
    for i, file in enumerate(files):
        name = file if isinstance(file, str) else f"File {i} of the batch"
        if isinstance(file, str) and os.path.exists(file) and not os.path.isfile(file):  # a pipe would be waited for
            raise UserError(f"{name} is no regular file.")
        try:
            header = parse(file if isinstance(file, str) else _bytes(file))
            sizes[i], dtype = (header.height, header.width), str(header.dtype)
        except RuntimeError as error:
            raise UserError(
                f"{name} is missing, damaged, or no image of a kind that DALI decodes (JPEG, PNG, ...)."
            ) from error
        if dtype != "uint8":
            raise UserError(
                f"{name} holds {dtype} values, which DALI scales otherwise than the cache: convert it to 8 bits."
            )
    return sizes


def _import(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise UserError(f"The dali pipeline needs NVIDIA DALI ({error}): {INSTALL}.") from error


def check_usable(device: torch.device | str) -> torch.device:
    """The device by torch's name, CUDA's with its index, if DALI is installed and renders there.

    Raises:
        UserError: if not.
    """
    _import("nvidia.dali")
    device = torch.device("cuda" if device == "gpu" else device)
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"DALI renders on cpu or cuda, not on {device.type}.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("The dali pipeline was asked for a GPU, but torch sees none: use device='cpu'.")
    if str(device) == "cuda":  # settled here: a thread that renders has a current device of its own
        device = torch.device("cuda", torch.cuda.current_device())
    return device


def _bytes(file: object) -> npt.NDArray[np.uint8]:
    data = np.frombuffer(file, dtype=np.uint8) if isinstance(file, bytes) else file
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 1 or not len(data):
        raise UserError("An encoded pipeline takes files as bytes or (L,) uint8 arrays, none of them empty.")
    return data


def _arrays(images: Images) -> list[npt.NDArray[np.uint8]]:
    return [np.ascontiguousarray(image) for image in images]


def _sizes_of_arrays(images: Images) -> npt.NDArray[np.int64]:
    sizes = np.empty((len(images), 2), dtype=np.int64)
    for i, image in enumerate(images):
        dtype, shape = str(getattr(image, "dtype", type(image).__name__)), tuple(getattr(image, "shape", ()))
        if dtype.removeprefix("torch.") != "uint8" or len(shape) != 3 or shape[2] != 3:
            raise UserError(f"Images must be (H, W, 3) uint8 each, not {shape} {dtype}; files need encoded=True.")
        sizes[i] = shape[:2]
    return sizes


def _reason(error: RuntimeError) -> str:
    """What DALI says after its account of where it happened."""
    message = str(error).rpartition("encountered:")[2].strip()
    return message.splitlines()[0] if message else "it gave no reason."
