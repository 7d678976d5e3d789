"""What is done to a scan before and after the network, as plain values."""

from typing import Any

from pancseg.data.transforms import AXES, Preprocessing
from pancseg.exporting.exportable import Exportable
from pancseg.geometry import AIR_HU

AXES_RULE = (
    "turned so that the last runs from feet to head, and turned back for the mask; axes that lean "
    "are first put at right angles by the nearest such affine (polar decomposition)"
)
GROUPS = (
    "slices are cut into groups that begin at 0, N, 2N, ...; where some are left the last group is "
    "moved back until it is whole; a scan shorter than N is one group, filled up with air after "
    "its last slice. Every step from orientation to grid is done to each group by itself, and "
    "where groups overlap the mean of their probabilities counts"
)
CROP = (
    "bounding box of the columns of voxels along the last axis that hold anything above 0; the "
    "last axis stays whole; where nothing is above 0, all stays"
)
GRID = (
    "probability and an image of ones are each resampled linearly, zeros outside, from the "
    "network's grid (its affine after all steps) to the scan's; where the ones give more than 0.5 "
    "the quotient is the probability, elsewhere it is 0"
)
WINDOWS = (
    "windows of a whole image; it is padded with 0 on both sides to one window at least, logits "
    "are summed with weights and divided by the sum of the weights, and the padding is cut off; an "
    "image of exactly one window is given to the network as it is; a window of nothing but 0 is "
    "not given to the network: its logits are 0 for background and -20 for pancreas"
)


def transforms_of(numbers: Preprocessing, inside_body: Any) -> list[dict[str, Any]]:
    """The steps before the network as components of MONAI.

    Args:
        numbers: Of the steps.
        inside_body: What names the function that :data:`CROP` describes.
    """
    low, high = numbers.window_hu
    steps: list[dict[str, Any]] = [
        component("Orientationd", axcodes=numbers.orientation, labels=[list(a) for a in AXES]),
        component("Spacingd", pixdim=list(numbers.spacing_mm), mode="bilinear"),
        component("ScaleIntensityRanged", a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True),
        component(
            "CropForegroundd",
            source_key="image",
            select_fn=inside_body,
            allow_smaller=True,
            start_coord_key=None,
            end_coord_key=None,
        ),
    ]
    if numbers.spatial_size:
        size = list(numbers.spatial_size)
        steps.append(component("Resized", spatial_size=size, mode="trilinear"))
    return [*steps, component("EnsureTyped", dtype="$torch.float32")]


def component(name: str, **arguments: Any) -> dict[str, Any]:
    """A transform of the item ``image``, as a bundle writes it.

    >>> component("Spacingd", mode="bilinear")
    {'_target_': 'monai.transforms.Spacingd', 'keys': 'image', 'mode': 'bilinear'}
    """
    return {"_target_": f"monai.transforms.{name}", "keys": "image", **arguments}


def describe_processing(net: Exportable) -> dict[str, Any]:
    """Everything between a scan's file and its mask, for those who write it themselves."""
    numbers, depth = net.trained.preprocessing, net.trained.depth
    low, high = numbers.window_hu
    size = numbers.spatial_size
    return {
        "input": "CT in Hounsfield units, three axes, with its affine to RAS millimetres",
        "axes": AXES_RULE,
        "groups": depth and {"slices": depth, "fill_hu": AIR_HU, "rule": GROUPS},
        "orientation": numbers.orientation,
        "spacing_mm": list(numbers.spacing_mm),
        "spacing_interpolation": {"mode": "bilinear", "padding_mode": "border"},
        "window_hu": {"becomes_0": low, "becomes_1": high, "clipped": True},
        "crop": CROP,
        "resize": size and {"voxels": list(size), "mode": "trilinear, align_corners=False"},
        "monai_transforms": transforms_of(numbers, "the function that crop describes"),
        "network": {
            "input": {"name": "image", "shape": ["batch", 1, *net.window], "dtype": "float32"},
            "output": {"name": "logits", "shape": ["batch", 2, *net.window], "dtype": "float32"},
            "channels": ["background", "pancreas"],
        },
        "windows": {
            "voxels": net.window,
            "overlap": net.overlap,
            "weights": "gaussian",
            "sigma": "0.125 of the window along each axis, as monai.data.compute_importance_map",
            "rule": WINDOWS,
        },
        "activation": {
            "name": net.activation,
            "rule": "sigmoid of channel 1 alone"
            if net.activation == "sigmoid"
            else "softmax over both channels, then channel 1",
        },
        "grid": GRID,
        "postprocess": {
            "threshold": net.how.threshold,
            "above": "strictly",
            "largest_component": net.how.largest_component,
            "connectivity": 26,
        },
    }
