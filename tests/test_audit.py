"""``make audit`` never says that all is well where nothing was looked up."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOUND = "Name Version ID Fix Versions\\ntorch 1.0 PYSEC-1 2.0"


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("echo No known vulnerabilities found", 0, "No known vulnerabilities found"),
        (f"printf '{FOUND}'; exit 1", 2, "PYSEC-1"),
        ("echo 'torch: Dependency not found on PyPI' >&2; exit 1", 2, "NOT AUDITED"),
        ("echo 'Failed to resolve' >&2; exit 1", 2, "NOT AUDITED"),
    ],
)
def test_an_audit_that_could_not_look_up_says_so(
    script: str, code: int, said: str, tmp_path: Path
) -> None:
    tool, stamp = tmp_path / "pip-audit", tmp_path / "stamp"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    stamp.touch()
    words = ["make", "-s", "-C", str(ROOT), "audit", f"BIN={tmp_path}", f"STAMP={stamp}"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == code
    assert said in ended.stdout + ended.stderr
    assert ("NOT AUDITED" in ended.stderr) == (said == "NOT AUDITED")
