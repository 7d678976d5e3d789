"""The page of a run, and runs compared."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pancseg.output.case_view import make_view
from pancseg.output.run_files import without_place
from tests.conftest import Command, scored_copy, smoke


@pytest.fixture(scope="module")
def scored(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run, with scores."""
    return scored_copy(trained, tmp_path_factory.mktemp("scored") / "run", "test")


class Page(HTMLParser):
    """What a page holds: its elements with attributes, and its words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_evaluate_writes_a_page_that_asks_for_nothing_outside_it(scored: Path) -> None:
    text = (scored / "report.html").read_text()
    for tag, attributes in Page(text).tags:
        for name in ("src", "href", "srcset", "action", "data"):
            address = attributes.get(name)
            assert address is None or address.startswith(("#", "data:")), (tag, address)
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text


def test_the_page_says_what_was_trained_on_what(scored: Path) -> None:
    words = " ".join(Page((scored / "report.html").read_text()).words.split())
    assert "PHANTOMS" in words
    assert "NOT HELD OUT" not in words
    assert "n = 2 held-out phantoms" in words
    summary = json.loads((scored / "summary.json").read_text())
    assert summary["data_fingerprint"][:16] in words
    assert f"{summary['parameters']:,} parameters" in words
    figures = json.loads((scored / "scores" / "test.json").read_text())
    assert f"{figures['recipe_metric']['mean']:.3f}" in words
    assert "python -m pancseg.train experiment=smoke" in words
    for row in csv.DictReader((scored / "scores" / "test.csv").read_text().splitlines()):
        assert row["case"] in words


def test_no_place_of_data_stands_in_the_page(scored: Path, prepared: Path) -> None:
    text = (scored / "report.html").read_text()
    assert str(prepared) not in text
    assert str(prepared.parent) not in text
    assert "data.root=..." in text
    assert without_place("+source.images=/a/b") == "source.images=..."


def test_patients_who_were_trained_on_are_announced_in_large_letters(
    scored: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    shutil.copytree(scored, run)
    best = run / "checkpoints" / "best.ckpt"
    assert command("evaluate", f"checkpoint={best}", "subset=train").code == 0
    page = Page((run / "report.html").read_text())
    banners = [a for tag, a in page.tags if tag == "p" and a.get("class") == "banner"]
    assert "NOT HELD OUT" in page.words
    assert len(banners) >= 2
    assert command("report", f"run={run}").code == 0
    assert "NOT HELD OUT" not in (run / "report.html").read_text()


def test_a_page_of_thirty_patients_stays_below_twenty_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hu = rng.normal(40, 25, (300, 300, 120)).astype(np.int16)  # as noisy as a thin CT
    x, y, z = np.meshgrid(*(np.arange(n) for n in hu.shape), indexing="ij")
    organ = ((x - 150) / 90) ** 2 + ((y - 150) / 40) ** 2 + ((z - 60) / 30) ** 2 < 1
    image = nib.Nifti1Image(hu, np.diag([-0.8, -0.8, 2.0, 1.0]))
    view = make_view(image, np.roll(organ, 4, 0), organ)
    assert max(view["shape"]) == 96
    assert 30 * len(json.dumps(view)) < 20e6


def unpacked(view: dict[str, object], name: str) -> np.ndarray:
    """The volume of a view, as the page's script takes it apart: (slice, row, column)."""
    import base64
    import io

    from PIL import Image

    data = base64.b64decode(str(view[name]).partition(",")[2])
    sheet = np.asarray(Image.open(io.BytesIO(data)))
    width, height, depth = view["shape"]  # type: ignore[misc]
    columns = int(str(view["columns"]))
    tiles = ((k // columns * height, k % columns * width) for k in range(depth))
    return np.stack([sheet[top : top + height, left : left + width] for top, left in tiles])


def test_a_view_shows_the_patients_right_on_the_left_and_the_front_above() -> None:
    hu = np.full((40, 40, 40), -100, np.int16)
    drawn = np.zeros(hu.shape, bool)
    drawn[10:30, 10:30, 10:30] = True
    marked = np.zeros(hu.shape, bool)
    marked[10:14, 26:30, 26:30] = True  # in LPS: right, at the back, at the head
    image = nib.Nifti1Image(hu, np.diag([-2.0, -2.0, 2.0, 1.0]))
    view = make_view(image, marked, drawn)
    kinds = np.rint(unpacked(view, "masks") / 85)
    assert set(np.unique(kinds)) == {0, 1, 3}
    z, y, x = (found.mean() for found in np.nonzero(kinds == 3))
    depth, height, width = kinds.shape
    assert x < width / 2
    assert y > height / 2
    assert z > depth / 2
    assert view["step_mm"] == 2.0
    np.testing.assert_allclose(unpacked(view, "image"), 60 / 400 * 255, atol=2)


def test_a_view_keeps_proportions_of_anisotropic_voxels() -> None:
    drawn = np.zeros((200, 200, 60), bool)
    drawn[60:140, 80:120, 20:40] = True  # 80 x 40 x 100 mm
    image = nib.Nifti1Image(np.zeros(drawn.shape, np.int16), np.diag([1.0, 1.0, 5.0, 1.0]))
    view = make_view(image, drawn, drawn)
    kinds = np.rint(unpacked(view, "masks") / 85)
    extent = [np.ptp(found) + 1 for found in np.nonzero(kinds == 3)]
    sizes_mm = np.array(extent) * view["step_mm"]
    np.testing.assert_allclose(sizes_mm, [100, 40, 80], atol=2 * view["step_mm"])


def test_a_case_without_any_mask_still_has_a_view() -> None:
    nothing = np.zeros((30, 30, 30), bool)
    image = nib.Nifti1Image(np.zeros(nothing.shape, np.int16), np.eye(4))
    assert not unpacked(make_view(image, nothing, nothing), "masks").any()


def test_a_run_beside_itself_has_no_difference(
    scored: Path, tmp_path: Path, command: Command
) -> None:
    ended = command("report", f"runs=[{scored},{scored}]", f"output={tmp_path / 'out'}")
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert {one["difference"] for one in found["comparisons"]} == {0}
    assert {one["p_holm"] for one in found["comparisons"]} == {1}
    assert found["warnings"] == []
    assert "Wilcoxon" in ended.out
    page = Page((tmp_path / "out" / "comparison.html").read_text())
    assert "PHANTOMS" in page.words
    rows = list(csv.reader((tmp_path / "out" / "comparison.csv").read_text().splitlines()))
    assert len(rows) == 1 + 2
    assert rows[0][0] == "patient"


def test_seeds_of_one_configuration_are_shown_as_spread(
    scored: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    runs = [str(scored)]
    again = ["seed=1", "data.pin_memory=false"]  # which changes no result
    for name, words in (("again", again), ("other", ["optimizer.lr=1e-2"])):
        run = tmp_path / name
        assert command("train", *smoke(prepared, run, *words)).code == 0
        assert command("evaluate", f"checkpoint={run / 'checkpoints' / 'best.ckpt'}").code == 0
        runs.append(str(run))
    ended = command("report", f"runs=[{','.join(runs)}]", f"output={tmp_path / 'out'}")
    assert ended.code == 0, ended.err
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    first, second = found["configurations"]
    assert (first["seeds"], second["seeds"]) == ([0, 1], [0])
    each = [
        json.loads((Path(r) / "scores" / "test.json").read_text())["dice"]["mean"] for r in runs
    ]
    assert first["dice"]["mean_of_each_seed"] == each[:2]
    assert first["dice"]["mean"] == pytest.approx(sum(each[:2]) / 2, abs=1e-6)
    assert {one["measure"] for one in found["comparisons"]} == {"dice", "nsd_2mm", "hd95_mm"}
    dice = found["comparisons"][0]
    assert dice["difference"] == pytest.approx(each[2] - sum(each[:2]) / 2, abs=1e-6)


def test_other_test_patients_are_refused_and_those_trained_on_counted(
    scored: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    mine = json.loads((scored / "splits.json").read_text())
    split = {
        "train": mine["test"] + mine["train"][1:],
        "val": mine["val"],
        "test": mine["train"][:1],
    }
    (tmp_path / "split.json").write_text(json.dumps(split))
    words = [word for word in smoke(prepared, tmp_path / "run") if not word.startswith("split.")]
    other = ["split=file", f"split.path={tmp_path / 'split.json'}"]
    assert command("train", *words, *other).code == 0
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert command("evaluate", f"checkpoint={best}").code == 0
    ended = command("report", f"runs=[{scored},{tmp_path / 'run'}]")
    assert ended.code == 2
    assert "were not scored on the same patients: 3 are in one of them only" in ended.err
    assert "3 of them one run was scored on and the other trained on" in ended.err


def test_patients_of_the_comparison_that_a_run_trained_on_are_warned_of(
    scored: Path, prepared: Path, tmp_path: Path, command: Command
) -> None:
    """A run that learnt from the other's test patients, and is scored on them by name."""
    cheat = tmp_path / "cheat"
    words = [word for word in smoke(prepared, cheat) if not word.startswith("split.")]
    assert command("train", *words, "split=same").code == 0
    tested = json.loads((scored / "splits.json").read_text())["test"]
    best = cheat / "checkpoints" / "best.ckpt"
    assert command("evaluate", f"checkpoint={best}").code == 0
    table = cheat / "scores" / "test.csv"
    lines = table.read_text().splitlines()
    kept = [lines[0], *(line for line in lines[1:] if line.split(",")[0] in tested)]
    table.write_text("\n".join(kept) + "\n")
    ended = command("report", f"runs=[{scored},{cheat}]", f"output={tmp_path / 'out'}")
    assert ended.code == 0, ended.err
    assert "trained on, or chose by, 2 of the patients" in ended.out
    words_of_page = Page((tmp_path / "out" / "comparison.html").read_text()).words
    assert "NOT HELD OUT" in words_of_page
    assert "trained on, or chose by, 2 of the patients" in words_of_page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give run=RUN, or sweep=SWEEP, or runs="),
        (["run=nowhere"], "run=nowhere: there is no such folder"),
        (["run=."], "is no folder of a run"),
        (["runs=[nowhere]"], "two or more are compared"),
    ],
)
def test_what_is_no_run_is_told(command: Command, words: list[str], said: str) -> None:
    ended = command("report", *words)
    assert ended.code == 2
    assert said in ended.err


def test_a_run_that_was_not_scored_says_what_to_type(scored: Path, command: Command) -> None:
    ended = command("report", f"run={scored}", "subset=val")
    assert ended.code == 2
    assert f"checkpoint={scored / 'checkpoints' / 'best.ckpt'} subset=val" in ended.err
