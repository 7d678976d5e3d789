"""The RTSTRUCT of a scan, or why there is none."""

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from pancseg.errors import Refused
from pancseg.intake.dicom.pixels import brief
from pancseg.intake.found import Scan
from pancseg.output.dicom_rtstruct import write_rtstruct

log = logging.getLogger(__name__)


def write_contours(path: Path, scan: Scan, mask: NDArray[np.bool_]) -> str:
    """Write a mask as an RTSTRUCT, if the scan is a DICOM series.

    Args:
        path: File to write, whole or not at all.
        scan: As read.
        mask: On the grid of its image.

    Returns:
        Why there is none of a series; mostly empty.
    """
    if scan.stack is None:
        return ""
    try:
        write_rtstruct(path, nib.Nifti1Image(mask.view(np.uint8), scan.image.affine), scan.stack)
    except Refused as refused:
        return str(refused)
    except Exception as error:  # headers go wrong in more ways than anybody knows
        log.debug("%s", path.name, exc_info=True)
        return f"rtstruct_failed: {type(error).__name__}: {brief(error)}"
    return ""
