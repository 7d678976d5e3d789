"""Who the patient of a series is, also where an anonymiser took the name away."""

from pancseg.intake.dicom.headers import Series
from pancseg.intake.found import Candidate
from pancseg.intake.layouts.ties import Entry


def stand_ins(scans: list[Entry]) -> dict[Series, str]:
    """The patient of each series: a pattern's wildcards, PatientID, or a stable stand-in.

    Series of one study are of one patient, also where some or all of them are anonymous.
    """
    named = {one.study_uid: one.patient_id for scan in scans if (one := scan.series).patient_id}
    by_study: dict[str, str] = {}
    patients = {}
    for scan in scans:
        one = scan.series
        folder = one.folder.as_posix()
        own = scan.root.resolve().name if folder == "." else folder
        stand_in = by_study.setdefault(one.study_uid, own) if one.study_uid else own
        identity = one.patient_id or (named.get(one.study_uid) if one.study_uid else "")
        patients[one] = (scan.key if scan.names_patient else identity) or stand_in
    return patients


def study_of(scan: Entry) -> str:
    """What series of one patient have in common."""
    one = scan.series
    if scan.names_patient:
        return scan.key
    return one.patient_id or one.study_uid or one.folder.as_posix()


def one_for_all(candidates: list[Candidate]) -> str | None:
    """A warning where many folders carry one PatientID, as some anonymisers leave them."""
    folders, patients = {one.path for one in candidates}, {one.patient for one in candidates}
    if len(folders) < 3 or len(patients) > 1:
        return None
    return (
        f"all {len(folders)} scans carry one PatientID and count as one patient, so that no split "
        "can hold any of them out; if they are several, name them by their folders with patterns, "
        "such as source.images=DIR/*/CT source.labels=DIR/*/MASK"
    )
