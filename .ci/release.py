"""Make a release: ``make release VERSION=0.3.0``.

Checks the version and the working tree, writes the version to the package and the changelog, builds
wheel and sdist and checks their contents. Nothing is committed, tagged or uploaded; the last line
says how.
"""

import datetime
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
INIT, CHANGELOG = ROOT / "pancseg" / "__init__.py", ROOT / "CHANGELOG.md"
VERSION = re.compile(r'__version__ = "(.+)"')
IN_WHEEL = ("pancseg/train.py", "pancseg/conf/train.yaml", "pancseg/reports/page_parts/page.css")
IN_SDIST = ("pyproject.toml", "constraints.txt", "tests/conftest.py", "conf/train.yaml", "LICENSE")


def main() -> None:
    """Make the release, or exit with the reason in a line."""
    if len(sys.argv) != 2:
        sys.exit("release: give the version, as in make release VERSION=0.3.0")
    new, old = sys.argv[1], VERSION.findall(INIT.read_text(encoding="utf-8"))[0]
    check(new, old)
    name = f'__version__ = "{new}"'
    INIT.write_text(VERSION.sub(name, INIT.read_text(encoding="utf-8")), encoding="utf-8")
    heading = f"## Unreleased\n\n## {new} ({datetime.date.today().isoformat()})"
    text = CHANGELOG.read_text(encoding="utf-8").replace("## Unreleased", heading, 1)
    CHANGELOG.write_text(text, encoding="utf-8")
    build = [sys.executable, "-m", "build", "--installer", "pip", "--outdir", "dist"]
    subprocess.run(build, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    check_files(new)
    print(f"dist/ holds pancseg {new}; now: git commit -am 'Release {new}' && git tag v{new}")


def check(new: str, old: str) -> None:
    """Check that this can be the next version.

    Raises:
        SystemExit: With the reason.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+", new):
        sys.exit(f"release: VERSION={new} is not a semantic version such as 0.3.0")
    numbers, before = (tuple(map(int, text.split("."))) for text in (new, old))
    if numbers <= before:
        sys.exit(f"release: VERSION={new} does not come after {old}")
    if git("status", "--porcelain"):
        sys.exit("release: uncommitted changes; git status names them")
    if f"v{new}" in git("tag").split():
        sys.exit(f"release: the tag v{new} exists")
    unreleased = CHANGELOG.read_text(encoding="utf-8").partition("## Unreleased")[2]
    if not unreleased.partition("\n## ")[0].strip():
        sys.exit("release: CHANGELOG.md has no entry under Unreleased")


def git(*words: str) -> str:
    """Output of git."""
    done = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def check_files(version: str) -> None:
    """Check that wheel and sdist contain the expected files.

    Raises:
        SystemExit: With what is missing.
    """
    wheel = ROOT / "dist" / f"pancseg-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        metadata = file.read(f"pancseg-{version}.dist-info/METADATA").decode()
    with tarfile.open(ROOT / "dist" / f"pancseg-{version}.tar.gz") as file:
        packed = [name.partition("/")[2] for name in file.getnames()]
    missing = [name for name in IN_WHEEL if name not in names]
    missing += [name for name in IN_SDIST if name not in packed]
    if missing or f"Version: {version}" not in metadata:
        sys.exit(f"release: {wheel.name} or its sdist lacks {', '.join(missing) or 'its version'}")


if __name__ == "__main__":
    main()
