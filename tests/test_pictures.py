"""Pictures of cases, scans, samples and curves: slices, orientation, proportions, titles."""

import base64
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import nibabel as nib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image

from pancseg.reports import pictures
from pancseg.reports.charts import as_svg, plot_boxes, plot_curves
from pancseg.reports.pictures import draw_samples, make_view

GREEN = (61, 220, 132)
HOSTILE = "漢字 $^$ $x_1 \udcff\n\x1b[31m" + 200 * "x"


def sheet(path: Path, images: list[Any], labels: list[Any], **more: Any) -> Any:
    """Pixels of a sheet of samples, and rows and columns of its outlines."""
    draw_samples(path, images, labels, [f"sample {n}" for n in range(len(images))], "run", **more)
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return pixels, *np.nonzero(np.abs(pixels - GREEN).max(axis=2) < 30)


def sample() -> tuple[Any, Any]:
    """Grey; the label at the patient's right and front, fullest in slice 4 of 6."""
    label = np.zeros((40, 40, 6), np.uint8)
    label[30:36, 30:36, 4] = 1
    label[2:4, 2:4, 1] = 1
    return np.full(label.shape, 0.5, np.float32), label


def test_a_sample_shows_its_largest_slice_with_the_patients_right_on_the_left(
    tmp_path: Path,
) -> None:
    image, label = sample()
    image[36:], image[..., 1] = 0.0, 1.0  # air at the right; the other slice is white
    pixels, rows, columns = sheet(tmp_path / "a.png", [image], [label])
    assert len(rows) > 20 and not (pixels > 250).all(axis=2).any()
    grey = np.nonzero((np.abs(pixels - 127) < 2).all(axis=2))
    width = (np.ptp(grey[1]) + 1) / 0.9  # of the picture, of whose columns a tenth is air
    assert grey[1].max() - columns.max() > 0.7 * width
    assert rows.max() - grey[0].min() < 0.3 * width
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=3)
    _, rows, columns = sheet(tmp_path / "b.png", [image], [label], spacing_mm=(2.0, 1.0, 5.0))
    assert np.ptp(rows) == pytest.approx(np.ptp(columns) / 2, abs=3)


def test_labels_of_several_values_have_an_outline_and_empty_or_full_ones_none(
    tmp_path: Path,
) -> None:
    image, label = sample()
    single, *_ = sheet(tmp_path / "a.png", [image], [label])
    label[33:, :, 4] *= 3
    np.testing.assert_array_equal(single, sheet(tmp_path / "b.png", [image], [label])[0])
    for value in (0, 1):
        assert not len(sheet(tmp_path / "c.png", [image], [np.full_like(label, value)])[1])


def test_sixteen_samples_fit_and_more_are_left_out(tmp_path: Path) -> None:
    image, label = sample()
    sheets = [sheet(tmp_path / "a.png", n * [image], n * [label])[0] for n in (0, 4, 5, 16, 17)]
    heights = [pixels.shape[0] for pixels in sheets]
    assert heights[0] > 100 and heights[1] < heights[2] < heights[3]
    np.testing.assert_array_equal(sheets[3], sheets[4])


def scan() -> tuple[nib.Nifti1Image, Any]:
    mask = np.zeros((40, 30, 20), bool)
    mask[10:20, 10:20, 5:9] = True
    return nib.Nifti1Image(np.zeros(mask.shape, np.int16), np.diag([-1.0, -1.0, 2.0, 1.0])), mask


DRAW: dict[str, Callable[[Path], None]] = {
    "case": lambda path: pictures.draw_case(path, *scan(), scan()[1], HOSTILE),
    "scan": lambda path: pictures.draw_scan(path, *scan(), HOSTILE),
    "history": lambda path: pictures.draw_history(path, [], HOSTILE),
    "samples": lambda path: draw_samples(path, *[[a] for a in sample()], [HOSTILE], HOSTILE),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_any_title_is_drawn_as_text_and_equal_input_gives_equal_bytes(
    draw: Callable[[Path], None], tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_case_shows_the_middle_and_the_worst_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, reference = scan()
    prediction = reference.copy()
    prediction[10:13, 10:20, 8] = False  # 30 wrong voxels
    prediction[0, 0, 7] = True
    titles: list[str] = []
    monkeypatch.setattr(Axes, "set_title", lambda _, title, **__: titles.append(title))
    pictures.draw_case(tmp_path / "a.png", image, prediction, reference, "a")
    assert titles == [
        "middle: slice 7 of 20, 1 wrong voxels",
        "worst: slice 8 of 20, 30 wrong voxels",
    ]
    pictures.draw_case(tmp_path / "a.png", image, reference & False, reference & False, "a")
    assert titles[2] == "middle: slice 10 of 20, 0 wrong voxels"


@pytest.mark.parametrize("dice", [[0.5], [0.7, 0.8, 0.82], [0.9, 0.2, 0.1], [0.1, 0.5, 1.0, 0.6]])
def test_curves_show_whole_epochs_and_the_best_within_the_frame(dice: list[float]) -> None:
    names = [f"{subset}/{name}" for subset in ("train", "val") for name in ("loss", "dice")]
    rows = [
        {"epoch": n, **{k: d if "dice" in k else 1 - d for k in names}}
        for n, d in enumerate(dice, 1)
    ]
    for name in ("loss", "dice"):
        figure = Figure(layout="constrained")
        axes = figure.add_subplot()
        plot_curves(axes, rows, name)
        figure.savefig(io.BytesIO())
        assert axes.get_xlim() == (0.5, len(dice) + 0.5)
        ticks = [tick for tick in axes.get_xticks() if 0.5 <= tick <= len(dice) + 0.5]
        assert ticks and all(tick == round(tick) for tick in ticks)
        (best,) = (text for text in axes.texts if isinstance(text, Annotation))
        value = max(dice) if name == "dice" else 1 - max(dice)
        assert best.get_text() == f"{value:.3f} at {dice.index(max(dice)) + 1}"
        frame, box = axes.get_window_extent(), best.get_window_extent()
        marked = axes.transData.transform(best.xy)[1]
        assert box.y0 > marked if name == "dice" else box.y1 < marked  # clear of its curve
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
        assert frame.y0 <= box.y0 and box.y1 <= frame.y1


def test_names_in_charts_are_text_without_mathematics() -> None:
    with warnings.catch_warnings(), mpl.rc_context():
        warnings.simplefilter("error")
        svg = as_svg("<$^$>", plot_boxes, {"$^$ <b> 漢": [0.5], "$x_1$": [0.7]})
    assert "$^$ &lt;b&gt; 漢" in svg and "$x_1$" in svg and 'aria-label="&lt;$^$&gt;"' in svg


def unpacked(view: dict[str, Any], name: str) -> Any:
    """The volume of a view, as the script of the page reads it: (slice, row, column)."""
    data = base64.b64decode(view[name].partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    width, height, depth = view["shape"]
    tiles = (divmod(k, view["columns"]) for k in range(depth))
    return np.stack(
        [pixels[i * height : (i + 1) * height, j * width : (j + 1) * width] for i, j in tiles]
    )


def test_a_view_shows_the_patients_right_on_the_left_and_the_front_above() -> None:
    hu = np.full((40, 40, 40), -100, np.int16)
    reference, predicted = np.zeros((2, *hu.shape), bool)
    reference[10:30, 10:30, 10:30] = True
    predicted[10:14, 26:30, 26:30] = True  # in LPS: right, at the back, at the head
    view = make_view(nib.Nifti1Image(hu, np.diag([-2.0, -2.0, 2.0, 1.0])), predicted, reference)
    kinds = np.rint(unpacked(view, "masks") / 85)
    assert set(np.unique(kinds)) == {0, 1, 3}
    z, y, x = (np.mean(found) for found in np.nonzero(kinds == 3))
    depth, height, width = kinds.shape
    assert x < width / 2 and y > height / 2 and z > depth / 2
    assert view["step_mm"] == 2.0
    np.testing.assert_allclose(unpacked(view, "image"), 60 / 400 * 255, atol=2)


def test_a_view_keeps_proportions_and_is_small() -> None:
    hu = np.random.default_rng(0).normal(40, 25, (200, 200, 60)).astype(np.int16)
    mask = np.zeros(hu.shape, bool)
    mask[60:140, 80:120, 20:40] = True  # 80 x 40 x 100 mm
    image = nib.Nifti1Image(hu, np.diag([1.0, 1.0, 5.0, 1.0]))
    view = make_view(image, mask, mask)
    assert max(view["shape"]) == 96
    assert 30 * len(json.dumps(view)) < 20e6  # a page of thirty patients
    extent = [np.ptp(found) + 1 for found in np.nonzero(unpacked(view, "masks") > 200)]
    sizes_mm = np.array(extent) * view["step_mm"]
    np.testing.assert_allclose(sizes_mm, [100, 40, 80], atol=2 * view["step_mm"])
    assert not unpacked(make_view(image, mask & False, mask & False), "masks").any()
