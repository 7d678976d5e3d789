"""The page of scores, subgroups, and runs compared."""

import csv
import html
import json
import re
from pathlib import Path

import pytest

from pancseg.reports.comparison import difference_table
from tests.tiny_scores import score_row, write_run

HOSTILE = '[/x] $^$ \x1b[31m"><script>alert(1)</script>'
FOUR = [score_row(f"p{n}", dice) for n, dice in enumerate((0.9, 0.5, 0.7, 0.8))]


def text_of(page):
    text = re.sub(r"(?s)<style>.*?</style>|<[^>]*>", " ", Path(page).read_text())
    return " ".join(html.unescape(text).split())


def banners_of(page):
    return re.findall(r'class="banner"><strong>(.*?)</strong>', Path(page).read_text())


@pytest.fixture
def compare(command):
    """Compare two folders: output, ``comparison.json``."""

    def run(*words):
        ended = command("report", *words, "output=.")
        assert ended.code == 0, ended.err
        return ended.out, json.loads(Path("comparison.json").read_text())

    return run


def test_the_page_shows_the_scores_worst_first_and_the_training(command):
    run = write_run(Path("run"), [*FOUR, score_row("p9", None)], flags={"p1": ["few_slices"]})
    (run / "metrics.csv").write_text("epoch,train/loss,val/loss,val/dice\n1,0.5,0.6,0.7\n")
    assert command("report", f"run={run}").code == 0
    text = text_of("run/report.html")
    low, high = json.loads((run / "scores" / "test.json").read_text())["dice"]["ci95"]
    order = [text.index(f" p{n} 0.") for n in (1, 2, 3, 0)]
    assert order == sorted(order)
    for expected in (
        f"Dice 0.725 (95 % CI {low:.3f} to {high:.3f}), n = 4 held-out patients, HD95 5.0 mm",
        "1,234,567 parameters", "9 in 1,234 s; the best is 7", "f" * 16, "5 patients, 12 groups",
        "p1: few_slices", "an empty reference: p9", "calibration error 0.050", "0.700 at 1",
        "train experiment=strong data.root=...", "best.ckpt subset=test",
    ):  # fmt: skip
        assert expected in text
    assert "Miller" not in text  # in a path of the training's command
    assert banners_of("run/report.html") == []


@pytest.mark.parametrize(
    ("subset", "about", "text", "banner"),
    [
        ("test", {"phantoms": True}, "n = 4 held-out phantoms", "PHANTOMS"),
        ("val", {"held_out": False}, "n = 4 patients, NOT HELD OUT", "NOT HELD OUT"),
        ("external_b c", {"held_out": None}, "best.ckpt data.root=...", "NOT KNOWN WHETHER"),
        ("external", {"without_mask": ["p1"]}, "without mask 1: p1", "NOT KNOWN WHETHER"),
    ],
)
def test_each_subset_has_a_page_with_banners(subset, about, text, banner, command):
    write_run(Path("run"), FOUR, subset, **about)
    assert command("report", "run=run", f"subset='{subset}'").code == 0
    page = "run/report.html" if subset in ("test", "external") else f"run/report_{subset}.html"
    assert text in text_of(page)
    (shown,) = banners_of(page)
    assert shown.startswith(banner)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        # two cases of one patient, or of two: n counts patients
        ("spacing_z_mm", "1.00 to 1.25 1 0.200 -, 2.00 to 2.50 1 0.600 -, 3.00 to 5.00 1 0.850 -"),
        ("manufacturer", "ge 3 0.567 0.100 to 0.900, siemens 2 0.550 0.300 to 0.800, - 1 0.500 -"),
    ],
)
def test_subgroups_are_tertiles_of_numbers_and_values_of_text(column, expected, command):
    dice, mm = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9), (1.0, 1.25, 2.0, 2.5, 3.0, 5.0)
    makers = ("ge", "siemens", None, "ge", "siemens", "ge")
    rows = [
        score_row(f"p{n // 2}", d, case=f"c{n}", spacing_z_mm=z, manufacturer=m)
        for n, (d, z, m) in enumerate(zip(dice, mm, makers, strict=True))
    ]
    write_run(Path("run"), [*rows, score_row("p9", None, case="c9")])
    ended = command("report", "run=run", f"by={column}")
    cells = [line.split("│")[1:5] for line in ended.out.splitlines() if line.startswith("│")]
    assert ", ".join(" ".join(cell.strip() for cell in line) for line in cells) == expected
    assert f"Scores by {column}" in text_of("run/report.html")


def test_slices_are_read_from_their_folder_alone(tmp_path, command):
    run, secret = tmp_path / "run", tmp_path / "secret.json"
    views = run / "scores" / "test" / "views"
    names = ["good", "link", "../../../../secret", str(secret.with_suffix(""))]
    write_run(run, [score_row(name, 0.5) for name in names])
    views.mkdir(parents=True)
    for path in (secret, views / "good.json"):
        path.write_text(json.dumps({"image": f"view of {path.stem}"}))
    (views / "link.json").symlink_to(secret)
    for expected in (["view of good"], []):
        assert command("report", f"run={run}").code == 0
        assert re.findall("view of [a-z]+", (run / "report.html").read_text()) == expected
        if expected:
            views.rename(tmp_path / "views")
            views.symlink_to(tmp_path / "views")


def test_hostile_names_are_text_and_pages_request_nothing(command):
    rows = [score_row(f"{HOSTILE}{n}", 0.5 + n / 10, contrast=HOSTILE) for n in range(3)]
    for folder in (Path("run"), Path("other")):
        train, flags = (rows[0]["patient"],), {rows[0]["patient"]: [HOSTILE]}
        write_run(folder, rows, held_out=False, train=train, flags=flags)
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({**summary, "name": HOSTILE}))
    for words in (["run=run", "by=contrast"], ["runs=[run,other]", "output=."]):
        ended = command("report", *words)
        assert ended.code == 0 and "\x1b[31m" not in ended.out + ended.err
        assert r"[/x] $^$ \x1b[31m" in ended.out
        page = Path(ended.out.splitlines()[-1]).read_text()
        assert HOSTILE[-20:] in html.unescape(page) and page.count("<script>") == 1
        assert not re.search(r'(src|href|srcset)="(?!#|data:)|url\((?!#)|@import', page)


def test_two_runs_are_compared_patient_by_patient(compare):
    better = [score_row(row["patient"], row["dice"] + 0.05, hd95_mm=4.0) for row in FOUR]
    write_run(Path("a"), FOUR)
    write_run(Path("b"), better, phantoms=True)
    printed, compared = compare("runs=[a,b]")
    assert "PHANTOMS, held out" in printed
    dice = compared["comparisons"][0]
    assert (dice["n"], dice["higher"], dice["lower"]) == (4, 4, 0)
    assert dice["difference"] == pytest.approx(0.05)
    assert dice["p"] == pytest.approx(2 / 2**4)  # all differ in one direction
    assert dice["p_holm"] == pytest.approx(3 * dice["p"])
    assert compared["warnings"] == [] and compared["held_out"] is True
    lines = difference_table(compared).rows
    assert [line[5:7] for line in lines] == [["4", "0"]] * 3 and lines[2][3] == "-1.0"  # fewer mm
    assert "strong (2) minus strong (1)" in text_of("comparison.html")
    rows = list(csv.reader(Path("comparison.csv").read_text().splitlines()))
    assert rows[0][:3] == ["patient", "dice strong (1)", "dice strong (2)"]
    assert rows[1][:3] == ["p0", "0.9", "0.95"] and len(rows) == 5
    write_run(Path("b"), FOUR, train=("p0", "p1"), held_out=False)
    leak = "trained on, or was chosen by, 2 of the patients"
    assert leak in compare("runs=[a,b]")[0] and leak in text_of("comparison.html")


@pytest.mark.parametrize("runs", ["[run,other]", "[other,run]"])
def test_masks_of_another_tool_are_compared_on_the_patients_of_the_run(runs, compare):
    write_run(Path("run"), FOUR)
    write_run(Path("other"), [score_row(f"p{n}", 0.6) for n in range(9)], "external")
    printed, compared = compare(f"runs={runs}", "measures=[dice,volume_ml]")
    assert "not known whether held out" in printed
    assert compared["patients"] == ["p0", "p1", "p2", "p3"]
    means = {run["name"]: run["dice"]["mean"] for run in compared["runs"]}
    assert means == {"strong": pytest.approx(0.725), "nnunet": pytest.approx(0.6)}
    assert difference_table(compared).rows[1][5:7] == ["0 higher", "0 lower"]
    assert banners_of("comparison.html") == ["NOT KNOWN WHETHER HELD OUT"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "give run=RUN, or sweep=SWEEP"),
        ("run=nowhere", "no such folder"),
        ("run=empty", "not the folder of a run"),
        ("run=run by=scanner", "by=scanner: no such column"),
        ("runs=[nowhere]", "expected two folders"),
        ("runs=[run,few]", "1 are in one of them only (p0)"),
        ("runs=[run,leak]", "(p0, p7); 2 of them were scored in one run and trained on"),
        ("runs=[run,few] measures=[volume]", "run: its scores of test have no volume"),
        ("run=run subset=val", "evaluate checkpoint=run/checkpoints/best.ckpt subset=val"),
        ("run=damaged", "test.json: is JSON, but not figures"),
        ("run=noise", "metrics.csv: cannot be read"),
    ],
)
def test_folders_that_cannot_be_reported_are_refused_in_a_line(command, words, message):
    for name in ("run", "damaged", "noise"):
        write_run(Path(name), FOUR, train=("p7",))
    write_run(Path("few"), FOUR[1:], "external")
    write_run(Path("leak"), [*FOUR[1:], score_row("p7", 0.8)], train=("p0",))
    Path("empty").mkdir()
    Path("damaged", "scores", "test.json").write_text("{}")
    Path("noise", "metrics.csv").write_text("epoch,val/dice\n1,x\n")
    ended = command("report", *words.split())
    assert ended.code == 2 and message in ended.err
