"""What every command imports, loaded once: the processes of the storms are forked from it.

Starting Python and torch takes seconds in which a kill shows nothing.
"""

import importlib

for _name in (
    "hydra._internal.hydra", "matplotlib.pyplot", "pytest.__main__", "scipy.stats",
    "torch.utils.tensorboard",
    "pancseg.data.datamodule", "pancseg.inference.evaluation", "pancseg.inference.scan_batch",
    "pancseg.intake.convert", "pancseg.evaluate", "pancseg.inference.checkpoint",
    "pancseg.intake.sources", "pancseg.inference.find_scans",
    "pancseg.reports.run_report", "pancseg.predict", "pancseg.prepare", "pancseg.report",
    "pancseg.train", "pancseg.training.setup", "pancseg.training.checkpoints",
    "pancseg.training.callbacks", "pancseg.training.tensorboard", "pancseg.training.summary",
):  # fmt: skip
    importlib.import_module(_name)
