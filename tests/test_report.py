"""The page of scores, also in a browser, subgroups, runs compared, and pictures."""

import base64
import html
import io
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from pancseg.metrics.tables import summarise, write_scores
from pancseg.reports import pictures
from pancseg.reports.comparison import difference_table
from pancseg.reports.tables import subgroup_table
from tests import chromium
from tests.conftest import run_command
from tests.tiny_scores import ABOUT, OF_A_CHECKPOINT, score_row, write_run

HOSTILE = '[/x] $^$ \x1b[31m"><script>alert(1)</script>'
FOUR = [score_row(f"p{n}", dice) for n, dice in enumerate((0.9, 0.5, 0.7, 0.8))]


def text_of(page):
    text = re.sub(r"(?s)<style>.*?</style>|<[^>]*>", " ", Path(page).read_text())
    return " ".join(html.unescape(text).split())


def banners_of(page):
    return re.findall(r'class="banner"><strong>(.*?)</strong>', page)


@pytest.fixture
def compare(command):
    """Compare two folders: ``comparison.json``."""

    def run(*words):
        ended = command("report", *words, "output=.")
        assert ended.code == 0, ended.err
        return json.loads(Path("comparison.json").read_text())

    return run


def test_the_page_shows_the_scores_worst_first_and_the_training(command):
    run = write_run(Path("run"), [*FOUR, score_row("p9", None)])
    (run / "metrics.csv").write_text("epoch,train/loss,val/loss,val/dice\n1,0.5,0.6,0.7\n")
    assert command("report", f"run={run}").code == 0
    text = text_of("run/report.html")
    low, high = json.loads((run / "scores" / "test.json").read_text())["dice"]["ci95"]
    order = [text.index(f" p{n} 0.") for n in (1, 2, 3, 0)]
    assert order == sorted(order)
    for expected in (
        f"Dice 0.725 (95 % CI {low:.3f} to {high:.3f}), n = 4 held-out patients, HD95 5.0 mm",
        "1,234,567 parameters", "an empty reference: p9", "calibration error 0.050", "0.700 at 1",
        "train experiment=strong data.root=...",
    ):  # fmt: skip
        assert expected in text
    assert "Miller" not in text  # in a path of the training's command
    assert banners_of(Path("run/report.html").read_text()) == []


def test_subgroups_are_tertiles_of_numbers_and_values_of_text():
    dice, mm = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9), (1.0, 1.25, 2.0, 2.5, 3.0, 5.0)
    makers = ("ge", "siemens", None, "ge", "siemens", "ge")
    rows = [
        score_row(f"p{n // 2}", d, spacing_z_mm=z, manufacturer=m)
        for n, (d, z, m) in enumerate(zip(dice, mm, makers, strict=True))
    ]
    lines = [line[:2] for line in subgroup_table(rows, "spacing_z_mm").rows]  # cases in pairs
    assert lines == [["1.00 to 1.25", 1], ["2.00 to 2.50", 1], ["3.00 to 5.00", 1]]
    lines = [line[:3] for line in subgroup_table(rows, "manufacturer").rows]
    mean = pytest.approx((0.1 + 0.7 + 0.9) / 3)
    assert lines == [["ge", 3, mean], ["siemens", 2, pytest.approx(0.55)], ["-", 1, 0.5]]


def test_slices_are_read_from_their_folder_alone(tmp_path, command):
    run, secret = tmp_path / "run", tmp_path / "secret.json"
    views = run / "scores" / "test" / "views"
    write_run(run, [score_row(name, 0.5) for name in ("good", "link", "../../../../secret")])
    views.mkdir(parents=True)
    for path in (secret, views / "good.json"):
        path.write_text(json.dumps({"image": f"view of {path.stem}"}))
    (views / "link.json").symlink_to(secret)
    assert command("report", f"run={run}").code == 0
    assert re.findall("view of [a-z]+", (run / "report.html").read_text()) == ["view of good"]


def test_hostile_names_are_text_and_pages_request_nothing(command):
    rows = [score_row(f"{HOSTILE}{n}", 0.5 + n / 10, contrast=HOSTILE) for n in range(3)]
    for folder in (Path("run"), Path("other")):
        train, flags = (rows[0]["patient"],), {rows[0]["patient"]: [HOSTILE]}
        write_run(folder, rows, phantoms=True, held_out=False, train=train, flags=flags)
        summary = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({**summary, "name": HOSTILE}))
    for words in (["run=run", "by=contrast"], ["runs=[run,other]", "output=."]):
        ended = command("report", *words)
        assert ended.code == 0 and "\x1b[31m" not in ended.out + ended.err
        assert r"[/x] $^$ \x1b[31m" in ended.out
        page = Path(ended.out.splitlines()[-1]).read_text()
        assert HOSTILE[-20:] in html.unescape(page) and page.count("<script>") == 1
        assert [title.split(":")[0] for title in banners_of(page)] == ["PHANTOMS", "NOT HELD OUT"]
        assert not re.search(r'(src|href|srcset)="(?!#|data:)|url\((?!#)|@import', page)


def test_two_runs_are_compared_patient_by_patient(compare):
    better = [score_row(row["patient"], row["dice"] + 0.05, hd95_mm=4.0) for row in FOUR]
    write_run(Path("a"), FOUR)
    write_run(Path("b"), better)
    compared = compare("runs=[a,b]")
    dice = compared["comparisons"][0]
    assert (dice["n"], dice["higher"], dice["lower"]) == (4, 4, 0)
    assert dice["difference"] == pytest.approx(0.05)
    assert dice["p"] == pytest.approx(2 / 2**4)  # all differ in one direction
    assert dice["p_holm"] == pytest.approx(3 * dice["p"])
    assert compared["warnings"] == [] and compared["held_out"] is True
    lines = difference_table(compared).rows
    assert [line[5:7] for line in lines] == [["4", "0"]] * 3 and lines[2][3] == "-1.0"  # fewer mm
    write_run(Path("b"), FOUR, train=("p0", "p1"), held_out=False)
    assert compare("runs=[a,b]")["held_out"] is False
    assert "trained on, or was chosen by, 2 of the patients" in text_of("comparison.html")


@pytest.mark.parametrize("runs", ["[run,other]", "[other,run]"])
def test_masks_of_another_tool_are_compared_on_the_patients_of_the_run(runs, compare):
    write_run(Path("run"), FOUR)
    write_run(Path("other"), [score_row(f"p{n}", 0.6) for n in range(9)], "external")
    compared = compare(f"runs={runs}", "measures=[dice,volume_ml]")
    assert compared["patients"] == ["p0", "p1", "p2", "p3"]
    means = {run["name"]: run["dice"]["mean"] for run in compared["runs"]}
    assert means == {"strong": pytest.approx(0.725), "nnunet": pytest.approx(0.6)}
    assert banners_of(Path("comparison.html").read_text()) == ["NOT KNOWN WHETHER HELD OUT"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("few", "1 are in one of them only (p0)"),
        ("leak", "(p0, p7); 2 of them were scored in one run and trained on"),
    ],
)
def test_scores_of_other_patients_are_not_compared(command, other, message):
    write_run(Path("run"), FOUR, train=("p7",))
    write_run(Path("few"), FOUR[1:], "external")
    write_run(Path("leak"), [*FOUR[1:], score_row("p7", 0.8)], train=("p0",))
    ended = command("report", f"runs=[run,{other}]")
    assert ended.code == 2 and message in ended.err
    for words, expected in (("runs=[run]", "two folders or more\n"), ("measures=[]", "columns")):
        ended = command("report", "runs=[run,few]", words)
        assert ended.code == 2 and f"expected {expected}" in ended.err


def write_structures(folder, change=0.0):
    """Scores of a pancreas and its tumour; the last two patients have none."""
    rows = []
    for n, (organ, lesion) in enumerate(((0.9, 0.6), (0.5, 0.4), (0.7, None), (0.8, None))):
        rows.append(score_row(f"p{n}", organ + change, structure="pancreas"))
        rows.append(score_row(f"p{n}", lesion and lesion - change, structure="tumour"))
    write_run(folder, rows[::2])
    of = [summarise(rows[k::2], {}, {**ABOUT, **OF_A_CHECKPOINT}) for k in (0, 1)]
    figures = {**of[0], "structures": dict(zip(("pancreas", "tumour"), of, strict=True))}
    write_scores(folder / "scores", "test", rows, figures)


def test_structures_have_a_section_each_and_are_compared_apart(compare, command):
    write_structures(Path("a"))
    write_structures(Path("b"), change=0.05)
    assert command("report", "run=a").code == 0
    page = text_of("a/report.html")
    assert page.index("pancreas Dice 0.725 (95 % CI") < page.index("tumour Dice 0.500 (95 % CI")
    compared = compare("runs=[a,b]", "measures=[dice]")
    tests = [(t["measure"], t["n"], t["p"], t["p_holm"]) for t in compared["comparisons"]]
    assert tests == [("dice pancreas", 4, 0.125, 0.25), ("dice tumour", 2, 0.5, 0.5)]
    lines = Path("comparison.csv").read_text().splitlines()
    assert lines[1] == "p0,0.9,0.95,0.6,0.55" and lines[3] == "p2,0.7,0.75,,"


GREEN = (61, 220, 132)


def test_a_sample_shows_its_largest_slice_with_the_patients_right_on_the_left(tmp_path):
    image, label = np.full((40, 40, 6), 0.5), np.zeros((40, 40, 6), np.uint8)
    label[30:36, 30:36, 4] = label[2:4, 2:4, 1] = 1  # the patient's right and front
    image[36:], image[..., 1] = 0.0, 1.0  # air at the right; the other slice is white
    for height_mm in (1.0, 0.5):
        pictures.draw_samples(
            tmp_path / "a.png", [image], [label], ["a"], "a", spacing_mm=(1, height_mm, 5)
        )
        pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
        rows, columns = np.nonzero(np.abs(pixels - GREEN).max(axis=2) < 30)
        assert len(rows) > 20 and not (pixels > 250).all(axis=2).any()
        grey = np.nonzero((np.abs(pixels - 127) < 2).all(axis=2))
        width = (np.ptp(grey[1]) + 1) / 0.9  # of the picture, of whose columns a tenth is air
        assert grey[1].max() - columns.max() > 0.7 * width
        assert rows.max() - grey[0].min() < 0.3 * width
        assert np.ptp(rows) == pytest.approx(np.ptp(columns) * height_mm, abs=3)


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
    view = pictures.make_view(image, predicted, reference)
    assert max(view["shape"]) == 96 and len(json.dumps(view)) < 700_000
    codes = np.rint(unpacked(view, "masks") / 85)
    assert set(np.unique(codes)) == {0, 1, 3}
    sizes_mm = np.array([np.ptp(index) + 1 for index in np.nonzero(codes)]) * view["step_mm"]
    np.testing.assert_allclose(sizes_mm, [100, 40, 80], atol=2 * view["step_mm"])
    z, y, x = (np.mean(index) for index in np.nonzero(codes == 3))
    depth, height, width = codes.shape
    assert x < width / 2 and y > height / 2 and z > depth / 2
    assert np.median(unpacked(view, "image")) == pytest.approx(60 / 400 * 255, abs=1)


# the page in Chromium, opened from disk

NAMES = ("c", "a", "b")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = tmp_path_factory.mktemp("seen") / "run"
    write_run(run, [score_row(name, 0.5 + n / 10) for n, name in enumerate(NAMES)], phantoms=True)
    x, y, z = np.meshgrid(*(np.arange(n) for n in (60, 50, 40)), indexing="ij")
    organ = ((x - 30) / 16) ** 2 + ((y - 25) / 8) ** 2 + ((z - 20) / 10) ** 2 < 1
    hu = np.random.default_rng(0).normal(40, 30, organ.shape).astype(np.int16)
    image = nib.Nifti1Image(hu, np.diag([-3.0, -3.0, 3.0, 1.0]))
    views = run / "scores" / "test" / "views"
    views.mkdir(parents=True)
    for name in NAMES:
        view = pictures.make_view(image, np.roll(organ, 2, 0), organ)
        (views / f"{name}.json").write_text(json.dumps(view))
    assert run_command("report", f"run={run}", "by=manufacturer") == 0
    return run / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = chromium.start(tmp_path_factory.mktemp("browser"))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page):
    """The page at a desk's width, its first viewer ready."""
    browser.set_window_size(1400, 900)
    browser.get_log("performance")
    browser.get(page.as_uri())
    wait_for(browser, "document.querySelector('.viewer').dataset.state == 'ready'")
    return browser


def wait_for(browser, condition):
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(f"return {condition}"))


def part(browser, plane, tag):
    return browser.find_element("css selector", f"figure[data-plane={plane}] {tag}")


def picture(browser, plane):
    script = "const c = arguments[0]; return [Number(c.dataset.slice), c.toDataURL()]"
    k, pixels = browser.execute_script(script, part(browser, plane, "canvas"))
    return k, pixels


@chromium.needed
def test_the_page_opens_without_an_error_or_a_request_and_sorts(opened):
    assert opened.get_log("browser") == []
    requests = chromium.addresses(opened)
    assert requests and all(address.startswith(("file:", "data:")) for address in requests)
    dice = opened.find_elements("css selector", "table.sortable thead button")[1]
    cells = "[...document.querySelectorAll('table.sortable tbody td:nth-child(2)')]"
    for direction in (1, -1, 1):
        dice.click()
        values = opened.execute_script(f"return {cells}.map((c) => Number(c.dataset.value))")
        assert values == [0.5, 0.6, 0.7][::direction]


@chromium.needed
def test_planes_scroll_and_a_click_moves_the_other_planes(opened):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    for plane in ("axial", "coronal", "sagittal"):
        k, pixels = picture(opened, plane)
        part(opened, plane, "input").send_keys(Keys.ARROW_RIGHT * 3)
        moved = picture(opened, plane)
        assert moved[0] == k + 3 and moved[1] != pixels
        part(opened, plane, "canvas").send_keys(Keys.ARROW_DOWN * 3)
        assert picture(opened, plane) == (k, pixels)
    canvas = part(opened, "axial", "canvas")
    count = int(part(opened, "sagittal", "input").get_attribute("max")) + 1
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    offset = -canvas.size["width"] // 4
    ActionChains(opened).move_to_element_with_offset(canvas, offset, 0).click().perform()
    assert picture(opened, "sagittal")[0] == pytest.approx(count / 4, abs=1)
