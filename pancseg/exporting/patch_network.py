"""The network to export: a checkpoint that was trained on patches, as a network of MONAI."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pancseg.errors import PancsegError
from pancseg.inference.checkpoint import checkpoint_paths, open_checkpoint
from pancseg.inference.postprocessing import DEFAULT, Postprocess, read_postprocess
from pancseg.inference.trained_model import TrainedModel
from pancseg.models.factory import build
from pancseg.models.known_weights import AdaptedNetwork
from pancseg.models.resunet import ResUNet

DYNUNET = (
    "spatial_dims", "in_channels", "out_channels", "kernel_size", "strides",
    "upsample_kernel_size", "filters", "dropout", "norm_name", "act_name", "trans_bias",
)  # fmt: skip
AXIS_CODES = "(?=.*[LR])(?=.*[AP])(?=.*[IS])[LRAPIS]{3}"
PLAIN_JSON = r'(?!.*"_)[\w .,:+"{}\[\]-]*'  # without syntax of MONAI's configurations and HTML


@dataclass(frozen=True)
class PatchNetwork:
    """A network that was trained on patches."""

    trained: TrainedModel  # content of the checkpoint
    network: nn.Module  # of MONAI, computes the same, in evaluation mode
    definition: dict[str, Any]  # its _target_ and arguments
    postprocess: Postprocess
    patch_size: list[int]  # voxels
    activation: str  # sigmoid or softmax
    structure: str  # name

    @torch.no_grad()
    def difference(self, exported: Callable[[Tensor], Tensor]) -> float:
        """Largest difference of a logit to the checkpoint's, on a patch of random values."""
        image = torch.rand(1, 1, *self.patch_size, generator=torch.Generator().manual_seed(0))
        return float((exported(image) - self.trained.network(image)).abs().max())


def open_patch_network(given: Any) -> PatchNetwork:
    """Open the checkpoint to export; ``PancsegError`` if a bundle or ONNX cannot represent it."""
    paths = checkpoint_paths(Path(given)) if isinstance(given, str) else list(given)
    if len(paths) != 1:
        raise PancsegError(f"checkpoint={given}: gives {len(paths)} networks, expected one")
    trained = open_checkpoint(Path(paths[0]))
    if trained.depth is not None:
        raise PancsegError(
            f"checkpoint={trained.path}: was trained on groups of {trained.depth} slices, which "
            "neither a bundle nor ONNX can represent; train on patches (data=volume) to export"
        )
    is_light = trained.hparams["model"].get("light_decoder")
    unsupported = {
        "of several structures": len(trained.structures) > 1,
        "of model=pretrained": isinstance(trained.network, AdaptedNetwork),
        "of model.light_decoder=true (train with false)": is_light,
    }
    if kinds := [kind for kind, is_given in unsupported.items() if is_given]:
        raise PancsegError(f"checkpoint={trained.path}: a network {kinds[0]} cannot be exported")
    check_values(trained)
    hparams, structure = trained.hparams, trained.structures[0].name
    postprocess = read_postprocess(trained.path) or DEFAULT
    activation = "sigmoid" if hparams["loss"].get("sigmoid") else "softmax"
    patch_size = list(hparams["view"]["size"])
    return PatchNetwork(trained, *as_monai(trained), postprocess, patch_size, activation, structure)


def as_monai(trained: TrainedModel) -> tuple[nn.Module, dict[str, Any]]:
    """A network of MONAI that computes the same in evaluation, and its definition."""
    network = trained.network
    if not isinstance(network, ResUNet):
        return network, {"network_def": trained.hparams["model"]}
    target = {name: getattr(network, name) for name in DYNUNET}
    target |= {"_target_": "monai.networks.nets.DynUNet", "res_block": True}
    last = network.output_block
    if is_coarse := isinstance(last, nn.ConvTranspose3d):
        target["out_channels"] = last.in_channels
    dynunet: Any = build(target, nn.Module)
    state = network.state_dict()
    if is_coarse:
        state = {key: value for key, value in state.items() if not key.startswith("output_block")}
    # a DynUNet has each weight under two names, and here no heads of deep supervision
    dynunet.load_state_dict(state, strict=False)
    if not is_coarse:
        return dynunet.eval(), {"network_def": target}
    nn.init.dirac_(dynunet.output_block.conv.conv.weight)  # the identity
    nn.init.zeros_(dynunet.output_block.conv.conv.bias)
    names = ("in_channels", "out_channels", "kernel_size", "stride")
    head = {name: getattr(last, name) for name in names}
    definition = {
        "network_def": "$torch.nn.Sequential(@backbone, @head)",
        "backbone": target,
        "head": {"_target_": "torch.nn.ConvTranspose3d", **head},
    }
    return nn.Sequential(dynunet, last).eval(), definition


def check_values(trained: TrainedModel) -> None:
    """Refuse values that would be code in a bundle, or HTML in a model card."""
    hparams, numbers, split = trained.hparams, trained.preprocessing, trained.split
    arguments = {key: value for key, value in hparams["model"].items() if key != "_target_"}
    texts = [hparams["loss"]["_target_"], split.rule, trained.structures[0].name]
    written = json.dumps([arguments, texts, hparams["view"], numbers.spacing_mm, numbers.window_hu])
    checks = {
        "orientation": re.fullmatch(AXIS_CODES, numbers.orientation),
        "fingerprint": re.fullmatch("[0-9a-f]{8,64}", trained.fingerprint),
        "arguments": re.fullmatch(PLAIN_JSON, written, re.ASCII),
    }
    for name, is_safe in checks.items():
        if not is_safe:
            raise PancsegError(
                f"checkpoint={trained.path}: its {name} cannot be from pancseg.train"
            )
