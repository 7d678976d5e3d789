"""The documentation names what there is."""

import re
from pathlib import Path

from pancseg.applying.mask_flags import MASK_FLAGS
from pancseg.intake.checks.flags import FLAGS
from pancseg.output.score_words import TITLES

ROOT = Path(__file__).parent.parent


def test_the_intake_page_explains_every_flag_and_no_other() -> None:
    page = (ROOT / "docs" / "intake.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)) == set(FLAGS)


def test_the_intake_page_names_every_layout() -> None:
    page = (ROOT / "docs" / "intake.md").read_text()
    layouts = {path.stem for path in (ROOT / "conf" / "source").iterdir()}
    assert set(re.findall(r"source=(\w+)", page)) == layouts


def test_links_of_the_documentation_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_page_of_predict_explains_every_flag_of_a_mask() -> None:
    page = (ROOT / "docs" / "predict.md").read_text()
    assert set(MASK_FLAGS) <= set(re.findall(r"`(\w+)`", page))


def test_the_page_of_scores_explains_every_column() -> None:
    page = (ROOT / "docs" / "scores.md").read_text()
    columns = set(TITLES) - {"case"} | {"nsd_1mm", "nsd_2mm", "nsd_3mm"}
    assert columns <= set(re.findall(r"`(\w+)`", page))
