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


class Page(HTMLParser):
    """Tags of a page with their attributes, its banners and its text."""

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


def test_the_page_shows_the_scores_and_the_training(tmp_path: Path, command: Command) -> None:
    empty = score_row("p9", None)
    run = write_run(tmp_path / "run", [*FOUR, empty], flags={"p1": ["few_slices"]})
    (run / "metrics.csv").write_text("epoch,train/loss,val/loss,val/dice\n1,0.5,0.6,0.7\n")
    assert command("report", f"run={run}").code == 0
    text = Page(run / "report.html").text
    low, high = json.loads((run / "scores" / "test.json").read_text())["dice"]["ci95"]
    assert f"Dice 0.725 (95 % CI {low:.3f} to {high:.3f}), n = 4 held-out patients" in text
    order = [text.index(f" p{n} 0.") for n in (1, 2, 3, 0)]
    assert order == sorted(order)
    for expected in (
        "1,234,567 parameters", "9 in 1,234 s; the best is 7", "f" * 16, "5 patients, 12 groups",
        "1 cases: p1: few_slices", "an empty reference: p9", "test: 5 cases of 4 patients",
        "expected calibration error 0.050", "0.700 at 1",
        "python -m pancseg.train experiment=strong data.root=...",
        "checkpoint=RUN/checkpoints/best.ckpt subset=test",
    ):  # fmt: skip
        assert expected in text
    assert "Miller" not in text
    assert not Page(run / "report.html").banners


def test_the_page_requests_nothing_and_names_cannot_write_html(
    tmp_path: Path, command: Command
) -> None:
    name = '"><script>alert(1)</script>'
    write_run(tmp_path / "run", [score_row(name, 0.5)], flags={name: [HOSTILE]})
    assert command("report", f"run={tmp_path / 'run'}").code == 0
    page = Page(tmp_path / "run" / "report.html")
    assert name in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    for tag, attributes in page.tags:
        for key in ("src", "href", "srcset", "action", "data"):
            address = attributes.get(key) or "#"
            assert address.startswith(("#", "data:")), (tag, address)
    assert not re.search(r"url\((?!#)|@import", (tmp_path / "run" / "report.html").read_text())


@pytest.mark.parametrize(
    ("phantoms", "held_out", "kind"),
    [
        (True, True, "n = 4 held-out phantoms"),
        (False, False, "n = 4 patients, NOT HELD OUT"),
        (False, None, "n = 4 patients, not known whether held out"),
    ],
)
def test_phantoms_and_patients_not_held_out_have_banners(
    phantoms: bool, held_out: bool | None, kind: str, tmp_path: Path, command: Command
) -> None:
    run = write_run(tmp_path / "run", FOUR, phantoms=phantoms, held_out=held_out)
    assert command("report", f"run={run}").code == 0
    page = Page(run / "report.html")
    assert page.banners == phantoms + (held_out is not True)
    assert kind in page.text
    assert ("PHANTOMS" in page.text) == phantoms
    assert ("NOT HELD OUT" in page.text) == (held_out is False)


def test_each_subset_has_a_page_and_masks_of_other_tools_too(
    tmp_path: Path, command: Command
) -> None:
    run = write_run(tmp_path / "run", FOUR)
    write_run(run, FOUR[:2], "val", held_out=False)
    write_run(run, FOUR[:3], "external_site b")
    assert command("report", f"run={run}").code == 0
    before = (run / "report.html").read_bytes()
    for subset in ("val", "external_site b"):
        assert command("report", f"run={run}", f"subset='{subset}'").code == 0
    assert (run / "report.html").read_bytes() == before
    assert "2 cases of 2 patients" in Page(run / "report_val.html").text
    assert "evaluate checkpoint=RUN/checkpoints/best.ckpt data.root=..." in (
        Page(run / "report_external_site b.html").text
    )
    other = write_run(tmp_path / "other", FOUR, "external", without_mask=["p1"])
    assert command("report", f"run={other}").code == 0
    text = Page(other / "report.html").text
    assert "nnunet: external" in text and "NOT KNOWN WHETHER HELD OUT" in text
    assert "without mask 1: p1" in text and "Recipe's metric" not in text


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
        assert ended.code == 0, ended.err
        assert f"Scores by {column}" in Page(run / "report.html").text
        cells = [line.split("│")[1:-1] for line in ended.out.splitlines() if line.startswith("│")]
        return [[cell.strip() for cell in line][:5] for line in cells]

    # two cases of one patient, or of two: n counts patients
    assert lines("spacing_z_mm") == [
        ["1.00 to 1.25", "1", "0.200", "-", "0.200"],
        ["2.00 to 2.50", "1", "0.600", "-", "0.600"],
        ["3.00 to 5.00", "1", "0.850", "-", "0.850"],
    ]
    assert lines("manufacturer") == [
        ["ge", "3", "0.567", "0.100 to 0.900", "0.567"],
        ["siemens", "2", "0.550", "0.300 to 0.800", "0.550"],
        ["-", "1", "0.500", "-", "0.500"],
    ]
    ended = command("report", f"run={run}", "by=scanner")
    assert ended.code == 2 and "by=scanner: no such column; expected one of patient" in ended.err


def test_views_are_read_from_their_folder_alone(tmp_path: Path, command: Command) -> None:
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


def test_hostile_names_are_shown_as_text(tmp_path: Path, command: Command) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    rows = [score_row(f"{HOSTILE}{n}", 0.5 + n / 10, contrast=HOSTILE) for n in range(3)]
    for folder in (run, other):
        write_run(folder, rows, held_out=False, train=(rows[0]["patient"],))
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({**summary, "name": HOSTILE}))
    for ended in (
        command("report", f"run={run}", "by=contrast"),
        command("report", f"runs=[{run},{other}]", f"output={tmp_path}"),
    ):
        assert ended.code == 0, ended.err
        assert "\x1b[31m" not in ended.out + ended.err
        assert r"[/x] $^$ \x1b[31m<b>" in ended.out
    assert r"[/x] $^$ \x1b[31m<b> (2)" in Page(tmp_path / "comparison.html").text


def found_in(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "comparison.json").read_text()))


def test_two_runs_are_compared_patient_by_patient(tmp_path: Path, command: Command) -> None:
    better = [score_row(row["patient"], row["dice"] + 0.05, hd95_mm=4.0) for row in FOUR]
    one, other = write_run(tmp_path / "a", FOUR), write_run(tmp_path / "b", better, phantoms=True)
    (other / ".hydra" / "config.yaml").write_text("{seed: 1, model: {depth: 4}}")
    ended = command("report", f"runs=[{one},{other}]", f"output={tmp_path}")
    assert ended.code == 0, ended.err
    assert "Wilcoxon" in ended.out and "PHANTOMS, held out" in ended.out
    found = found_in(tmp_path)
    dice, _, distance = found["comparisons"]
    assert (dice["n"], dice["higher"], dice["lower"]) == (4, 4, 0)
    assert dice["difference"] == pytest.approx(0.05)
    assert dice["p"] == pytest.approx(2 / 2**4)  # all differ in one direction
    assert dice["p_holm"] == pytest.approx(3 * dice["p"])
    assert found["warnings"] == [] and found["held_out"] is True
    lines = difference_table(found).rows
    assert [line[5:7] for line in lines] == [
        ["4", "0"],
        ["4", "0"],
        ["4", "0"],
    ]  # less mm is better
    assert lines[2][3] == "-1.0" and distance["higher"] == 0
    page = Page(tmp_path / "comparison.html")
    assert page.banners == 1 and "strong (2) minus strong (1)" in page.text
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0][:3] == ["patient", "dice strong (1)", "dice strong (2)"]
    assert rows[1][:3] == ["p0", "0.9", "0.95"] and len(rows) == 5


def test_masks_of_another_tool_are_compared_on_the_patients_of_the_run(
    tmp_path: Path, command: Command
) -> None:
    run = write_run(tmp_path / "run", FOUR)
    more = [score_row(f"p{n}", 0.6) for n in range(9)]
    other = write_run(tmp_path / "other", more, "external")
    for runs in (f"[{run},{other}]", f"[{other},{run}]"):
        ended = command("report", f"runs={runs}", f"output={tmp_path}", "measures=[dice,volume_ml]")
        assert ended.code == 0, ended.err
        assert "not known whether held out" in ended.out
        found = found_in(tmp_path)
        assert found["patients"] == ["p0", "p1", "p2", "p3"]
        assert {c["name"]: c["dice"]["mean"] for c in found["runs"]} == {
            "strong": pytest.approx(0.725), "nnunet": pytest.approx(0.6),
        }  # fmt: skip
        assert difference_table(found).rows[1][5:7] == ["0 higher", "0 lower"]
        assert "NOT KNOWN WHETHER HELD OUT" in Page(tmp_path / "comparison.html").text
    few = write_run(tmp_path / "few", more[1:], "external")
    ended = command("report", f"runs=[{run},{few}]", f"output={tmp_path}")
    assert ended.code == 2 and "1 are in one of them only (p0)" in ended.err
    ended = command("report", f"runs=[{run},{other}]", "measures=[expected_dice]")
    assert ended.code == 2 and "other: its scores of test have no expected_dice" in ended.err


def test_leaks_between_runs_are_refused_or_warned_of(tmp_path: Path, command: Command) -> None:
    one = write_run(tmp_path / "a", FOUR, train=("p7",))
    swapped = [*FOUR[:3], score_row("p7", 0.8)]
    other = write_run(tmp_path / "b", swapped, train=("p3",))
    ended = command("report", f"runs=[{one},{other}]")
    assert ended.code == 2
    assert "2 are in one of them only (p3, p7); 2 of them were scored in one run" in ended.err
    cheat = write_run(tmp_path / "c", FOUR, train=("p0", "p1"), held_out=False)
    ended = command("report", f"runs=[{one},{cheat}]", f"output={tmp_path}")
    assert ended.code == 0
    leak = "trained on, or was chosen by, 2 of the patients"
    page = Page(tmp_path / "comparison.html")
    assert leak in ended.out and leak in page.text and "NOT HELD OUT" in page.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give run=RUN, or sweep=SWEEP, or runs="),
        (["run=nowhere"], "run=nowhere: there is no such folder"),
        (["run=empty"], "is not the folder of a run"),
        (["runs=[nowhere]"], "expected two folders or more"),
        (["sweep=.", "by=fold"], "by=fold: needs run=RUN"),
        (["run=run", "subset=val"], "evaluate checkpoint=run/checkpoints/best.ckpt subset=val"),
        (["run=damaged"], "scores/test.json: is JSON, but not figures that evaluate wrote"),
        (["run=noise"], "metrics.csv: cannot be read as metrics of epochs"),
    ],
)
def test_a_folder_without_scores_is_refused_in_a_line(
    command: Command, words: list[str], message: str
) -> None:
    for name in ("run", "damaged", "noise"):
        write_run(Path(name), FOUR)
    Path("empty").mkdir()
    Path("damaged", "scores", "test.json").write_text("{}")
    Path("noise", "metrics.csv").write_text("epoch,val/dice\n1,x\n")
    ended = command("report", *words)
    assert ended.code == 2 and message in ended.err


def test_evaluate_writes_a_page_a_subset(trained: Path, tmp_path: Path, command: Command) -> None:
    run = scored_copy(trained, tmp_path / "run", "test")
    text = Page(run / "report.html").text
    assert "n = 2 held-out phantoms" in text and "PHANTOMS" in text
    summary = json.loads((run / "summary.json").read_text())
    assert f"{summary['parameters']:,} parameters" in text
    assert summary["data_fingerprint"][:16] in text
    for row in csv.DictReader((run / "scores" / "test.csv").read_text().splitlines()):
        assert row["case"] in text
    before = (run / "report.html").read_bytes()
    best = run / "checkpoints" / "best.ckpt"
    assert command("evaluate", f"checkpoint={best}", "subset=val").code == 0
    assert (run / "report.html").read_bytes() == before
    assert "NOT HELD OUT" in Page(run / "report_val.html").text
