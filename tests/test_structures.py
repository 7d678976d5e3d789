"""Structures: parsed from a configuration, and encoded from values and names of labels."""

import numpy as np
import pytest

from pancseg.errors import PancsegError, Refused
from pancseg.structures import (
    encode_values,
    match_names,
    parse_structures,
    structures_from_manifest,
)
from tests.source_contents import ORGAN


def parse(labels=None, **nodes):
    return parse_structures({name: {**ORGAN, "labels": own} for name, own in nodes.items()}, labels)


IMPOSSIBLE = [
    ({}, None, "names no structure"),
    ({"Pancreas": [1]}, None, "small letters"),
    ({"pancreas": []}, None, "expected a list without 0"),
    ({"pancreas": None}, [0, 1], "expected a list without 0"),
    ({"pancreas": None, "tumour": [2]}, None, "structures.pancreas.labels"),
    ({"pancreas": [1, 2], "tumour": [2, 3]}, None, "share some labels"),
    ({"tumour": [2], "pancreas": [1, 2]}, None, "a part after its whole"),
    ({"pancreas": [1], "tumour": [2]}, [1], "structures.pancreas.labels= or"),
]


@pytest.mark.parametrize(("nodes", "labels", "message"), IMPOSSIBLE)
def test_structures_that_cannot_be_stored_are_refused_by_key(nodes, labels, message):
    with pytest.raises(PancsegError, match=message):
        parse(labels, **nodes)


def test_a_part_is_stored_with_a_code_of_its_own_and_belongs_to_its_whole():
    structures = parse(pancreas=["Pancreas", "tumour "], tumour=["Tumour"], duct=["duct"])
    assert [structure.values for structure in structures] == [(1, 2), (2,), (3,)]
    assert structures_from_manifest(s.to_dict() for s in structures) == structures


@pytest.mark.parametrize("factor", [1.0, 1.0000000002, 0.99999])
def test_values_near_whole_numbers_are_those_numbers_and_undeclared_values_are_named(factor):
    values, any_value = (
        np.array([0, 1, 2, 7], np.float32) * np.float32(factor),
        parse(pancreas=None),
    )
    codes, unknown_values = encode_values(values, parse(pancreas=[1, 2], tumour=[2]))
    assert (codes.tolist(), unknown_values) == ([0, 1, 2, 0], ())
    assert encode_values(values, any_value, declared=[1, 2, 7])[1] == ()
    assert encode_values(values, any_value, declared=[1])[1] == ("2", "7")
    assert encode_values(values, any_value)[1] == ("1", "2", "7")


def test_structures_are_matched_by_number_name_or_code_and_the_only_one_needs_no_choice():
    names = {1: ("Liver",), 2: ("Pancreas", "15776009"), 3: ("Duct",)}
    structures = parse(pancreas=["15776009", 3], duct=[" DUCT"], spleen=["Spleen"])
    assert match_names(names, structures, "segment") == [[2, 3], [3], []]
    assert match_names({7: ("Liver",)}, parse(pancreas=None), "segment") == [[7]]
    for chosen, code in ((None, "ambiguous_roi"), (["Spleen"], "no_such_roi")):
        with pytest.raises(Refused) as refused:
            match_names(names, parse(pancreas=chosen), "roi")
        assert (refused.value.code, refused.value.names[0]) == (code, "1 Liver")
