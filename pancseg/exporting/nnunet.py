"""A prepared folder as a raw data set of nnU-Net v2, with the same patients in each subset.

https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
"""

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from pancseg.data.manifest import Case, read_manifest
from pancseg.data.splits import make_split, persons_of
from pancseg.errors import PancsegError
from pancseg.files import check_writable, replaced, write_json, write_nifti
from pancseg.parallel import progress
from pancseg.structures import IGNORED, Structure

log = logging.getLogger(__name__)
ENDING = ".nii.gz"
FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")


def write_nnunet(root: Path, options: dict[str, Any], output: Path) -> None:
    """Write cases, ``dataset.json`` and ``splits_final.json``; ``options`` are of ``make_split``.

    Training and validation patients are in ``imagesTr``, test patients in ``imagesTs``. Cases keep
    their names, by which ``evaluate predictions=`` finds the masks of nnU-Net.
    """
    name = output.resolve().name
    if not re.fullmatch(r"Dataset\d{3}_\w+", name):
        raise PancsegError(f"output={output}: expected a name such as Dataset501_Pancreas")
    manifest = read_manifest(root)
    if not manifest.complete:
        raise PancsegError(f"{root} is not complete; run the same pancseg.prepare again")
    persons = persons_of(manifest.cases)
    split = make_split(manifest.labelled_patients(), **options, persons=persons)
    train, val, test = map(manifest.cases_of, (split.train, split.val, split.test))
    training = {case.name: case for case in (*train, *val)}  # both have all with split=same
    cases = [("Tr", case) for case in training.values()] + [("Ts", case) for case in test]
    paths = (root / str(file) for _, case in cases for file in (case.image, case.label))
    if missing := next((path for path in paths if not path.is_file()), None):
        raise PancsegError(f"{missing}: no such file; run the same pancseg.prepare again")
    images = (nib.Nifti1Image.from_filename(root / case.image) for _, case in cases)
    orientations = {"".join(nib.aff2axcodes(image.affine)) for image in images}
    description = {
        "channel_names": {"0": "CT"},
        # nnU-Net reads files in their own axes, and has no key for them
        **({"orientation": orientations.pop()} if len(orientations) == 1 else {}),
        **labels_and_regions(manifest.structures, any(c.ignored_voxels for _, c in cases)),
        "numTraining": len(training),
        "file_ending": ENDING,
    }
    fold = {"train": [case.name for case in train], "val": [case.name for case in val]}
    check_writable(output.resolve().parent, "output")
    with replaced(output, folder=True) as folder:
        for target in FOLDERS:
            (folder / target).mkdir()
        for subset, case in progress(cases, "exporting", "case"):
            image = folder / f"images{subset}" / f"{case.name}_0000{ENDING}"
            shutil.copyfile(root / case.image, image)
            label = folder / f"labels{subset}" / f"{case.name}{ENDING}"
            write_label(root, case, label, ignored=len(manifest.structures) + 1)
        write_json(folder / "dataset.json", description)
        write_json(folder / "splits_final.json", [fold])
    text = (
        "%d training, %d validation, %d test cases; fold 0 is this split, once you copy\n%s to %s"
    )
    target = f"nnUNet_preprocessed/{name}/"
    log.info(text, len(train), len(val), len(test), output / "splits_final.json", target)


def labels_and_regions(structures: Sequence[Structure], has_ignored: bool) -> dict[str, Any]:
    """``labels``, and ``regions_class_order`` where structures contain others."""
    codes = list(range(1, len(structures) + 1))
    regions = {s.name: list(s.values) if len(s.values) > 1 else s.values[0] for s in structures}
    ignored = {"ignore": len(structures) + 1} if has_ignored else {}  # the largest value
    labels = {"labels": {"background": 0, **regions, **ignored}}
    has_regions = any(len(structure.values) > 1 for structure in structures)
    return labels | ({"regions_class_order": codes} if has_regions else {})  # later ones win


def write_label(root: Path, case: Case, path: Path, ignored: int) -> None:
    """Copy a label map; voxels that nobody labelled get the value ``ignored``."""
    source = root / str(case.label)
    if not case.ignored_voxels:
        shutil.copyfile(source, path)
        return
    label = nib.Nifti1Image.from_filename(source)
    codes = np.asanyarray(label.dataobj)
    codes = np.where(codes == IGNORED, ignored, codes).astype(np.uint8)
    write_nifti(path, nib.Nifti1Image(codes, label.affine))
