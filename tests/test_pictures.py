"""Pictures of cases, scans, samples and curves: slices, orientation, proportions, titles."""

import base64
import io
import json

import nibabel as nib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pancseg.reports import pictures
from pancseg.reports.charts import plot_curves
from pancseg.reports.pictures import draw_samples, make_view

GREEN, CUBE = (61, 220, 132), np.ones((2, 2, 2))
HOSTILE = "漢字 $^$ $x_1 \udcff\n\x1b[31m" + 200 * "x"


def test_a_sample_shows_its_largest_slice_with_the_patients_right_on_the_left(tmp_path):
    image, label = np.full((40, 40, 6), 0.5), np.zeros((40, 40, 6), np.uint8)
    label[30:36, 30:36, 4] = label[2:4, 2:4, 1] = 1  # the patient's right and front
    image[36:], image[..., 1] = 0.0, 1.0  # air at the right; the other slice is white
    for height_mm in (1.0, 0.5):
        draw_samples(tmp_path / "a.png", [image], [label], ["a"], "a", spacing_mm=(1, height_mm, 5))
        pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
        rows, columns = np.nonzero(np.abs(pixels - GREEN).max(axis=2) < 30)
        assert len(rows) > 20 and not (pixels > 250).all(axis=2).any()
        grey = np.nonzero((np.abs(pixels - 127) < 2).all(axis=2))
        width = (np.ptp(grey[1]) + 1) / 0.9  # of the picture, of whose columns a tenth is air
        assert grey[1].max() - columns.max() > 0.7 * width
        assert rows.max() - grey[0].min() < 0.3 * width
        assert np.ptp(rows) == pytest.approx(np.ptp(columns) * height_mm, abs=3)


def scan():
    mask = np.zeros((40, 30, 20), bool)
    mask[10:20, 10:20, 5:9] = True
    return nib.Nifti1Image(np.zeros(mask.shape, np.int16), np.diag([-1.0, -1.0, 2.0, 1.0])), mask


DRAW = {
    "case": lambda path: pictures.draw_case(path, *scan(), scan()[1], HOSTILE),
    "scan": lambda path: pictures.draw_scan(path, scan()[0], [scan()[1]], HOSTILE),
    "history": lambda path: pictures.draw_history(path, [], HOSTILE),
    "samples": lambda path: draw_samples(path, [CUBE], [CUBE], [HOSTILE], HOSTILE),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_any_title_is_drawn_as_text_and_equal_input_gives_equal_bytes(draw, tmp_path):
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_case_shows_the_middle_and_the_worst_slice(tmp_path, monkeypatch):
    image, reference = scan()
    prediction = reference.copy()
    prediction[10:13, 10:20, 8] = False  # 30 wrong voxels
    prediction[0, 0, 7] = True
    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda _, title, **__: titles.append(title))
    pictures.draw_case(tmp_path / "a.png", image, prediction, reference, "a")
    pictures.draw_case(tmp_path / "a.png", image, reference & False, reference & False, "a")
    slices = ["middle: slice 7 of 20, 1", "worst: slice 8 of 20, 30", "middle: slice 10 of 20, 0"]
    assert [title.removesuffix(" wrong voxels") for title in titles[:3]] == slices


@pytest.mark.parametrize("values", [[0.5], [0.7, 0.8, 0.82], [0.9, 0.2, 0.1]])
@pytest.mark.parametrize("name", ["loss", "dice"])
def test_curves_show_whole_epochs_and_the_best_within_the_frame(name, values):
    rows = [{"epoch": n, f"val/{name}": value} for n, value in enumerate(values, 1)]
    figure = Figure(layout="constrained")
    plot_curves(axes := figure.add_subplot(), rows, name)
    figure.savefig(io.BytesIO())
    assert axes.get_xlim() == (0.5, len(values) + 0.5)
    assert all(tick == round(tick) for tick in axes.get_xticks())
    best, value = axes.texts[0], max(values) if name == "dice" else min(values)
    assert best.get_text() == f"{value:.3f} at {values.index(value) + 1}"
    frame, box = axes.get_window_extent(), best.get_window_extent()
    marked = axes.transData.transform(best.xy)[1]
    assert box.y0 > marked if name == "dice" else box.y1 < marked  # clear of its curve
    assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1


def unpacked(view, name):
    """The volume of a view, as the script of the page reads it: (slice, row, column)."""
    data = base64.b64decode(view[name].partition(",")[2])
    width, height, depth = view["shape"]
    tiles = np.asarray(Image.open(io.BytesIO(data))).reshape(-1, height, view["columns"], width)
    return tiles.swapaxes(1, 2).reshape(-1, height, width)[:depth]


def test_a_view_shows_the_patients_right_on_the_left_the_front_above_and_proportions():
    hu = np.full((200, 200, 60), -100, np.int16)
    reference, predicted = np.zeros((2, *hu.shape), bool)
    reference[60:140, 80:120, 20:40] = True  # 80 x 40 x 100 mm
    predicted[60:76, 112:120, 36:40] = True  # in LPS: right, at the back, at the head
    image = nib.Nifti1Image(hu, np.diag([-1.0, -1.0, 5.0, 1.0]))
    view = make_view(image, predicted, reference)
    assert max(view["shape"]) == 96 and len(json.dumps(view)) < 700_000
    codes = np.rint(unpacked(view, "masks") / 85)
    assert set(np.unique(codes)) == {0, 1, 3}
    sizes_mm = np.array([np.ptp(index) + 1 for index in np.nonzero(codes)]) * view["step_mm"]
    np.testing.assert_allclose(sizes_mm, [100, 40, 80], atol=2 * view["step_mm"])
    z, y, x = (np.mean(index) for index in np.nonzero(codes == 3))
    depth, height, width = codes.shape
    assert x < width / 2 and y > height / 2 and z > depth / 2
    assert np.median(unpacked(view, "image")) == pytest.approx(60 / 400 * 255, abs=1)
    assert not unpacked(make_view(image, predicted & False, reference & False), "masks").any()
