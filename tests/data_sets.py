"""Data sets of phantoms in the forms that the documentation names."""

import json
import os
import shutil
from pathlib import Path

import nibabel as nib

from pancseg.dicom.series import Repair, read_series
from pancseg.dicom.writers import write_rtstruct
from tests.tiny_labels import structures

DESCRIPTIONS = {
    "nnunet": {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "pancreas": 1},
        "file_ending": ".nii.gz",
    },
    "msd": {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "pancreas", "2": "cancer"},
    },
}
LABELS = "TCIA_pancreas_labels-02-05-2017"


def lay_out(phantoms: Path, root: Path) -> None:
    """Write every data set below a folder, with links to the files of the phantoms."""
    names = sorted(path.name for path in (phantoms / "images").iterdir())
    for number, name in enumerate(names, start=1):
        images, masks = phantoms / "images" / name, phantoms / "labels" / name
        image, label = (phantoms / "truth" / f"{name}_{role}.nii.gz" for role in ("image", "label"))
        targets = {
            f"scans/images/{name}": images,
            f"masks/{name}.nii.gz": label,
            f"clinic/{name}/CT": images,
            f"clinic/{name}/MASK/pancreas": masks,
            f"nifti/images/{name}.nii.gz": image,
            f"nifti/labels/{name}.nii.gz": label,
            f"totalsegmentator/{name}/ct.nii.gz": image,
            f"totalsegmentator/{name}/segmentations/pancreas.nii.gz": label,
            f"nnUNet_raw/Dataset007_Pancreas/imagesTr/{name}_0000.nii.gz": image,
            f"nnUNet_raw/Dataset007_Pancreas/labelsTr/{name}.nii.gz": label,
            f"Task07_Pancreas/imagesTr/{name}.nii.gz": image,
            f"Task07_Pancreas/labelsTr/{name}.nii.gz": label,
            f"3Dircadb1/3Dircadb1.{number}/PATIENT_DICOM": images,
            f"3Dircadb1/3Dircadb1.{number}/MASKS_DICOM/pancreas": masks,
            f"Pancreas-CT/PANCREAS_{number:04}/study": images,
            f"{LABELS}/label{number:04}.nii.gz": label,
            f"contours/{name}/CT": images,
        }
        for name_there, target in targets.items():
            path = root / name_there
            path.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                shutil.copytree(target, path, copy_function=os.link)
            else:
                path.symlink_to(target)
        stack = read_series(tuple(sorted(images.iterdir())), Repair()).stack
        file = root / "contours" / name / "contours.dcm"
        write_rtstruct(file, nib.load(label), structures(), stack)
    for folder, kind in (("nnUNet_raw/Dataset007_Pancreas", "nnunet"), ("Task07_Pancreas", "msd")):
        (root / folder / "dataset.json").write_text(json.dumps(DESCRIPTIONS[kind]))
