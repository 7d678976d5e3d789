"""What a layout found, in words short enough to compare."""

from pathlib import Path

from pancseg.intake.found import Found


def pairs(found: Found, images: Path, labels: Path) -> list[tuple[str, str]]:
    """Relative paths of each candidate's image and label."""
    return [
        (one.path.relative_to(images).as_posix(), one.label_path.relative_to(labels).as_posix())
        for one in found.candidates
        if one.label_path
    ]


def told(found: Found, status: str = "refused") -> list[tuple[str, str, str]]:
    """Name, kind and reason code of each stray of a status, sorted."""
    strays = [stray for stray in found.strays if stray.status == status]
    return sorted((one.path.name, one.kind, one.reason.split(":")[0]) for one in strays)


def patients(found: Found) -> list[str]:
    """The patient of each candidate."""
    return [one.patient for one in found.candidates]
