"""The page of messages explains every message that the source can say, and no other."""

import ast
import re

import pytest

from tests.messages import (
    MISSING,
    PAGE,
    codes_of,
    codes_on,
    entries,
    errors_of,
    gathered,
    lacking,
    left_over,
    warnings_of,
)


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text()


def test_the_page_explains_every_message_of_the_source(page: str) -> None:
    missing = lacking(page)
    assert not missing, "python -m tests.messages prints for docs/errors.md:\n" + "\n".join(missing)


def test_the_page_explains_no_message_that_is_gone(page: str) -> None:
    assert left_over(page) == []


def test_every_message_has_a_cause_and_a_cure(page: str) -> None:
    for template, text in entries(page).items():
        found = re.fullmatch(r"\*\*Cause\.\*\* (.+[.!)]) \*\*Cure\.\*\* (.+[.`)])", text)
        assert found and MISSING not in text, template
    for code, row in codes_on(page).items():
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 2 and all(cells) and MISSING not in row, code


def test_a_new_message_of_any_kind_is_missed(page: str) -> None:
    tree = ast.parse(
        'def f(path):\n    raise PancsegError(f"{path}: is blue")\n'
        'def g():\n    raise Refused("is_blue", "blue")\n'
        'def h(n):\n    log.warning("%d are blue", n)\n'
        'def i():\n    found.warnings.append("something is blue")\n'
        "def j():\n    raise PancsegError(words)\n"
        'def k():\n    return Stray("blue_thing: is blue")\n'
    )
    assert list(errors_of(tree)) == ["<path>: is blue", "NOT FOLLOWED PancsegError(words)"]
    assert list(warnings_of(tree)) == ["<n> are blue", "something is blue"]
    assert list(codes_of(tree)) == ["is_blue", "blue_thing"]
    assert "blue" not in page


def test_a_message_taken_from_the_page_is_asked_for_ready_to_paste(page: str) -> None:
    without = re.sub(r"- `<root>: needs about.+\n(  .+\n)+", "", page).replace("| `no_rois` |", "")
    asked = lacking(without)
    assert len(asked) == 2
    assert asked[0].startswith("- `<root>: needs about <needed_gb> GB")
    assert asked[1].startswith("| `no_rois` | ")
    assert lacking(page + "".join(asked)) == []


def test_the_gathering_finds_what_other_tests_see_said() -> None:
    errors, codes = gathered(errors_of), gathered(codes_of)
    assert errors["checkpoint is not given; give RUN/checkpoints/best.ckpt"] == "evaluate.py"
    assert codes["gantry_tilt"] == "intake/dicom/stack.py"
    assert {"mixed_size", "mixed_spacing", "localizer", "test_image"} <= set(codes)
