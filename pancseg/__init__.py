"""Train, judge and apply pancreas segmentation on abdominal CT."""

from typing import Any

__version__ = "0.2.0"
__all__ = ["__version__", "load_segmenter", "run"]


def __getattr__(name: str) -> Any:
    """Import what needs torch, or Hydra, only once it is asked for."""
    if name == "load_segmenter":
        from pancseg.inference.predictor import load_segmenter

        return load_segmenter
    if name == "run":
        from pancseg.api import run

        return run
    raise AttributeError(f"module 'pancseg' has no attribute {name!r}")
