"""One small member of each timm family: does it train by BiSSL, by which products, and what moves in its passes?

Each is what ``bissl-fast train`` would build, and goes through what a run tries before its first stage. What has been
tried before, with the same versions, is not tried again: delete the ``.json`` for that.

    python -m benchmarks.backbones --page docs/backbones.md --output docs/results/backbones.json    # half an hour
"""

import argparse
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._registry import _model_to_module

from bissl_fast.errors import UserError
from bissl_fast.methods.bilevel import BilevelSettings
from bissl_fast.methods.trial import usable
from bissl_fast.models import Network, build_backbone, probe_features
from bissl_fast.models.backbone import options_for
from bissl_fast.models.separate import keeps_apart
from bissl_fast.ops.batch_norm.module import mixing
from bissl_fast.pretext import Learner, SimCLR
from bissl_fast.training.environment import describe_environment
from bissl_fast.training.files import write_atomic, write_json

SIZE = 96  # px, the default of --images.size
LARGEST = 1_000_000_000  # parameters: larger families are named and not tried

PAGE = """# Backbones

`--backbone NAME` takes timm's networks, and `conv4`, the four blocks of the few-shot literature
([evaluation.md](evaluation.md)). One small member of each family of timm's, as `python -m benchmarks.backbones` found
it on {date} (timm {timm}, torch {torch}, {processor}, {size} px, float32): what a run tries before
its first stage, a product of the pretext loss of two pairs of images.

- **products**: `linearized`, the default, or what the run takes in its place; *refused* ends with a sentence before
  anything is computed.
- **made for the size**: timm builds the network for images of one size; it is built for `--images.size`.
- **moves**: the buffers that a pass in train mode moves. Products never move one.
- **views**: pass *at once*, where the network keeps them apart, or one by one.

{counts}

| family | member | parameters, millions | products | made for the size | moves | views |
|---|---|---:|---|---|---|---|
{rows}

{notes}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--families", nargs="*", help="only these; all if left out")
    arguments = parser.parse_args()
    environment = describe_environment(torch.device("cpu"))
    record: dict[str, Any] = {"size": SIZE, "environment": environment, "rows": {}}
    if arguments.output.exists():
        before = json.loads(arguments.output.read_text())
        if before["size"] == SIZE and before["environment"]["packages"] == environment["packages"]:
            record["rows"] = before["rows"]
    for family, member, parameters in sorted(smallest_members(), key=lambda found: found[2]):
        if member in record["rows"] or (arguments.families and family not in arguments.families):
            continue
        print(f"{datetime.now():%H:%M:%S}", family, member, flush=True)
        row = {"products": "", "sentence": ""} if parameters > LARGEST else tried(member)
        record["rows"][member] = {"family": family, "parameters": parameters, **row}
        write_json(arguments.output, record)
    write_atomic(arguments.page, page(record).encode())


def smallest_members() -> Iterator[tuple[str, str, int]]:
    """Family, its member with the fewest parameters, and how many."""
    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(_model_to_module[name].split(".")[-1], []).append(name)
    for family, members in sorted(families.items()):
        with torch.device("meta"):
            counts = {m: sum(p.numel() for p in timm.create_model(m, num_classes=0).parameters()) for m in members}
        smallest = min(counts, key=lambda member: counts[member])
        yield family, smallest, counts[smallest]


def tried(member: str) -> dict[str, Any]:
    """What becomes of a run with this backbone."""
    task = SimCLR()
    try:
        network = Network(build_backbone(member, 0, SIZE), task.head(probe_features(member, SIZE), 0))
        settings, sentence = usable(BilevelSettings(), Learner(task, network), task.views(SIZE))
    except UserError as error:
        return {"products": "refused", "sentence": str(error)}
    images = torch.randn(2, 3, SIZE, SIZE)
    at_once = mixing(network.train()) is None and keeps_apart(network, images)
    before = {name: buffer.clone() for name, buffer in network.backbone.named_buffers()}
    network.backbone(images)
    moved = {n.split(".")[-1] for n, buffer in network.backbone.named_buffers() if not torch.equal(buffer, before[n])}
    return {
        "products": settings.mode,
        "sentence": sentence,
        "sized": bool(options_for(member, SIZE)),
        "moves": sorted(moved),
        "at_once": at_once,
    }


def page(record: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines, notes = [], []
    counts = {"linearized": 0, "reverse": 0, "refused": 0, "": 0}
    for member, row in sorted(record["rows"].items(), key=lambda item: item[1]["family"]):
        counts[row["products"]] += 1
        cells = [row["family"], f"`{member}`", f"{row['parameters'] / 1e6:.1f}", row["products"] or "not tried"]
        if "moves" in row:
            moves = ", ".join(f"`{name}`" for name in row["moves"])
            cells += ["yes" if row["sized"] else "", moves, "at once" if row["at_once"] else "one by one"]
        else:
            cells += ["", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
        if row["sentence"]:
            notes.append(f"- `{member}`: {row['sentence']}")
    environment = record["environment"]
    told = (
        f"Of {sum(counts.values())} families {counts['linearized']} take `linearized`, {counts['reverse']} `reverse`, "
        f"{counts['refused']} are refused."
    )
    if counts[""]:
        told += f" {counts['']} with more than {LARGEST / 1e6:.0f} million parameters are not tried."
    return PAGE.format(
        date=environment["date"][:10],
        timm=environment["packages"]["timm"],
        torch=environment["packages"]["torch"],
        processor=environment["processor"],
        size=record["size"],
        counts=told,
        rows="\n".join(lines),
        notes="What the run says:\n\n" + "\n".join(notes),
    )


if __name__ == "__main__":
    main()
