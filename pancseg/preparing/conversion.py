"""One candidate becomes one case with its groups, or a row that says why not."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np

from pancseg.dataset.appearance import appearance
from pancseg.dataset.case_files import hash_of, picture_of, write_groups, write_pair
from pancseg.dataset.groups import Cutting
from pancseg.dataset.intake_table import Row
from pancseg.dataset.manifest import Case, Group
from pancseg.errors import Incomplete, PancsegError, Refused
from pancseg.geometry import oriented_like, spacing_of, voxel_ml
from pancseg.intake.checks.flags import Checks, flags_of, in_order
from pancseg.intake.checks.label_grid import grid_problem
from pancseg.intake.dicom.pixels import brief
from pancseg.intake.found import Candidate, Mask, Scan
from pancseg.output.thumbnails import thumbnail, write_thumbnail

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A candidate with all that is needed to convert it in another process.

    Attributes:
        candidate: What to read.
        case: Name of the case it becomes.
        patient: Pseudonym.
        origin: Keyed hash of what the candidate is known again by.
        source: Keyed hash of what it is read from and how: changed input is noticed by it.
        study: Keyed hash of its StudyInstanceUID, or empty.
        person: Keyed hash of its PatientID, or empty.
        settled: Whether it was a case before, and is converted anew.
        root: The prepared folder.
        cutting: How to cut.
        checks: What to flag and what to refuse.
    """

    candidate: Candidate
    case: str
    patient: str
    origin: str
    source: str
    study: str
    person: str
    settled: bool
    root: Path
    cutting: Cutting
    checks: Checks


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate.

    Attributes:
        origin: Keyed hash of what the candidate is known again by.
        name: Of the case it was to become.
        source: Keyed hash of what it was read from and how.
        rows: Its rows of the table: the image's, then the label's.
        case: The case, or None where it was refused.
        groups: The case's groups.
    """

    origin: str
    name: str
    source: str
    rows: list[Row]
    case: Case | None = None
    groups: list[Group] = field(default_factory=list)


def convert(job: Job) -> Outcome:
    """Read, check, cut and write one candidate; nothing in it can stop a batch.

    Raises:
        PancsegError: If the folder cannot be written, which is no candidate's fault.
    """
    try:
        scan = job.candidate.read_image()
        mask = read_mask(job.candidate, scan)
        label = None if mask is None else on_grid(mask, scan)
        flags = flags_found(job, scan, mask, label)
    except Refused as refused:
        return refusal(job, refused)
    except MemoryError:
        return refusal(job, Refused("too_large", "memory ran out while it was read"))
    except Exception as error:
        log.debug("%s", job.candidate.path, exc_info=True)
        return refusal(job, Refused("unreadable", f"{type(error).__name__}: {brief(error)}"))
    try:
        return write_case(job, scan, label, flags)
    except MemoryError:
        return refusal(job, Refused("too_large", "memory ran out while it was written"))
    except OSError as error:
        raise cannot_write(job.root, error) from error


def cannot_write(root: Path, error: OSError, kind: type[PancsegError] = Incomplete) -> PancsegError:
    """The error of a folder that is full or may not be written.

    Args:
        root: The folder.
        error: What the system said.
        kind: ``Incomplete`` once work was begun, which stays; else that it cannot start.
    """
    told = (
        f"{root}: cannot be written ({brief(error)}); mend that and run the same command again, "
        "it goes on where it was"
    )
    return kind(told)


def read_mask(candidate: Candidate, scan: Scan) -> Mask | None:
    """Read the label, if there is one.

    Raises:
        Refused: Saying that it is the label that is wrong: its reason stands in the image's row.
    """
    if candidate.read_label is None:
        return None
    try:
        return candidate.read_label(scan)
    except Refused as refused:
        raise Refused(refused.code, f"label: {str(refused).partition(': ')[2]}") from refused


def killed(job: Job) -> Outcome:
    """The outcome of a candidate whose process ended."""
    return refusal(
        job, Refused("reader_died", "its process was ended: a decoder crashed or memory ran out")
    )


def refusal(job: Job, refused: Refused) -> Outcome:
    """The rows of a refused candidate."""
    candidate = job.candidate
    rows = [Row(job.patient, "", str(candidate.path), "image", "refused", str(refused))]
    if candidate.label_path:
        reason = "image_refused: see the image's row"
        rows.append(Row(job.patient, "", str(candidate.label_path), "label", "refused", reason))
    return Outcome(job.origin, job.case, job.source, rows)


def on_grid(mask: Mask, scan: Scan) -> nib.Nifti1Image:
    """A mask with its axes as the image's, checked to lie on the image's grid.

    Raises:
        Refused: With what differs.
    """
    label = oriented_like(mask.image, scan.image)
    problem = grid_problem(scan.image, label)
    if problem is not None:
        raise problem
    return nib.Nifti1Image(np.asanyarray(label.dataobj), scan.image.affine)


def flags_found(
    job: Job, scan: Scan, mask: Mask | None, label: nib.Nifti1Image | None
) -> list[str]:
    """Everything that a person should look at, in the order of the list of flags.

    Raises:
        Refused: If one of them is to refuse.
    """
    hu = np.asanyarray(scan.image.dataobj)
    values = None if label is None else np.asanyarray(label.dataobj)
    flags = flags_of(hu, values, spacing_of(scan.image.affine), job.checks)
    flags += mask.flags if mask else ["unlabelled"]
    told = {
        "label_values": mask is not None and mask.undeclared,
        "repaired": scan.stack is not None and scan.stack.repairs,
        "phantom": job.candidate.is_phantom,
    }
    flags = in_order([*flags, *(flag for flag, is_so in told.items() if is_so)])
    refused = [flag for flag in flags if flag in job.checks.refuse]
    if refused:
        detail = f" ({', '.join(mask.undeclared)})" if mask and mask.undeclared else ""
        raise Refused(refused[0], f"flagged {' '.join(flags)}{detail}, and checks.refuse names it")
    return flags


def write_case(job: Job, scan: Scan, label: nib.Nifti1Image | None, flags: list[str]) -> Outcome:
    """Write a case, its groups and its picture."""
    image, candidate = scan.image, job.candidate
    mask = None if label is None else np.asanyarray(label.dataobj)
    voxels = None if mask is None else int(np.count_nonzero(mask))
    groups, empty, tail = write_groups(job.root, job.case, job.patient, job.cutting, image, label)
    files, sha256 = write_pair(job.root, f"cases/{job.case}", image, label)
    write_thumbnail(job.root / picture_of(job.case), thumbnail(image, mask))
    spacing_mm = [round(value, 6) for value in spacing_of(image.affine)]
    case = Case(
        job.case,
        job.patient,
        *files,
        shape=list(image.shape),
        spacing_mm=spacing_mm,
        label_voxels=voxels,
        origin=job.origin,
        source=job.source,
        sha256=sha256,
        phantom=candidate.is_phantom,
        pixels=hash_of(image),
        study=job.study,
        person=job.person,
        settled=job.settled,
        repairs=list(scan.stack.repairs) if scan.stack else [],
        appearance=appearance(image),
    )
    row = Row(job.patient, job.case, str(candidate.path), "image", "kept", flags=" ".join(flags))
    row.slices = image.shape[2]
    row.groups_kept, row.groups_empty, row.groups_tail = len(groups), empty, tail
    row.spacing_x_mm, row.spacing_y_mm, row.spacing_z_mm = spacing_mm
    rows = [row]
    if voxels is not None:
        row.label_voxels, row.label_ml = voxels, round(voxels * voxel_ml(image.affine), 3)
    if candidate.label_path:
        path = str(candidate.label_path)
        rows.append(Row(job.patient, job.case, path, "label", "kept", slices=row.slices))
    return Outcome(job.origin, job.case, job.source, rows, case, groups)
