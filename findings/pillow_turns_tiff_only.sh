#!/usr/bin/env bash
# One would guess: a decoder either turns images as their EXIF orientation says, or leaves them as they are stored.
# What happens: Pillow turns a TIFF while it loads it, and no other format; `Image.size` of the TIFF is the turned one from
# the start. DALI turns all (adjust_orientation=True, its default) or none, a TIFF included. So no setting of
# DALI sees every file as Pillow does.
# Whom it costs: who moves a data set of several formats from Pillow to DALI, or from TIFF to PNG.
# Versions: Pillow 13.0.0 and DALI 2.4.0 on a CPU. Date: 2026-11-27.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6 nvidia-dali-cuda130==2.4.0
"$folder/env/bin/python" - <<'EOF'
import io

import numpy as np
import nvidia.dali
import PIL
from nvidia.dali import fn, pipeline_def, types
from PIL import Image


def encoded(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: shown after a quarter turn
    file = io.BytesIO()
    Image.fromarray(np.zeros((48, 40, 3), np.uint8)).save(file, kind, exif=exif)
    return file.getvalue()


@pipeline_def(batch_size=1, num_threads=1, device_id=None)
def decoder(adjust):
    files = fn.external_source(name="files", ndim=1, dtype=types.UINT8)
    return fn.decoders.image(files, device="cpu", adjust_orientation=adjust)


def by_dali(file, adjust):
    pipeline = decoder(adjust=adjust)
    pipeline.build()
    pipeline.feed_input("files", [np.frombuffer(file, np.uint8)])
    return np.asarray(pipeline.run()[0][0]).shape


print("Pillow", PIL.__version__, "DALI", nvidia.dali.__version__)
print("expected of Pillow: (48, 40, 3), as stored, for every format")
stored, turned = (48, 40, 3), (40, 48, 3)
for kind in ("TIFF", "PNG", "JPEG", "WEBP"):
    file = encoded(kind)
    seen = np.asarray(Image.open(io.BytesIO(file))).shape, by_dali(file, False), by_dali(file, True)
    print(f"seen: {kind:4} Pillow {seen[0]}, DALI not adjusted {seen[1]}, adjusted {seen[2]}")
    assert seen == (turned if kind == "TIFF" else stored, stored, turned), "the behaviour has changed"
EOF
