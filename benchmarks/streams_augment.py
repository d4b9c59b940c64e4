"""Our pipelines and their peers as endless streams of batches, the images that they read, and their rate."""

import functools
import io
import os
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import torch

from benchmarks.peers_augment import CORES, PEERS, Images, Peer, Views, threads_for
from bissl_fast.data.pipelines.order import BatchOrder
from bissl_fast.data.sets.catalogue import load_pretext
from bissl_fast.data.sets.dataset import ImageSet
from bissl_fast.data.sets.readers.decode import resize_square, to_rgb
from bissl_fast.data.views.presets import vicreg_views
from bissl_fast.measuring.timing import wait_for
from bissl_fast.measuring.views import enlarged, pipelines, torch_threads

CACHE_SIZE = 112
MADE_AHEAD = 3  # batches for each worker: two that it may have made, and one to warm up on
PHOTOGRAPHS = "dtd_10classes_s128.tar.gz"


def ours(name: str, images: Images, size: int, batch_size: int, device: torch.device) -> Iterator[Views]:
    """One of our pipelines, by its name in :func:`bissl_fast.measuring.views.pipelines`."""
    held = ImageSet("benchmark", images, None, (), "")
    order = BatchOrder(len(images), batch_size, seed=0)
    with pipelines(held, vicreg_views(size), order, device, threads_for(device)) as (calls, _):
        for number in count():
            first, second = calls[name](number)
            yield first, second


def streams(device: torch.device) -> dict[str, Peer]:
    """Ours, best first, then the peers: those that this machine has."""
    held = ImageSet("none", np.zeros((1, 8, 8, 3), dtype=np.uint8), None, (), "")
    with pipelines(held, vicreg_views(8), BatchOrder(1, 1, seed=0), device, 1) as (calls, left_out):
        for sentence in left_out:
            print(sentence)
        return {f"bissl-fast: {name}": functools.partial(ours, name) for name in calls} | PEERS


def pictures(size: int = CACHE_SIZE) -> tuple[str, Images]:
    """A name, and (M, size, size, 3) uint8: 1,200 photographs of DTD's, or else the embedded textures, enlarged.

    Photographs are read from the folder that ``BISSL_FAST_TEST_DATA`` names, as the tests do.
    """
    default = Path(__file__).parents[2] / "shared" / "data"
    archive = Path(os.environ.get("BISSL_FAST_TEST_DATA") or default) / PHOTOGRAPHS
    if not archive.is_file():
        textures = enlarged(load_pretext("textures", None, size), size)
        return textures.name, textures.images
    from PIL import Image

    found = []
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name.endswith(".jpg") and (file := tar.extractfile(member)):
                found.append(resize_square(to_rgb(Image.open(io.BytesIO(file.read()))), size))
    return f"{len(found):,} photographs of DTD", np.stack(found)


def views_per_second(stream: Iterator[Views], seconds: float, device: torch.device, workers: int = 0) -> float:
    """Rate of a stream in whole batches; neither its start counts nor what its workers make ahead."""
    for _ in range(MADE_AHEAD * max(1, workers)):
        next(stream)
    wait_for(device)
    start, views = time.perf_counter(), 0
    while views == 0 or time.perf_counter() < start + seconds:
        views += sum(len(view) for view in next(stream))
    wait_for(device)
    return views / (time.perf_counter() - start)


@contextmanager
def two_cores() -> Iterator[None]:
    """Bind this process, and all that it starts, to two of its cores, and torch to as many threads."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:CORES])
    try:
        with torch_threads(CORES):
            yield
    finally:
        os.sched_setaffinity(0, allowed)
