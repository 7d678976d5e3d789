"""Planning: which candidates are still to be converted, and the names that they will have."""

from pancseg.intake.found import Candidate
from pancseg.preparing.conversion import Job
from pancseg.preparing.preparation import Preparation


def plan(preparation: Preparation, candidates: list[Candidate]) -> list[Job]:
    """Jobs for what is not done yet.

    Names are dealt before anything is read, in the order of the source, so that they depend
    neither on which process is faster nor on where an earlier run was killed: the patient's
    name for the first case, with a number for each further one. Names that differ only in
    case are one on some file systems.
    """
    names = preparation.names
    taken = {case.case.casefold() for case in preparation.cases.values()}
    jobs: dict[str, Job] = {}
    for candidate in candidates:
        origin, patient = preparation.origin_of(candidate), names.of(candidate.patient)
        if origin in jobs:
            continue  # found twice
        known, source = preparation.cases.get(origin), source_of(preparation, candidate)
        case = known.case if known else free_name(patient, taken)
        taken.add(case.casefold())
        if is_done(preparation, candidate, origin, source):
            continue
        study, person = (
            names.hash(text) if text else "" for text in (candidate.study_uid, candidate.patient_id)
        )
        jobs[origin] = Job(
            candidate,
            case,
            patient,
            origin,
            source,
            study,
            person,
            known is not None and known.settled,
            preparation.root,
            preparation.cutting,
            preparation.checks,
        )
    return list(jobs.values())


def source_of(preparation: Preparation, candidate: Candidate) -> str:
    """What changes with a candidate and the way it is checked; empty if files are gone.

    Hash of names, sizes and times of its files, the label's place, and the checks.
    """
    parts = [str(candidate.label_path), repr(preparation.checks)]
    try:
        for file in candidate.files:
            status = file.stat()
            parts.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    except OSError:
        return ""
    return preparation.names.hash("\n".join(sorted(parts)))


def is_done(preparation: Preparation, candidate: Candidate, origin: str, source: str) -> bool:
    """Whether this very input is a case and all its files are there."""
    case = preparation.cases.get(origin)
    if case is None or not source or case.source != source:
        return False
    if (str(candidate.path), "image") not in preparation.rows:
        return False
    return all(path.is_file() for path in preparation.files_of(case))


def free_name(patient: str, taken: set[str]) -> str:
    """The patient's name, with the first number that is free if it is taken.

    >>> free_name("P7", {"p7"})
    'P7-2'
    """
    names = (patient if n == 1 else f"{patient}-{n}" for n in range(1, len(taken) + 2))
    return next(name for name in names if name.casefold() not in taken)
