"""nnU-Net v2 (Isensee et al. 2021): its U-Nets, and the content of its ``plans.json``.

The networks are PlainConvUNet and ResidualEncoderUNet of dynamic-network-architectures 0.4. Their
weights have the names of that library, without those that it stores twice.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from pancseg.errors import PancsegError, printable
from pancseg.models.resunet import LeakyReLU

MOST_STAGES, MOST_FEATURES = 16, 2048  # also convolutions or blocks of a stage
# arguments of nnU-Net's networks with those of NNUNet
NAMES = {
    "n_stages": "",
    "features_per_stage": "features",
    "kernel_sizes": "kernel_sizes",
    "strides": "strides",
    "n_conv_per_stage_decoder": "decoder_depths",
    "conv_bias": "conv_bias",
}
DEPTHS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
# and with the values that are built; classes by their last name
FIXED: dict[str, Any] = {
    "conv_op": "Conv3d",
    "norm_op": "InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}


def conv_norm(inputs: int, outputs: int, kernel: Any, stride: Any, bias: bool) -> nn.Sequential:
    """Convolution and instance norm."""
    padding: Any = [(side - 1) // 2 for side in kernel]
    conv = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=bias)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.InstanceNorm3d(outputs, affine=True)))


def conv_block(*arguments: Any) -> nn.Sequential:
    """Convolution, instance norm and leaky ReLU."""
    return conv_norm(*arguments).append(LeakyReLU())


class ResidualBlock(nn.Module):
    """Two convolutions and a skip connection with average pooling (ResNet-D, He et al. 2019)."""

    def __init__(self, inputs: int, outputs: int, kernel: Any, stride: Any, bias: bool) -> None:
        super().__init__()
        self.conv1 = conv_block(inputs, outputs, kernel, stride, bias)
        self.conv2 = conv_norm(outputs, outputs, kernel, 1, bias)
        self.skip = nn.Sequential()
        if any(step != 1 for step in stride):
            self.skip.append(nn.AvgPool3d(stride, stride))
        if inputs != outputs:
            self.skip.append(conv_norm(inputs, outputs, (1, 1, 1), 1, False))
        self.nonlin = LeakyReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Output ``(B, C, Z, Y, X)``."""
        return self.nonlin(self.conv2(self.conv1(features)) + self.skip(features))


def stack(
    block: Any, count: int, inputs: int, outputs: int, kernel: Any, stride: Any, bias: bool
) -> nn.Sequential:
    """Several blocks, the first with the stride."""
    blocks = [block(inputs, outputs, kernel, stride, bias)]
    blocks += [block(outputs, outputs, kernel, (1, 1, 1), bias) for _ in range(1, count)]
    name = "blocks" if block is ResidualBlock else "convs"
    return nn.Sequential(OrderedDict({name: nn.Sequential(*blocks)}))


class NNUNet(nn.Module):
    """PlainConvUNet, or ResidualEncoderUNet if ``residual``, on images ``(B, 1, Z, Y, X)``.

    Lists are of the stages from full resolution down, ``decoder_depths`` from the coarsest up.
    Depths count convolutions or residual blocks; ``deep_supervision`` counts coarser heads.
    """

    def __init__(
        self,
        features: Sequence[int],
        kernel_sizes: Sequence[Any],
        strides: Sequence[Any],
        encoder_depths: Sequence[int],
        decoder_depths: Sequence[int],
        in_channels: int = 1,
        out_channels: int = 2,
        residual: bool = False,
        conv_bias: bool = True,
        deep_supervision: int = 0,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.ModuleDict(), nn.ModuleDict()
        inputs = [features[0] if residual else in_channels, *features]
        stages = zip(encoder_depths, inputs, features, kernel_sizes, strides, strict=False)
        if residual:
            stem = (1, in_channels, features[0], kernel_sizes[0], 1)
            self.encoder["stem"] = stack(conv_block, *stem, conv_bias)
            encoded = [stack(ResidualBlock, *stage, conv_bias) for stage in stages]
        else:
            encoded = [nn.Sequential(stack(conv_block, *stage, conv_bias)) for stage in stages]
        self.encoder["stages"] = nn.Sequential(*encoded)
        upsamples, decoded, heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleDict()
        for number, depth in enumerate(decoder_depths):
            level = len(features) - 2 - number
            below, width, stride = features[level + 1], features[level], strides[level + 1]
            upsamples.append(nn.ConvTranspose3d(below, width, stride, stride, bias=conv_bias))
            stage = (depth, 2 * width, width, kernel_sizes[level], 1)
            decoded.append(stack(conv_block, *stage, conv_bias))
            if level <= deep_supervision:
                heads[str(number)] = nn.Conv3d(width, out_channels, 1)
        self.decoder.update({"transpconvs": upsamples, "stages": decoded, "seg_layers": heads})

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Logits ``(B, C, Z, Y, X)``; in training with deep supervision a list, fine to coarse."""
        encoder, decoder = cast(Any, self.encoder), cast(Any, self.decoder)
        features = encoder["stem"](image) if "stem" in encoder else image
        skips: list[Tensor] = []
        for stage in encoder["stages"]:
            features = stage(features)
            skips.append(features)
        logits: list[Tensor] = []
        stages = zip(decoder["transpconvs"], decoder["stages"], reversed(skips[:-1]), strict=True)
        for number, (upsample, stage, skip) in enumerate(stages):
            features = stage(torch.cat([upsample(features), skip], dim=1))
            if str(number) in decoder["seg_layers"]:
                logits.insert(0, decoder["seg_layers"][str(number)](features))
        return logits if self.training and len(logits) > 1 else logits[0]


@dataclass(frozen=True)
class NNUNetPlan:
    """A configuration of ``plans.json`` with ``dataset.json``; axes are those of the network."""

    dataset: str  # name
    model: dict[str, Any]  # ``_target_`` and arguments of the network
    axes: tuple[int, ...]  # axis of an image (x, y, z) for each of the network's
    spacing_mm: tuple[float, ...]
    patch_size: tuple[int, ...]
    window_hu: tuple[float, float]  # clipped to
    mean_hu: float  # subtracted
    sd_hu: float  # divided by
    labels: dict[str, Any]  # value of each label, or values of each region; without ``ignore``
    regions_order: tuple[int, ...]  # value in a mask of each region's channel; empty for labels
    orientation: str | None  # of the files, if dataset.json has this key; nnU-Net writes none


def read_plan(plans: dict[str, Any], dataset: dict[str, Any], configuration: str) -> NNUNetPlan:
    """Read one configuration of ``plans.json`` and ``dataset.json``.

    Raises:
        PancsegError: If it is for other data than CT, is a cascade, or has another network.
    """
    try:
        settings: dict[str, Any] = {}
        names = [configuration]
        for name in names:  # a configuration and those it inherits from
            settings = plans["configurations"][name] | settings
            parent = plans["configurations"][name].get("inherits_from")
            names += [parent] if parent and parent not in names else []
        schemes, channels = settings["normalization_schemes"], dataset["channel_names"]
        if len(settings["patch_size"]) != 3 or settings.get("previous_stage"):
            raise PancsegError(f"{configuration} of nnU-Net: expected 3d_fullres or 3d_lowres")
        if schemes != ["CTNormalization"] or len(channels) != 1:
            given = f"nnU-Net with {', '.join(schemes)} of {len(channels)} channels"
            raise PancsegError(f"{given}: expected CTNormalization of one")
        intensities = plans.get("foreground_intensity_properties_per_channel")
        statistics = (intensities or plans["foreground_intensity_properties_by_modality"])["0"]
        labels = {key: value for key, value in dataset["labels"].items() if key != "ignore"}
        has_regions = any(isinstance(value, list) and len(value) > 1 for value in labels.values())
        return NNUNetPlan(
            dataset=printable(str(plans["dataset_name"]))[:60],
            model=architecture_of(settings) | {"out_channels": len(labels) - has_regions},
            axes=tuple((2, 1, 0)[axis] for axis in plans["transpose_forward"]),
            spacing_mm=tuple(map(float, settings["spacing"])),
            patch_size=tuple(map(int, settings["patch_size"])),
            window_hu=(float(statistics["percentile_00_5"]), float(statistics["percentile_99_5"])),
            mean_hu=float(statistics["mean"]),
            sd_hu=max(float(statistics["std"]), 1e-8),
            labels=labels,
            regions_order=tuple(dataset["regions_class_order"]) if has_regions else (),
            orientation=dataset.get("orientation"),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise PancsegError(f"holds no plans of nnU-Net v2 for {configuration} ({reason})") from None


def architecture_of(settings: dict[str, Any]) -> dict[str, Any]:
    """``_target_`` and arguments of a configuration's network; early plans have other keys."""
    if "architecture" in settings:
        name = settings["architecture"]["network_class_name"].rpartition(".")[2]
        given = dict(settings["architecture"]["arch_kwargs"])
    else:
        name, depths = settings["UNet_class_name"], settings["n_conv_per_stage_encoder"]
        base, most = settings["UNet_base_num_features"], settings["unet_max_num_features"]
        given = {
            "features_per_stage": [min(base * 2**stage, most) for stage in range(len(depths))],
            "kernel_sizes": settings["conv_kernel_sizes"],
            "strides": settings["pool_op_kernel_sizes"],
            DEPTHS.get(name, ""): depths,
            "n_conv_per_stage_decoder": settings["n_conv_per_stage_decoder"],
            "conv_bias": True,
        }
    if name not in DEPTHS:
        raise PancsegError(f"nnU-Net with {name}: expected {' or '.join(DEPTHS)}")
    for key, value in given.items():
        value = value.rpartition(".")[2] if isinstance(value, str) else value
        if value != FIXED.get(key, value) or key not in {*FIXED, *NAMES, DEPTHS[name]}:
            given_value = printable(f"{key}={value}")[:60]
            raise PancsegError(f"{name} of nnU-Net with {given_value} is not supported")
    depth = max(map(int, [*given[DEPTHS[name]], *given["n_conv_per_stage_decoder"]]))
    if len(given["strides"]) > MOST_STAGES or max(given["features_per_stage"]) > MOST_FEATURES:
        depth = MOST_STAGES + 1
    if depth > MOST_STAGES:  # a few bytes could name a network larger than any memory
        raise PancsegError(f"{name} of nnU-Net is larger than any that it plans")
    arguments = {new: given[old] for old, new in NAMES.items() if new}
    target = f"{NNUNet.__module__}.{NNUNet.__qualname__}"
    depths = {"encoder_depths": given[DEPTHS[name]], "residual": name == "ResidualEncoderUNet"}
    return {"_target_": target, **arguments, **depths}
