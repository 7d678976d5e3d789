"""The sheet of training samples: slice, orientation, outlines, number of samples."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pancseg.output.outlines import largest_slice
from pancseg.output.sample_sheet import draw_samples

GREEN = (61, 220, 132)


def drawn(
    path: Path, images: list[np.ndarray], labels: list[np.ndarray], **more: object
) -> np.ndarray:
    titles = [f"sample {n}" for n in range(len(images))]
    draw_samples(path, images, labels, titles, "heading", **more)  # type: ignore[arg-type]
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def places(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the outline's colour."""
    return np.nonzero(np.abs(pixels - GREEN).max(axis=2) < 30)


def sample() -> tuple[np.ndarray, np.ndarray]:
    """Half grey; the label at the patient's right and front, fullest in slice 4."""
    label = np.zeros((40, 40, 6), np.uint8)
    label[30:36, 30:36, 4] = 1
    label[2:4, 2:4, 1] = 1
    return np.full(label.shape, 0.5, np.float32), label


def test_the_slice_of_largest_area_is_shown_patients_right_on_the_left(
    tmp_path: Path,
) -> None:
    image, label = sample()
    image[..., 1] = 1.0
    image[36:] = 0.0
    pixels = drawn(tmp_path / "a.png", [image], [label])
    rows, columns = places(pixels)
    side = pixels.shape[1] / 4
    assert len(rows) > 20
    assert side * 0.08 < columns.min() and columns.max() < side * 0.28
    grey = (pixels == 127).all(axis=2) | (pixels == 128).all(axis=2)
    top, left, right = np.nonzero(grey)[0].min(), *np.nonzero(grey)[1][[0, -1]]
    assert 0.1 * side < left < 0.15 * side and right > 0.95 * side
    assert rows.max() - top < 0.3 * side
    assert not (pixels > 250).all(axis=2).any()


def test_a_label_of_several_values_is_outlined_as_one(tmp_path: Path) -> None:
    image, label = sample()
    one = drawn(tmp_path / "a.png", [image], [label])
    label[33:, :, 4] *= 3
    np.testing.assert_array_equal(one, drawn(tmp_path / "b.png", [image], [label]))


@pytest.mark.parametrize("value", [0, 1])
def test_an_empty_or_full_label_has_no_outline_and_the_middle_slice(
    value: int, tmp_path: Path
) -> None:
    image, label = sample()
    pixels = drawn(tmp_path / "a.png", [image], [np.full_like(label, value)])
    assert not len(places(pixels)[0])
    assert largest_slice(np.zeros((3, 3, 8), bool)) == 4


def test_sixteen_samples_fit_and_more_are_left_out(tmp_path: Path) -> None:
    image, label = sample()
    sheets = [drawn(tmp_path / f"{n}.png", n * [image], n * [label]) for n in (4, 5, 16, 17)]
    heights = [sheet.shape[0] for sheet in sheets]
    assert heights[0] < heights[1] < heights[2] == heights[3]
    np.testing.assert_array_equal(sheets[2], sheets[3])
    titled = [(sheet != sheet[-1, -1]).any(axis=(1, 2)).sum() for sheet in sheets]
    assert titled[0] < titled[1] < titled[2]


def test_pixels_are_as_high_and_wide_as_they_are_in_mm(tmp_path: Path) -> None:
    image, label = sample()
    square = drawn(tmp_path / "a.png", [image], [label])
    rows, columns = places(square)
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=3)
    flat = drawn(tmp_path / "b.png", [image], [label], spacing_mm=(2.0, 1.0, 5.0))
    rows, columns = places(flat)
    assert np.ptp(rows) == pytest.approx(np.ptp(columns) / 2, abs=3)


def test_titles_of_any_characters_are_drawn_and_a_failure_leaves_no_file(tmp_path: Path) -> None:
    image, label = sample()
    draw_samples(tmp_path / "a.png", [image], [label], ["漢字 $x_1$ \udcff\n" + 90 * "x"], "$漢\n")
    with pytest.raises(ValueError, match="zip"):
        draw_samples(tmp_path / "b.png", [image], [label], [], "heading")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    before = (tmp_path / "a.png").read_bytes()
    draw_samples(tmp_path / "a.png", [image], [label], ["漢字 $x_1$ \udcff\n" + 90 * "x"], "$漢\n")
    assert (tmp_path / "a.png").read_bytes() == before


def test_no_samples_are_an_empty_sheet(tmp_path: Path) -> None:
    assert drawn(tmp_path / "a.png", [], []).shape[1] > 1000
