"""Checks across a root: who is the same person, whose pixels are whose, who is far off."""

from pancseg.dataset.manifest import Case
from pancseg.dataset.whole_root import copies_of, root_flags, same_person


def case(name: str, **values: object) -> Case:
    numbers = {"shape": [4, 4, 4], "spacing_mm": [1.0, 1.0, 2.0], "label_voxels": 3}
    hashes = {"origin": name, "source": "", "sha256": "", "phantom": False, "pixels": name}
    fields = {**numbers, **hashes, "patient": name, **values}
    return Case(case=name, image="i", label="l", **fields)  # type: ignore[arg-type]


def test_who_shares_a_study_with_one_and_another_with_a_third_is_all_three() -> None:
    first = case("a", study="S1")
    second = [case("b", study="S1"), case("b-2", patient="b", study="S2")]
    third, other = case("c", study="S2"), case("d", study="S3")
    names = same_person([first, *second, third, other])
    assert names == {"a": "a", "b": "a", "c": "a", "d": "d"}


def test_one_patient_id_under_two_names_is_one_person() -> None:
    cases = [case("visit1", person="X"), case("visit2", person="X"), case("z", person="Z")]
    assert same_person(cases) == {"visit1": "visit1", "visit2": "visit1", "z": "z"}
    assert root_flags(cases, {}, 2.5) == {"visit1": ["two_names"], "visit2": ["two_names"]}


def test_a_study_that_everybody_shares_is_an_anonymisers() -> None:
    cases = [case(name, study="1.2.3", person="ANON") for name in "abc"]
    assert same_person(cases) == {"a": "a", "b": "b", "c": "c"}


def test_who_was_there_keeps_the_name_that_the_person_is_dealt_by() -> None:
    cases = [case("a", study="S1"), case("m", study="S1", settled=True), case("z")]
    assert same_person(cases) == {"a": "m", "m": "m", "z": "z"}


def test_copies_are_of_the_first_in_the_order_given() -> None:
    cases = [case("b", pixels="x"), case("a", pixels="x"), case("c"), case("d", pixels="")]
    assert copies_of(cases) == {"a": "b"}


def test_a_spacing_far_from_the_median_is_told_where_there_are_enough_cases() -> None:
    usual = [case(str(n)) for n in range(4)]
    odd = case("odd", spacing_mm=[1.0, 1.0, 6.0])
    assert root_flags([*usual, odd], {}, 2.5) == {"odd": ["spacing_outlier"]}
    assert root_flags([*usual[1:], odd], {}, 2.5) == {}
