"""What is installed: versions, whether it imports, and the optional extras."""

import platform
from collections.abc import Iterator
from importlib import import_module, metadata

from packaging.requirements import Requirement

import pancseg
from pancseg.checkup.findings import BROKEN, OK, SLOW, Finding

IMPORTED = ("torch", "monai", "pytorch_lightning", "nibabel", "pydicom", "highdicom", "scipy")
TOLD = ("torch", "pytorch-lightning", "monai", "hydra-core", "numpy", "pydicom", "nibabel")
OF_MAINTAINERS = ("dev", "bench")


def versions() -> Finding:
    """Versions, and whether what is needed imports and is new enough."""
    there = {name: version for name in TOLD if (version := version_of(name))}
    facts = {"pancseg": pancseg.__version__, "python": platform.python_version(), **there}
    broken = [told for name in IMPORTED if (told := import_error(name))]
    wrong = list(unmet(""))
    words = ", ".join(f"{name} {version}" for name, version in facts.items())
    if broken or wrong:
        told = "; ".join([*broken, *wrong])
        mend = "pip install -c constraints.txt -e . puts it right"
        return Finding("versions", BROKEN if broken else SLOW, f"{told}; {mend}; {words}", facts)
    return Finding("versions", OK, words, facts)


def import_error(name: str) -> str:
    """Why a package does not import; empty where it does."""
    try:
        import_module(name)
    except Exception as error:  # a missing library of the system is an OSError
        told = " ".join(str(error).split())[:120]
        return f"{name} does not import ({type(error).__name__}: {told})"
    return ""


def extras() -> Finding:
    """Which optional parts are installed."""
    try:
        known = metadata.metadata("pancseg").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return Finding("extras", SLOW, "not known: pancseg is not installed; pip install -e .")
    lacking = {name: list(unmet(name)) for name in known if name not in OF_MAINTAINERS}
    words = [
        f"{name} ({', '.join(told)}; pip install pancseg[{name}])" if told else name
        for name, told in lacking.items()
    ]
    return Finding("extras", OK, "; ".join(words), {"lacking": lacking})


def unmet(extra: str) -> Iterator[str]:
    """What an extra asks for and is not there, or of another version.

    Args:
        extra: Its name; empty for what pancseg itself needs.
    """
    try:
        asked = metadata.requires("pancseg") or []
    except metadata.PackageNotFoundError:
        return
    for one in map(Requirement, asked):
        of_extra = one.marker is not None and "extra" in str(one.marker)
        wanted = one.marker is None or one.marker.evaluate({"extra": extra})
        if not wanted or of_extra != bool(extra) or one.name == "pancseg":
            continue
        found = version_of(one.name)
        if found is None:
            yield f"{one.name} is missing"
        elif not one.specifier.contains(found, prereleases=True):
            yield f"{one.name} is {found}, expected {one.specifier}"


def version_of(name: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
