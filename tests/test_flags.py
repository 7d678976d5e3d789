"""Flags: for each an input that raises it and a similar one that does not."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from pancseg.data.manifest import Case
from pancseg.errors import PancsegError, Refused
from pancseg.intake.checks import (
    FLAGS,
    Checks,
    check_image,
    cross_case_flags,
    sort_flags,
    voxel_flags,
)
from pancseg.structures import Structure
from tests.conftest import Command
from tests.tiny_dicom import write_series

SHAPE = (40, 40, 12)
SPACING_MM = (2.0, 2.0, 5.0)  # a voxel is 0.02 ml
PANCREAS = Structure("pancreas", None, "15776009", "organ", (15, 300), (1,))
WITH_TUMOUR = (
    Structure("pancreas", (1, 2), "15776009", "organ", (15, 300), (1, 2)),
    Structure("tumour", (2,), "108369006", "lesion", (0, 5), (2,)),
)


def body() -> np.ndarray:
    """Air around fat around muscle, some bone; enhancement grows towards the head; noise."""
    x, y, z = np.indices(SHAPE)
    radius = np.hypot(x - 19.5, y - 19.5)
    hu = np.where(radius < 18, -100, -1000)
    hu[radius < 15] = 50
    hu[(radius < 15) & (x < 8 + z)] = 240
    hu[18:21, 30:33] = 1200
    return (hu + np.random.default_rng(0).normal(0, 10, SHAPE)).astype(np.int16)


def organ() -> np.ndarray:
    """A block of 8 x 16 x 8 voxels, 20.48 ml, inside the body."""
    codes = np.zeros(SHAPE, np.uint8)
    codes[16:24, 12:28, 2:10] = 1
    return codes


def flags(
    hu: np.ndarray,
    codes: np.ndarray | None = None,
    structures: tuple[Structure, ...] = (PANCREAS,),
    **checks: Any,
) -> list[str]:
    return voxel_flags(hu, codes, SPACING_MM, Checks(**checks), structures)


def test_a_body_with_an_organ_has_no_flags() -> None:
    assert flags(body(), organ()) == []
    assert flags(body().astype(np.float32), organ()) == []
    assert flags(np.asfortranarray(body()), np.asfortranarray(organ())) == []


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        (lambda hu: hu + 1024, "hu_not_applied"),  # no intercept
        (lambda hu: (hu + 1000).clip(0), "hu_not_applied"),  # half of the air at exactly 0
        (lambda hu: ((hu + 1024.0) / 4095).astype(np.float32), "hu_not_applied"),
        (lambda hu: np.abs(hu) + 1, "hu_not_applied"),  # like MR
        (lambda hu: hu.clip(-200, 200), "hu_windowed"),
        (lambda hu: hu.clip(-1000, 300), "hu_windowed"),
        (lambda hu: hu.clip(-160, None), "hu_windowed"),
        (lambda hu: ((hu.clip(-160, 240) + 160) * 0.6375).astype(np.uint8), "hu_windowed"),
        (lambda hu: ((hu.clip(-160, 240) + 160) / 400).astype(np.float32), "hu_windowed"),
        (lambda hu: hu - 1024, "hu_implausible"),  # intercept applied twice
        (lambda hu: hu * 2, "hu_implausible"),
        (lambda hu: np.where(hu < -900, hu * 9, hu), "hu_implausible"),
        (lambda hu: np.where(hu > 1000, 60000, hu.astype(np.int32)), "hu_implausible"),
        (lambda hu: hu / 4.0 - 1000, "hu_implausible"),  # nothing but air
    ],
)
def test_values_that_are_not_hu_are_flagged(change: Any, flag: str) -> None:
    assert flags(change(body())) == [flag]


@pytest.mark.parametrize("padding", [-2000, -3024, -8192, -32768])
@pytest.mark.parametrize("radius", [18, 19])  # without and with a rim of air
def test_constant_padding_is_not_flagged_whatever_its_value(padding: int, radius: int) -> None:
    x, y, _ = np.indices(SHAPE)
    padded = np.where(np.hypot(x - 19.5, y - 19.5) > radius, padding, body()).astype(np.int16)
    assert flags(padded) == []
    padded[20, 20, 5] = -8000  # a voxel out of range that is not padding
    assert flags(padded) == ["hu_implausible"]


def test_metal_storage_limits_and_a_field_of_view_without_air_are_not_flagged() -> None:
    metal = body()
    metal[20, 20, 5:7] = 30000
    assert flags(metal) == []
    assert flags(body().clip(-1024, 3071)) == []
    assert flags(body()[4:36, 4:36]) == []


def test_an_image_of_a_few_voxels_is_not_judged() -> None:
    assert flags(np.zeros((4, 3, 5), np.int16)) == []


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (-1024, 0), (0.0, 1.0)])
def test_an_image_of_two_values_is_refused_as_a_mask(values: tuple[float, float]) -> None:
    mask = np.array(values)[np.indices((256, 256, 4))[0] % 2]
    with pytest.raises(Refused, match=f"looks_like_mask: .*values only, {values[0]:g} and "):
        check_image(mask)
    mask[17, 13, 3] += 1  # one voxel, not among the sampled
    check_image(mask)
    check_image(np.zeros(SHAPE, np.int16))


def test_a_mask_series_among_the_images_is_refused_and_the_scan_kept(
    tmp_path: Path, command: Command
) -> None:
    write_series(tmp_path / "in" / "ct")
    write_series(tmp_path / "in" / "mask", pixels=np.indices((5, 4, 3))[0] % 2)
    source = [f"source.images={tmp_path / 'in'}", "source.labels=null", "data.depth=2"]
    assert command("prepare", *source, f"data.root={tmp_path / 'root'}").code == 1
    table = (tmp_path / "root" / "intake.csv").read_text()
    assert table.count("image,refused,looks_like_mask") + table.count('"looks_like_mask') == 1
    assert table.count("image,kept") == 1


@pytest.mark.parametrize("first", [0, 1, 5, 9, 10])
def test_swapped_neighbours_are_flagged_at_every_position(first: int) -> None:
    order = np.arange(SHAPE[2])
    order[[first, first + 1]] = first + 1, first
    assert flags(body()[..., order]) == ["slice_order"]


def test_unusual_repeated_alternating_and_noisy_slices_are_in_order() -> None:
    noise = np.random.default_rng(1).normal(0, 60, SHAPE)
    for k in range(SHAPE[2]):
        unusual = body()
        unusual[..., k] = (unusual[..., k] + 5 * noise[..., k]).clip(-1500, 1500)
        assert flags(unusual) == []
    assert flags(body().repeat(2, axis=2)) == []
    assert flags((body() + noise).astype(np.int16)) == []
    alternating = body()
    alternating[..., ::2] += (noise[..., :1] / 2).astype(np.int16)
    assert flags(alternating) == []


def test_an_empty_label_has_no_other_flag() -> None:
    assert flags(body(), np.zeros(SHAPE, np.uint8)) == ["label_empty"]
    assert flags(body(), np.zeros(SHAPE, np.uint8), WITH_TUMOUR) == ["label_empty"]
    assert flags(body(), None) == []


def test_a_label_in_air_is_flagged_from_a_tenth_of_its_voxels() -> None:
    codes, hu = organ(), body()
    hu[16:24, 12:28, 2] = np.where(np.indices((8, 16))[1] < 12, -950, 50)  # 96 of 1024 voxels
    assert flags(hu, codes) == []
    hu[16:24, 12:28, 2] = -950  # 128
    assert flags(hu, codes) == ["label_outside_body"]


def test_air_beside_a_label_does_not_count() -> None:
    codes = organ()
    codes[24:, 20, 5] = 1  # to the edge of the scan: 2 of 1040 voxels in air, most of the box
    assert flags(body(), codes) == []


@pytest.mark.parametrize(
    ("volume_ml", "flagged"), [((20.4, 20.5), []), ((20.5, 300), True), ((1, 20.4), True)]
)
def test_volume_is_compared_in_ml(volume_ml: tuple[float, float], flagged: bool) -> None:
    expected = ["label_volume"] if flagged else []
    assert flags(body(), organ(), volume_ml=volume_ml) == expected
    structure = Structure("pancreas", None, "", "organ", volume_ml, (1,))
    assert flags(body(), organ(), (structure,)) == expected


def test_each_of_several_structures_has_its_own_volume_range() -> None:
    codes = organ()
    codes[16:20, 12:20, 2:9] = 2  # 224 voxels, 4.48 ml; the pancreas contains it
    assert flags(body(), codes, WITH_TUMOUR) == []
    codes[16:20, 12:20, 2:10] = 2  # 5.12 ml
    assert flags(body(), codes, WITH_TUMOUR) == ["label_volume:tumour"]
    codes[codes == 1] = 0
    found = flags(body(), codes, WITH_TUMOUR)
    assert found == ["label_volume:pancreas", "label_volume:tumour"]


def test_components_gaps_and_cuts_are_judged_on_organs_alone() -> None:
    codes = organ()
    codes[16:18, 12, [0, 4, 11]] = 2  # metastases in slices apart, on the first and on the last
    apart = (PANCREAS, WITH_TUMOUR[1])
    assert flags(body(), codes, apart) == []
    assert flags(body(), codes, WITH_TUMOUR) == ["label_cut", "label_gaps"]


def test_a_second_large_component_is_flagged() -> None:
    codes = organ()
    codes[26, 12:28, 2:8] = 1  # 96 of 1120 voxels
    assert flags(body(), codes) == []
    codes[26, 12:28, 2:10] = 1  # 128 of 1152
    assert flags(body(), codes) == ["label_pieces"]
    codes[25, 28, 5] = codes[24, 27, 5] = 1  # connected by corners
    assert flags(body(), codes) == []


@pytest.mark.parametrize(("k", "found"), [(0, ["label_cut"]), (1, []), (11, ["label_cut"])])
def test_a_label_on_the_first_or_last_slice_may_be_cut(k: int, found: list[str]) -> None:
    codes = organ()
    codes[16:24, 12:28, min(k, 2) : max(k, 9) + 1] = 1
    assert flags(body(), codes) == found


def test_an_empty_slice_inside_a_label_is_a_gap() -> None:
    codes = organ()
    codes[..., 9] = 0
    assert flags(body(), codes, volume_ml=(1, 300), piece_share=1) == []
    codes[..., 5] = 0
    assert flags(body(), codes, volume_ml=(1, 300), piece_share=1) == ["label_gaps"]


def test_several_flags_are_in_the_order_of_the_table() -> None:
    codes = np.zeros(SHAPE, np.uint8)
    codes[0:4, 0:4, 0] = 1
    assert flags(body() - 1024, codes) == [
        *("hu_implausible", "label_outside_body", "label_volume", "label_cut")
    ]
    assert sort_flags(reversed(FLAGS)) == list(FLAGS)


def test_checks_refuse_unknown_flags_and_reversed_ranges() -> None:
    assert Checks(refuse=("phantom", "unlabelled")).refuse == ("phantom", "unlabelled")
    with pytest.raises(PancsegError, match=r"names label_emty; flags are hu_not_applied, "):
        Checks(refuse=("label_cut", "label_emty"))
    for limits in ([300, 15], [15], 3 * [1]):
        with pytest.raises(PancsegError, match=r"checks.volume_ml=\[.*\]: expected two, the lower"):
            Checks(volume_ml=limits)


def test_phantoms_raise_no_flag(dicom: Path) -> None:
    paths = sorted((dicom / "truth").glob("*_image.nii.gz"))
    assert len(paths) == 6
    for path in paths:
        label = nib.load(str(path).replace("_image", "_label"))
        values = [np.asanyarray(nib.load(path).dataobj), np.asanyarray(label.dataobj)]
        spacing_mm = nib.affines.voxel_sizes(label.affine)
        assert voxel_flags(*values, spacing_mm, Checks(), (PANCREAS,)) == []


def test_real_ct_has_no_flags_and_mr_is_not_hu(shared_data: Path) -> None:
    ct = np.asanyarray(nib.load(shared_data / "abdomen/ct.nii.gz").dataobj)
    assert flags(ct) == []
    order = np.arange(ct.shape[2])
    order[[40, 41]] = 41, 40
    assert flags(ct[..., order]) == ["slice_order"]
    assert flags(stacked(shared_data / "abdomen/ct_dicom")) == []
    assert flags(stacked(shared_data / "seg/ct")) == []
    mr = np.asanyarray(nib.load(shared_data / "abdomen/mr.nii.gz").dataobj)
    assert flags(mr) == ["hu_not_applied"]


def stacked(folder: Path) -> np.ndarray:
    """HU of a series in order of position, by plain pydicom."""
    files = [pydicom.dcmread(file, force=True) for file in folder.iterdir()]
    files.sort(key=lambda file: float(file.ImagePositionPatient[2]))
    slices = [file.pixel_array.T * file.RescaleSlope + file.RescaleIntercept for file in files]
    return np.stack(slices, axis=2).astype(np.int16)


def case(name: str, **values: Any) -> Case:
    fields = {
        **{"patient": name, "image": "i", "label": "l", "shape": [4, 4, 4], "label_voxels": 3},
        **{
            "spacing_mm": [1.0, 1.0, 2.0],
            "structure_voxels": {},
            "input_hash": name,
            "input_state": "",
        },
        **{"image_sha256": "", "label_sha256": "", "phantom": False, "voxel_hash": name},
    }
    return Case(name=name, **{**fields, **values})


def test_cases_of_equal_voxels_are_duplicates_of_the_first() -> None:
    cases = [
        case("b", voxel_hash="x"),
        case("a", voxel_hash="x"),
        case("c"),
        case("d", voxel_hash=""),
    ]
    flags_of = {name: ["duplicate_pixels"] for name in "ab"}
    assert cross_case_flags(cases, 2.5) == ({"a": "b"}, flags_of)


@pytest.mark.parametrize("key", ["patient_id_hash", "study_hash"])
def test_two_names_of_a_person_are_flagged(key: str) -> None:
    cases = [case("visit1", **{key: "X"}), case("visit2", **{key: "X"}), case("z", **{key: "Z"})]
    assert cross_case_flags(cases, 2.5)[1] == {"visit1": ["two_names"], "visit2": ["two_names"]}


def test_a_spacing_far_from_the_median_of_five_cases_is_flagged() -> None:
    usual = [case(str(n)) for n in range(4)]
    thick = case("thick", spacing_mm=[1.0, 1.0, 6.0])
    assert cross_case_flags([*usual, thick], 2.5)[1] == {"thick": ["spacing_outlier"]}
    assert cross_case_flags([*usual, thick], 3.5)[1] == {}
    assert cross_case_flags([*usual[1:], thick], 2.5)[1] == {}
