"""Train, judge and apply pancreas segmentation on abdominal CT."""

__version__ = "0.1.0"
