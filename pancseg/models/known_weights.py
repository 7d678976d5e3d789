"""Weights that others published: their records, and a network around theirs."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import axcodes2ornt, ornt_transform
from torch import Tensor, nn

from pancseg.errors import PancsegError
from pancseg.files import read_json
from pancseg.models.factory import build
from pancseg.models.nnunet import NNUNetPlan, read_plan

TARGET = "pancseg.models.known_weights.AdaptedNetwork"


@dataclass(frozen=True)
class KnownWeights:
    """Published weights: their network, and the images that it was trained on."""

    name: str
    data: str
    publication: str
    licence: str
    model: dict[str, Any]  # ``_target_`` and arguments
    spacing_mm: tuple[float, ...]  # along the axes of ``orientation``
    window_hu: tuple[float, float]  # clipped to
    values: tuple[float, float]  # of the window's limits in the network's input
    names: dict[str, str | None]  # patterns and their replacements; None leaves a tensor out
    head: str  # pattern of the tensors that depend on the classes
    has_background: bool = True  # whether the classes exclude each other, background the first
    wrapper: str | None = None  # key of the weights in the file
    recognised_by: dict[str, tuple[int, ...]] = field(default_factory=dict)  # shapes of tensors
    orientation: str = "RAS"
    axes: tuple[int, ...] = (0, 1, 2)  # axis of an image of ``orientation`` for each of the input

    def __str__(self) -> str:
        return f"{self.name} ({self.publication}), trained on {self.data}; licence: {self.licence}"

    def rename(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights by the names of the network that ``model`` builds."""
        left_out = [pattern for pattern, new in self.names.items() if new is None]
        renamed = {}
        for name, tensor in weights.items():
            if not any(re.search(pattern, name) for pattern in left_out):
                for pattern, new in self.names.items():
                    name = re.sub(pattern, new or "", name)
                renamed[name] = tensor
        return renamed

    def adapt(self, orientation: str, window_hu: Sequence[float]) -> dict[str, Any]:
        """``_target_`` and arguments of a network for images of an orientation and a window."""
        transform = self.transform_from(orientation)
        low, high = window_hu
        clip = [(hu - low) / (high - low) for hu in self.window_hu]
        scale = (self.values[1] - self.values[0]) / (clip[1] - clip[0])
        order = np.argsort(transform[:, 0])
        return {
            "_target_": TARGET,
            "network": self.model,
            "out_channels": 2,
            "axes": [int(order[axis]) for axis in self.axes],
            "flips": [axis for axis in range(3) if transform[axis, 1] < 0],
            "clip": clip,
            "scale": scale,
            "shift": self.values[0] - scale * clip[0],
        }

    def transform_from(self, orientation: str) -> Any:
        """Nibabel's transform of an image to the orientation of the weights."""
        try:
            return ornt_transform(axcodes2ornt(orientation), axcodes2ornt(self.orientation))
        except (ValueError, TypeError) as error:
            raise PancsegError(f"model.orientation={self.orientation}: {error}") from error

    def differences(
        self, orientation: str, spacing_mm: Sequence[float], window_hu: Sequence[float]
    ) -> str:
        """The settings of the data by which these weights were trained, where others are given."""
        axes = self.transform_from(orientation)[:, 0].astype(int)
        own, (low, high), settings = [self.spacing_mm[axis] for axis in axes], self.window_hu, []
        if not np.allclose(own, spacing_mm, rtol=0.05):
            settings.append(f"data.spacing_mm={[round(mm, 3) for mm in own]}")
        if low < window_hu[0] - 1 or high > window_hu[1] + 1:  # HU; a wider window is clipped
            settings.append(f"data.window_hu={[round(low), round(high)]}")
        return " ".join(settings).replace(", ", ",")


class AdaptedNetwork(nn.Module):
    """A network that was trained on images of another orientation and other intensities.

    ``network`` are its ``_target_`` and arguments. Its input is the image, clipped, times ``scale``
    plus ``shift``, with the axes in ``flips`` reversed, and then in the order ``axes``.
    """

    def __init__(
        self,
        network: dict[str, Any],
        out_channels: int,
        axes: Sequence[int],
        flips: Sequence[int],
        clip: Sequence[float],
        scale: float,
        shift: float,
    ) -> None:
        super().__init__()
        self.network = build({**network, "out_channels": out_channels}, nn.Module)
        self.axes = [0, 1, *(2 + axis for axis in axes)]
        self.inverse = [self.axes.index(axis) for axis in range(5)]
        self.flips = [2 + axis for axis in flips]
        self.clip, self.scale, self.shift = tuple(clip), scale, shift

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits ``(B, C, H, W, D)`` of an image ``(B, 1, H, W, D)``, a list if the network's."""
        logits = self.network(self.prepare(image.clamp(*self.clip)))
        if isinstance(logits, Tensor):
            return self.restore(logits)
        return [self.restore(each) for each in logits]

    def prepare(self, image: Tensor) -> Tensor:
        """The input of the network, of a clipped image."""
        return (image * self.scale + self.shift).flip(self.flips).permute(self.axes)

    def restore(self, logits: Tensor) -> Tensor:
        """Logits on the grid of the image."""
        return logits.permute(self.inverse).flip(self.flips)


NETS = "monai.networks.nets"
IO = {"in_channels": 1, "out_channels": 2}
SEGRESNET = {"_target_": f"{NETS}.SegResNet", "spatial_dims": 3, **IO}
SEGRESNET |= {"blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1]}
SUPREM = KnownWeights(
    name="SuPreM SegResNet",
    data="2,100 CT of AbdomenAtlas",
    publication="Li et al. 2024, ICLR",
    licence="see huggingface.co/MrGiovanni/SuPreM",
    model={**SEGRESNET, "init_filters": 16},
    spacing_mm=(1.5, 1.5, 1.5),
    window_hu=(-175.0, 250.0),
    values=(0.0, 1.0),
    names={  # a head controlled by words is left out
        r"^module\.(precls_conv|GAP|controller|organ_embedding|text_to_vision)\b": None,
        r"^module\.(backbone\.)?": "",
    },
    head=r"^conv_final\.2\.",
    has_background=False,
    wrapper="net",
    recognised_by={"convInit.conv.weight": (16, 1, 3, 3, 3)},
)
SWIN_UNETR = replace(
    SUPREM,
    name="SuPreM Swin UNETR",
    model={"_target_": f"{NETS}.SwinUNETR", **IO, "feature_size": 48},
    head=r"^out\.",
    recognised_by={"swinViT.patch_embed.proj.weight": (48, 1, 2, 2, 2)},
)
WHOLE_BODY = KnownWeights(
    name="MONAI wholeBody_ct_segmentation",
    data="TotalSegmentator's CT (CC BY 4.0)",
    publication="MONAI model zoo; Wasserthal et al. 2023, Radiology: AI 5:e230024",
    licence="Apache-2.0",
    model={**SEGRESNET, "init_filters": 32, "dropout_prob": 0.2},
    spacing_mm=(1.5, 1.5, 1.5),
    window_hu=(-1024.0, 1500.0),  # in place of the range of each scan
    values=(-1.0, 1.0),
    names={r"^module\.": ""},
    head=r"^conv_final\.2\.",
    recognised_by={"conv_final.2.conv.weight": (105, 32, 1, 1, 1)},
)
RECORDS = (WHOLE_BODY, SUPREM, SWIN_UNETR)
# of nnU-Net, by a pattern of the data set's name: name, data, publication, licence
PUBLISHED = {
    r"^Dataset29[1-578]_TotalSegmentator": (
        ("TotalSegmentator v2", "1,559 CT", "Wasserthal et al. 2023, Radiology: AI 5:e230024"),
        "Apache-2.0",
    ),
    r"^Dataset55[1-9]_(Totalseg|GC|Brain|OAR|SAROS)25\d": (
        ("CADS", "22,022 CT", "Xu et al. 2025, arXiv 2507.22953"),
        "CC BY 4.0",
    ),
}


def find_record(path: Path, content: Mapping[str, Any], weights: Any) -> KnownWeights | None:
    """The record of weights in the content of a file; None if they are not known."""
    if "network_weights" in content and "init_args" in content:
        return nnunet_record(nnunet_plan(path, content["init_args"]))
    for record in RECORDS:
        shapes = {name: tuple(tensor.shape) for name, tensor in record.rename(weights).items()}
        is_wrapped = record.wrapper is None or record.wrapper in content
        if is_wrapped and shapes == {**shapes, **record.recognised_by}:
            return record
    return None


def nnunet_plan(path: Path, arguments: Mapping[str, Any]) -> NNUNetPlan:
    """The plan of a checkpoint of nnU-Net, by the files of its folder, else by itself."""
    files = {"plans": "plans.json", "dataset_json": "dataset.json"}
    plans, dataset = (
        read_json(file, "plans of nnU-Net")
        if (file := path.resolve().parent.parent / name).is_file()
        else arguments[key]
        for key, name in files.items()
    )
    return read_plan(plans, dataset, arguments["configuration"])


def nnunet_record(plan: NNUNetPlan) -> KnownWeights:
    """The record of weights of nnU-Net."""
    origin = ("nnU-Net v2", plan.dataset, "Isensee et al. 2021, Nature Methods 18:203")
    rows = (row for pattern, row in PUBLISHED.items() if re.search(pattern, plan.dataset))
    (name, data, publication), licence = next(rows, (origin, "see the publisher of the weights"))
    low, high = ((hu - plan.mean_hu) / plan.sd_hu for hu in plan.window_hu)
    return KnownWeights(
        name=name,
        data=data,
        publication=publication,
        licence=licence,
        model=plan.model,
        spacing_mm=tuple(plan.spacing_mm[plan.axes.index(axis)] for axis in range(3)),
        window_hu=plan.window_hu,
        values=(low, high),
        names={r"^decoder\.encoder\.|\.all_modules\.": None},  # second names
        head=r"^decoder\.seg_layers\.",
        has_background=not plan.regions_order,
        orientation=plan.orientation or "RAS",
        axes=plan.axes,
    )
