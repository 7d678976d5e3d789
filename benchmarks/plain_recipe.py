"""The recipe as a plain PyTorch and MONAI script: what pancseg's training is measured beside.

    python benchmarks/plain_recipe.py --prepared PREPARED --split splits.json --lr 1e-5 \
      --marks 90 240 600 --out FOLDER

One file, no Lightning, no Hydra, fp32. Its data are handled as they should be: whole patients held
out, reoriented before resampled, labels by nearest. At each mark, in seconds, the network's weights
are saved as they are then. The clock starts with the script: imports and building the cache count,
saving at a mark does not. A step that would end after a mark is taken after the saving.
"""

import time

BEGUN = time.perf_counter()  # before the heavy imports: they are part of what a user waits for

import argparse  # noqa: E402
import json  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import torch  # noqa: E402
from monai.data import CacheDataset, DataLoader  # noqa: E402
from monai.losses import DiceLoss  # noqa: E402
from monai.networks.nets import UNet  # noqa: E402
from monai.transforms import (  # noqa: E402
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    Resized,
    ScaleIntensityRanged,
    Spacingd,
    ToTensord,
)

KEYS = ("image", "label")
SPACING_MM, LOW_HU, HIGH_HU = (1.5, 1.5, 1.0), -200, 200
SIZE, CHANNELS = (128, 128, 64), (16, 32, 64, 128, 256)
TINY_SIZE, TINY_CHANNELS = (32, 32, 32), (4, 8, 8, 8, 8)  # for a trial of the script


def training_groups(prepared: Path, patients: Sequence[str]) -> list[dict[str, str]]:
    """Paths of image and label of every labelled group of some patients."""
    manifest = json.loads((prepared / "manifest.json").read_text())
    copies = {case["name"] for case in manifest["cases"] if case.get("duplicate_of")}
    groups = [
        {key: str(prepared / group[key]) for key in KEYS}
        for group in manifest["groups"]
        if group["patient"] in patients and group["label"] and group["case"] not in copies
    ]
    if not groups:
        raise SystemExit(f"{prepared}: no labelled group of the {len(patients)} training patients")
    return groups


def transforms(size: Sequence[int]) -> Compose:
    """The recipe's eight steps."""
    return Compose(
        [
            LoadImaged(KEYS, reader="NibabelReader"),
            EnsureChannelFirstd(KEYS),
            Orientationd(KEYS, axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd(KEYS, pixdim=SPACING_MM, mode=("bilinear", "nearest")),
            ScaleIntensityRanged(
                "image", a_min=LOW_HU, a_max=HIGH_HU, b_min=0.0, b_max=1.0, clip=True
            ),
            CropForegroundd(KEYS, source_key="image", allow_smaller=True),
            Resized(KEYS, spatial_size=size, mode=("trilinear", "nearest-exact")),
            ToTensord(KEYS, track_meta=False),
        ]
    )


def make_network(tiny: bool) -> UNet:
    """The recipe's network, or a small one to try the script."""
    return UNet(
        spatial_dims=3, in_channels=1, out_channels=2, strides=(2, 2, 2, 2), norm="batch",
        channels=TINY_CHANNELS if tiny else CHANNELS, num_res_units=0 if tiny else 2,
    )  # fmt: skip


def forever(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """Batches, epoch after epoch."""
    while True:
        yield from loader


def train(
    groups: list[dict[str, str]],
    lr: float,
    marks: Sequence[float],
    out: Path,
    threads: int,
    tiny: bool = False,
    begun: float | None = None,
) -> list[dict[str, Any]]:
    """Train, saving ``weights_<mark>.pt`` at each mark.

    Args:
        groups: Paths under ``image`` and ``label``.
        lr: Learning rate of Adam, constant.
        marks: Seconds after which to save.
        out: Folder.
        threads: That build the cache.
        tiny: A small network on small groups, for a trial.
        begun: Where the clock started, of ``time.perf_counter``; None is now.

    Returns:
        For each mark: seconds when its last step ended, steps, and the last step's loss.
    """
    begun = time.perf_counter() if begun is None else begun
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = TINY_SIZE if tiny else SIZE
    data = CacheDataset(groups, transforms(size), num_workers=threads, progress=False)
    batches = forever(DataLoader(data, batch_size=2, shuffle=True))
    network = make_network(tiny).to(device)
    loss_function = DiceLoss(to_onehot_y=True, sigmoid=True, squared_pred=True)
    optimizer = torch.optim.Adam(network.parameters(), lr, weight_decay=1e-5, amsgrad=True)
    network.train()
    rows: list[dict[str, Any]] = []
    saving, step_seconds, steps, loss_value = 0.0, 0.0, 0, None
    elapsed = time.perf_counter() - begun
    for mark in sorted(marks):
        while elapsed + step_seconds <= mark:
            batch = next(batches)
            optimizer.zero_grad()
            loss = loss_function(network(batch["image"].to(device)), batch["label"].to(device))
            loss.backward()
            optimizer.step()
            loss_value, steps = loss.item(), steps + 1  # .item() waits for the GPU
            step_seconds = time.perf_counter() - begun - saving - elapsed
            elapsed += step_seconds
        saved = time.perf_counter()
        torch.save(network.state_dict(), out / f"weights_{mark:g}.pt")
        row = {"mark": mark, "seconds": round(elapsed, 2), "steps": steps, "loss": loss_value}
        rows.append(row)
        print(row, flush=True)
        saving += time.perf_counter() - saved
    return rows


def main() -> None:
    """Read the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prepared", type=Path, required=True, help="prepared folder with groups")
    parser.add_argument("--split", type=Path, required=True, help="JSON with a list named train")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--marks", type=float, nargs="+", required=True, help="seconds")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a small network, to try the script")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(chosen.seed)
    chosen.out.mkdir(parents=True, exist_ok=True)
    groups = training_groups(chosen.prepared, json.loads(chosen.split.read_text())["train"])
    how = (chosen.lr, chosen.marks, chosen.out, chosen.threads, chosen.tiny, BEGUN)
    rows = train(groups, *how)
    (chosen.out / "marks.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
