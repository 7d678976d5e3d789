"""Reports of a pancreas and its tumours, on scores written by hand."""

import json
import re
from pathlib import Path

from pancseg.files import write_json
from pancseg.metrics.lesions import LESION_COLUMNS
from pancseg.metrics.tables import summarise, write_scores
from pancseg.reports import pictures
from pancseg.reports.tables import print_scores
from tests.test_pictures import scan
from tests.test_report import text_of
from tests.tiny_scores import ABOUT, OF_A_CHECKPOINT, score_row, write_run

PANCREAS = (0.9, 0.5, 0.7, 0.8)
TUMOUR = (0.6, 0.4, None, None)  # the last two patients have none
LESIONS = ((1, 1, 0, 1, 0, 0.9), (2, 1, 0, 0, 1, 0.3), (0, 0, 0, 0, 0, 0.5), (0, 0, 1, 0, 1, 0.1))
FACTS = {  # 2 and 1 of 3 lesions; 1 and 2 false ones in 4 patients; 3 of 4 pairs are in order
    "lesions": "3 in 2 patients, none in 2", "sensitivity": "0.667", "sensitivity, IoU": "0.333",
    "false positives a patient": "0.250", "false positives, IoU": "0.500", "specificity": "0.500",
    "AUROC": "0.750",
}  # fmt: skip


def write_structures(folder, change=0.0):
    rows, empty = [], dict.fromkeys(LESION_COLUMNS)
    for n, counts in enumerate(LESIONS):
        lesion = TUMOUR[n] and TUMOUR[n] - change
        columns = {**dict(zip(LESION_COLUMNS, counts, strict=True)), "volume_ml": float(n == 3)}
        rows.append(score_row(f"p{n}", PANCREAS[n] + change, structure="pancreas", **empty))
        rows.append(score_row(f"p{n}", lesion, structure="tumour", **columns))
    write_run(folder, rows[::2])
    of = [summarise(rows[k::2], {}, {**ABOUT, **OF_A_CHECKPOINT}) for k in (0, 1)]
    figures = {**of[0], "structures": dict(zip(("pancreas", "tumour"), of, strict=True))}
    write_scores(folder / "scores", "test", rows, figures)
    for n, name in ((0, "pancreas"), (0, "tumour"), (2, "tumour"), (3, "tumour")):
        write_json(folder / "scores" / "test" / "views" / f"p{n}_{name}.json", {})
    return rows, figures


def test_the_page_has_a_section_a_structure_and_lesion_figures(command):
    write_structures(Path("run"))
    assert command("report", "run=run", "by=manufacturer").code == 0
    page = Path("run/report.html").read_text()
    organ, _, lesion = text_of("run/report.html").partition("tumour Dice 0.500 (95 % CI")
    assert "pancreas Dice 0.725 (95 % CI" in organ and "sensitivity" not in organ
    assert all("Scores by manufacturer" in part for part in (organ, lesion))
    assert all(f" {name} {number}" in lesion for name, number in FACTS.items())
    ids, links = (re.findall(f'{key}"([^"]*)"', page) for key in (" id=", "href="))
    assert len(ids) == len(set(ids)) and {link[1:] for link in links if link[0] == "#"} <= set(ids)
    slices = [name[5:] for name in ids if name.startswith("case-")]  # p2: no lesion, none predicted
    assert slices == ["p0_pancreas", "p0_tumour", "p3_tumour"]


def test_the_console_has_a_table_a_structure(tmp_path, capsys):
    print_scores(*write_structures(tmp_path / "run"), "test")
    organ, tumour = capsys.readouterr().out.split("tumour test: 4 patients, held out")
    assert "pancreas test: 4 patients, held out" in organ and "lesions" not in organ
    assert max(map(len, tumour.splitlines())) <= 120 and "empty_reference" in tumour
    assert re.findall(r"│ (p\d) ", tumour) == ["p1", "p0", "p2", "p3"]
    assert all(f"{n} {FACTS[n]}" in " ".join(tumour.split()) for n in FACTS if "IoU" not in n)


def test_runs_are_compared_by_structure(command):
    write_structures(Path("a"))
    write_structures(Path("b"), change=0.05)
    write_run(Path("single"), [score_row("p0", 0.5)])
    assert command("report", "runs=[a,b]", "measures=[dice]", "output=.").code == 0
    compared = json.loads(Path("comparison.json").read_text())
    tests = [(t["measure"], t["n"], t["p"], t["p_holm"]) for t in compared["comparisons"]]
    assert tests == [("dice pancreas", 4, 0.125, 0.25), ("dice tumour", 2, 0.5, 0.5)]
    lines = Path("comparison.csv").read_text().splitlines()
    assert lines[0].endswith(",dice tumour strong (1),dice tumour strong (2)")
    assert lines[1] == "p0,0.9,0.95,0.6,0.55" and lines[3] == "p2,0.7,0.75,,"
    assert "tumour Dice: strong (2) minus strong (1)" in text_of("comparison.html")
    ended = command("report", "runs=[a,single]")
    assert ended.code == 2 and "(a: pancreas, tumour; single: a single one)" in ended.err


def test_a_preview_shows_the_lesion_or_else_the_organ(tmp_path, monkeypatch):
    (image, organ), shown = scan(), []
    lesion = organ & False
    organ[10:12, 10:12, 9:15] = lesion[11, 11, 12] = True  # not in the largest slices of the organ
    monkeypatch.setattr(pictures, "show_slice", lambda *values: shown.append(values[2].values()))
    for mask in (lesion, lesion & False):
        pictures.draw_scan(tmp_path / "a.png", image, [organ, mask], "a")
    assert [[m.any() for m in masks] for masks in shown] == [[True] * 2] * 3 + [[True, False]] * 3
