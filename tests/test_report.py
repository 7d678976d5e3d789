"""The page of scores, subgroups, and runs compared."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pancseg.reports.comparison import difference_table
from tests.conftest import Command, scored_copy
from tests.tiny_scores import score_row, write_run

HOSTILE = "[/x] $^$ \x1b[31m<b>"
FOUR = [score_row(f"p{n}", dice) for n, dice in enumerate((0.9, 0.5, 0.7, 0.8))]
MEASURES = "measures=[dice,volume_ml]"


class Page(HTMLParser):
    """Tags of a page with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())
        self.text = " ".join(self.text.split())
        self.banners = sum(attributes.get("class") == "banner" for _, attributes in self.tags)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def test_the_page_shows_the_scores_worst_first_and_the_training(
    tmp_path: Path, command: Command
) -> None:
    empty = score_row("p9", None)
    run = write_run(tmp_path / "run", [*FOUR, empty], flags={"p1": ["few_slices"]})
    (run / "metrics.csv").write_text("epoch,train/loss,val/loss,val/dice\n1,0.5,0.6,0.7\n")
    assert command("report", f"run={run}").code == 0
    page = Page(run / "report.html")
    low, high = json.loads((run / "scores" / "test.json").read_text())["dice"]["ci95"]
    headline = f"Dice 0.725 (95 % CI {low:.3f} to {high:.3f}), n = 4 held-out patients, HD95 5.0 mm"
    assert headline in page.text and not page.banners
    order = [page.text.index(f" p{n} 0.") for n in (1, 2, 3, 0)]
    assert order == sorted(order)
    for expected in (
        "1,234,567 parameters", "9 in 1,234 s; the best is 7", "f" * 16, "5 patients, 12 groups",
        "p1: few_slices", "an empty reference: p9", "calibration error 0.050", "0.700 at 1",
        "train experiment=strong data.root=...", "best.ckpt subset=test",
    ):  # fmt: skip
        assert expected in page.text
    assert "Miller" not in page.text  # in a path of the training's command


def test_the_page_requests_nothing_and_names_cannot_write_html(
    tmp_path: Path, command: Command
) -> None:
    name = '"><script>alert(1)</script>'
    run = write_run(tmp_path / "run", [score_row(name, 0.5)], flags={name: [HOSTILE]})
    assert command("report", f"run={run}").code == 0
    page = Page(run / "report.html")
    assert name in page.text and [tag for tag, _ in page.tags].count("script") == 1
    given = [a.get(key) or "#" for _, a in page.tags for key in ("src", "href", "srcset", "data")]
    assert all(address.startswith(("#", "data:")) for address in given)
    assert not re.search(r"url\((?!#)|@import", (run / "report.html").read_text())


@pytest.mark.parametrize(
    ("phantoms", "held_out", "headline", "banners"),
    [
        (True, True, "held-out phantoms", ["PHANTOMS"]),
        (False, False, "patients, NOT HELD OUT", ["NOT HELD OUT"]),
        (False, None, "patients, not known whether held out", ["NOT KNOWN"]),
    ],
)
def test_phantoms_and_patients_not_held_out_have_banners(
    phantoms: bool,
    held_out: bool | None,
    headline: str,
    banners: list[str],
    tmp_path: Path,
    command: Command,
) -> None:
    run = write_run(tmp_path / "run", FOUR, phantoms=phantoms, held_out=held_out)
    assert command("report", f"run={run}").code == 0
    page = Page(run / "report.html")
    assert f"n = 4 {headline}" in page.text
    assert page.banners == len(banners) and all(banner in page.text for banner in banners)


def test_each_subset_has_a_page_and_masks_of_other_tools_too(
    tmp_path: Path, command: Command
) -> None:
    run = write_run(tmp_path / "run", FOUR)
    write_run(run, FOUR[:2], "val", held_out=False)
    write_run(run, FOUR[:3], "external_site b")
    for subset in ("val", "external_site b"):
        assert command("report", f"run={run}", f"subset='{subset}'").code == 0
    assert not (run / "report.html").exists()
    assert "2 cases of 2 patients" in Page(run / "report_val.html").text
    assert "best.ckpt data.root=..." in Page(run / "report_external_site b.html").text
    other = write_run(tmp_path / "other", FOUR, "external", without_mask=["p1"])
    assert command("report", f"run={other}").code == 0
    text = Page(other / "report.html").text
    assert "nnunet: external" in text and "without mask 1: p1" in text


def test_subgroups_are_tertiles_of_numbers_and_values_of_text(
    tmp_path: Path, command: Command
) -> None:
    dice, mm = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9), (1.0, 1.25, 2.0, 2.5, 3.0, 5.0)
    makers = ("ge", "siemens", None, "ge", "siemens", "ge")
    rows = [
        score_row(f"p{n // 2}", d, case=f"c{n}", spacing_z_mm=z, manufacturer=m)
        for n, (d, z, m) in enumerate(zip(dice, mm, makers, strict=True))
    ]
    run = write_run(tmp_path / "run", [*rows, score_row("p9", None, case="c9")])

    def lines(column: str) -> list[list[str]]:
        ended = command("report", f"run={run}", f"by={column}")
        assert f"Scores by {column}" in Page(run / "report.html").text
        cells = [line.split("│")[1:-1] for line in ended.out.splitlines() if line.startswith("│")]
        return [[cell.strip() for cell in line][:4] for line in cells]

    # two cases of one patient, or of two: n counts patients
    assert lines("spacing_z_mm") == [
        ["1.00 to 1.25", "1", "0.200", "-"],
        ["2.00 to 2.50", "1", "0.600", "-"],
        ["3.00 to 5.00", "1", "0.850", "-"],
    ]
    assert lines("manufacturer") == [
        ["ge", "3", "0.567", "0.100 to 0.900"],
        ["siemens", "2", "0.550", "0.300 to 0.800"],
        ["-", "1", "0.500", "-"],
    ]
    assert "by=scanner: no such column" in command("report", f"run={run}", "by=scanner").err


def test_slices_are_read_from_their_folder_alone(tmp_path: Path, command: Command) -> None:
    run = tmp_path / "run"
    views, secret = run / "scores" / "test" / "views", tmp_path / "secret.json"
    names = ["good", "link", "../../../../secret", str(secret.with_suffix(""))]
    write_run(run, [score_row(name, 0.5) for name in names])
    views.mkdir(parents=True)
    for path in (secret, views / "good.json"):
        path.write_text(json.dumps({"image": f"view of {path.stem}"}))
    (views / "link.json").symlink_to(secret)
    assert command("report", f"run={run}").code == 0
    page = (run / "report.html").read_text()
    assert "view of good" in page and "view of secret" not in page
    views.rename(tmp_path / "views")
    views.symlink_to(tmp_path / "views")
    assert command("report", f"run={run}").code == 0
    assert "view of" not in (run / "report.html").read_text()


def test_hostile_names_are_printed_as_text(tmp_path: Path, command: Command) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    rows = [score_row(f"{HOSTILE}{n}", 0.5 + n / 10, contrast=HOSTILE) for n in range(3)]
    for folder in (run, other):
        write_run(folder, rows, held_out=False, train=(rows[0]["patient"],))
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({**summary, "name": HOSTILE}))
    for words in ([f"run={run}", "by=contrast"], [f"runs=[{run},{other}]", f"output={tmp_path}"]):
        ended = command("report", *words)
        assert ended.code == 0 and "\x1b[31m" not in ended.out + ended.err
        assert r"[/x] $^$ \x1b[31m<b>" in ended.out
    assert r"[/x] $^$ \x1b[31m<b> (2)" in Page(tmp_path / "comparison.html").text


def compared_in(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "comparison.json").read_text()))


def test_two_runs_are_compared_patient_by_patient(tmp_path: Path, command: Command) -> None:
    better = [score_row(row["patient"], row["dice"] + 0.05, hd95_mm=4.0) for row in FOUR]
    one, other = write_run(tmp_path / "a", FOUR), write_run(tmp_path / "b", better, phantoms=True)
    ended = command("report", f"runs=[{one},{other}]", f"output={tmp_path}")
    assert ended.code == 0 and "PHANTOMS, held out" in ended.out
    compared = compared_in(tmp_path)
    dice = compared["comparisons"][0]
    assert (dice["n"], dice["higher"], dice["lower"]) == (4, 4, 0)
    assert dice["difference"] == pytest.approx(0.05)
    assert dice["p"] == pytest.approx(2 / 2**4)  # all differ in one direction
    assert dice["p_holm"] == pytest.approx(3 * dice["p"])
    assert compared["warnings"] == [] and compared["held_out"] is True
    lines = difference_table(compared).rows
    assert [line[5:7] for line in lines] == [["4", "0"]] * 3 and lines[2][3] == "-1.0"  # fewer mm
    page = Page(tmp_path / "comparison.html")
    assert page.banners == 1 and "strong (2) minus strong (1)" in page.text
    rows = list(csv.reader((tmp_path / "comparison.csv").read_text().splitlines()))
    assert rows[0][:3] == ["patient", "dice strong (1)", "dice strong (2)"]
    assert rows[1][:3] == ["p0", "0.9", "0.95"] and len(rows) == 5


@pytest.mark.parametrize("runs", ["[run,other]", "[other,run]"])
def test_masks_of_another_tool_are_compared_on_the_patients_of_the_run(
    runs: str, command: Command
) -> None:
    more = [score_row(f"p{n}", 0.6) for n in range(9)]
    for folder, rows, subset in (("run", FOUR, "test"), ("other", more, "external")):
        write_run(Path(folder), rows, subset)
    ended = command("report", f"runs={runs}", "output=.", MEASURES)
    assert ended.code == 0 and "not known whether held out" in ended.out
    compared = compared_in(Path())
    assert compared["patients"] == ["p0", "p1", "p2", "p3"]
    means = {run["name"]: run["dice"]["mean"] for run in compared["runs"]}
    assert means == {"strong": pytest.approx(0.725), "nnunet": pytest.approx(0.6)}
    assert difference_table(compared).rows[1][5:7] == ["0 higher", "0 lower"]
    assert "NOT KNOWN WHETHER HELD OUT" in Page(Path("comparison.html")).text


def test_leaks_between_runs_are_refused_or_warned_of(tmp_path: Path, command: Command) -> None:
    one = write_run(tmp_path / "a", FOUR, train=("p7",))
    swapped = [*FOUR[:3], score_row("p7", 0.8)]
    other = write_run(tmp_path / "b", swapped, train=("p3",))
    ended = command("report", f"runs=[{one},{other}]")
    assert ended.code == 2 and "(p3, p7); 2 of them were scored in one run" in ended.err
    cheat = write_run(tmp_path / "c", FOUR, train=("p0", "p1"), held_out=False)
    ended = command("report", f"runs=[{one},{cheat}]", f"output={tmp_path}")
    text = Page(tmp_path / "comparison.html").text
    leak = "trained on, or was chosen by, 2 of the patients"
    assert ended.code == 0 and leak in ended.out and leak in text and "NOT HELD OUT" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give run=RUN, or sweep=SWEEP"),
        (["run=nowhere"], "no such folder"),
        (["run=empty"], "not the folder of a run"),
        (["runs=[nowhere]"], "expected two folders"),
        (["runs=[run,few]"], "1 are in one of them only (p0)"),
        (["runs=[run,few]", "measures=[volume]"], "run: its scores of test have no volume"),
        (["sweep=.", "by=fold"], "needs run=RUN"),
        (["run=run", "subset=val"], "evaluate checkpoint=run/checkpoints/best.ckpt subset=val"),
        (["run=damaged"], "test.json: is JSON, but not figures"),
        (["run=noise"], "metrics.csv: cannot be read"),
    ],
)
def test_folders_that_cannot_be_reported_are_refused_in_a_line(
    command: Command, words: list[str], message: str
) -> None:
    for name in ("run", "damaged", "noise"):
        write_run(Path(name), FOUR)
    write_run(Path("few"), FOUR[1:], "external")
    Path("empty").mkdir()
    Path("damaged", "scores", "test.json").write_text("{}")
    Path("noise", "metrics.csv").write_text("epoch,val/dice\n1,x\n")
    ended = command("report", *words)
    assert ended.code == 2 and message in ended.err


def test_evaluate_writes_a_page_a_subset(trained: Path, tmp_path: Path, command: Command) -> None:
    run = scored_copy(trained, tmp_path / "run", "test")
    text = Page(run / "report.html").text
    summary = json.loads((run / "summary.json").read_text())
    assert "n = 2 held-out phantoms" in text and f"{summary['parameters']:,} parameters" in text
    before = (run / "report.html").read_bytes()
    best = run / "checkpoints" / "best.ckpt"
    assert command("evaluate", f"checkpoint={best}", "subset=val").code == 0
    assert (run / "report.html").read_bytes() == before
    assert "NOT HELD OUT" in Page(run / "report_val.html").text
