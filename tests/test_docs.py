"""The documentation names what there is."""

import re

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from docs.site_parts import hooks
from pancseg.config import conf_folder, register_resolvers
from pancseg.inference.scan_batch import MASK_FLAGS
from pancseg.intake.checks import FLAGS
from pancseg.reports.tables import HEADINGS
from tests.documented import PAGES, ROOT, Typed, commands_of

CONF = conf_folder()
MADE = {ROOT / "docs" / name for name in (*hooks.BROUGHT, *hooks.MADE)}  # while the site is built
TYPED = sorted({typed for page in PAGES for typed in commands_of(page)})


def one_of_each(words: tuple[str, ...]) -> list[str]:
    """The overrides of a command; of a sweep its first job."""
    options = {"--cfg", "-c", "--info", "--config-dir"}
    given = [
        word
        for before, word in zip(("", *words), words, strict=False)
        if not word.startswith("-") and before not in options
    ]
    parsed = OverridesParser.create().parse_overrides(given)
    return [
        f"{one.get_key_element()}={next(iter(one.sweep_string_iterator()))}"
        if one.is_discrete_sweep()
        else str(one.input_line)
        for one in parsed
        if one.is_discrete_sweep() or not one.is_sweep_override()
    ]


@pytest.mark.parametrize("typed", TYPED, ids=lambda typed: " ".join((typed[0], *typed[1])))
def test_every_command_that_a_page_tells_to_type_composes(typed: Typed) -> None:
    name, words = typed
    if "--config-dir" in words:  # of the reader's own: without its choice
        words = tuple(word for word in words if not word.startswith("experiment="))
    assert (CONF / f"{name}.yaml").is_file(), f"python -m pancseg.{name} has no configuration"
    register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        hydra.compose(name, one_of_each(words), return_hydra_config=True)


def test_the_intake_page_explains_every_flag_and_no_other() -> None:
    page = (ROOT / "docs" / "intake.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)) == set(FLAGS)


def test_the_intake_page_names_sources_and_structures_that_there_are() -> None:
    page = (ROOT / "docs" / "intake.md").read_text()
    for group in ("source", "structures"):
        choices = {path.stem for path in (CONF / group).iterdir()}
        named = set(re.findall(rf"\b{group}=(\w+)", page))
        assert named and named <= choices, group


def test_links_of_the_documentation_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            there = (page.parent / link).resolve()
            assert there in MADE or there.exists(), f"{page.name}: {link}"


def test_the_page_of_predict_explains_every_flag_of_a_mask() -> None:
    page = (ROOT / "docs" / "predict.md").read_text()
    assert set(MASK_FLAGS) <= set(re.findall(r"`(\w+)`", page))


def test_the_page_of_scores_explains_every_column() -> None:
    page = (ROOT / "docs" / "scores.md").read_text()
    columns = {*HEADINGS, "nsd_1mm", "nsd_2mm", "nsd_3mm", "fold", "contrast", "status"}
    assert columns <= set(re.findall(r"`(\w+)`", page))


def test_what_the_page_of_security_claims_is_held_by_tests_that_there_are() -> None:
    page = (ROOT / "SECURITY.md").read_text()
    named = set(re.findall(r"`(test_\w+\.py)`", page))
    assert len(named) > 8
    assert named <= {path.name for path in (ROOT / "tests").iterdir()}


def test_the_page_of_refusals_names_codes_that_there_are() -> None:
    page = (ROOT / "docs" / "howto" / "refused_series.md").read_text()
    cells = re.findall(r"^\| (`.*?) \|", page, flags=re.MULTILINE)
    named = {code for cell in cells for code in re.findall(r"`(\w+)`", cell)}
    source = "".join(path.read_text() for path in (ROOT / "pancseg").rglob("*.py"))
    known = set(re.findall(r'"(\w+)(?=[":])', source))
    known |= {f"{what}_{kind}" for what in ("ambiguous", "no_such") for kind in ("segment", "roi")}
    assert len(named) > 20
    assert named <= known
