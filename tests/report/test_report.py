"""The report of a run: its numbers are those of the run, and its page works in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from coterie.config import load_config
from coterie.errors import ConfigError, CoterieError, RunError
from coterie.explain import make_explainer
from coterie.explain.sheet import fitted, overlay
from coterie.metrics import average_precision, multilabel_metrics
from coterie.pipeline import Run
from coterie.report import write_report
from coterie.report.content import report_content
from coterie.report.pictures import data_url
from coterie.report.reading import read_run
from tests.report.conftest import ODD_NAMES
from tests.tiny import CLASS_NAMES, Net

PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def content(finished_run: Run) -> dict[str, Any]:
    return report_content(read_run(finished_run.folder), "test")


@pytest.fixture(scope="module")
def written(finished_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(finished_run.folder, tmp_path_factory.mktemp("report") / "report.html")[0]


@pytest.fixture(scope="module")
def odd(odd_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(odd_run.folder, tmp_path_factory.mktemp("odd report") / "report.html")[0]


def heat_of(run: Run, model: str, picture: Image.Image, name: str) -> np.ndarray:
    return make_explainer(run.predictor(model)).maps(picture, [name])[name].heat(224, 224)


def embedded(path: Path) -> dict[str, Any]:
    """What the scripts of a page read."""
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.S
    )
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


# The numbers


def test_results_are_those_of_the_run(content: dict[str, Any], finished_run: Run) -> None:
    assert [split["name"] for split in content["results"]] == ["val", "test", "test_shifted"]
    for split in content["results"]:
        metrics = finished_run.metrics[split["name"]]
        assert [row["metric"] for row in split["rows"]] == ["mAP", "CF1", "OF1"]
        for row in split["rows"]:
            assert row["values"] == {model: metrics[model][row["metric"]] for model in metrics}
            values = row["values"]
            assert row["difference"] == values["student"] - values["baseline"]
            low, high = row["interval"]
            assert low <= high
        assert {row["metric"] for row in split["all"]} == set(metrics["student"]) - {
            "AP",
            "classes_without_positives",
        }


def test_classes_have_the_ap_of_the_run_and_their_groups(content: dict[str, Any], finished_run: Run) -> None:
    metrics = finished_run.metrics["test"]
    assert sorted(row["name"] for row in content["classes"]) == sorted(CLASS_NAMES)
    for index, row in enumerate(content["classes"]):
        assert row["ap"] == {model: metrics[model]["AP"][index] for model in metrics}
        for branch in content["branches"]:
            assert row["name"] in branch["groups"][row["groups"][branch["name"]]]["names"]


def test_curves_are_those_of_the_logits(content: dict[str, Any], finished_run: Run) -> None:
    logits = read_run(finished_run.folder).logits("test")
    curves = content["data"]["pr"]
    for index in range(len(CLASS_NAMES)):
        student = curves["classes"][index]["student"]
        area = (np.diff([0, *student["recall"]]) * student["precision"]).sum() / 1e8
        expected = average_precision(logits.models["student"], logits.targets)[index]
        assert area == pytest.approx(float(expected), abs=1e-3)
    metrics = finished_run.metrics["test"]["student"]
    assert curves["all"]["student"]["point"] == [round(100 * metrics[name]) for name in ("OR", "OP")]
    assert list(curves["all"]) == list(finished_run.metrics["test"])


def test_learning_curves_are_those_of_the_logs(content: dict[str, Any], finished_run: Run) -> None:
    history = {one["name"]: one for one in content["data"]["history"]}
    assert list(history) == [training["name"] for training in content["trainings"]]
    lines = (finished_run.folder / "student" / "log.jsonl").read_text().splitlines()
    values = [json.loads(line)["val_mAP"] for line in lines]
    assert history["student"]["epochs"] == [1, 2]
    assert history["student"]["values"]["val_mAP"] == pytest.approx(values, rel=1e-5)


def test_a_log_that_was_cut_off_or_lost_is_drawn_as_far_as_it_goes(run_copy: Run) -> None:
    log = run_copy.folder / "student" / "log.jsonl"
    first = log.read_text().splitlines()[0]
    log.write_text(
        first.replace(re.findall(r'"loss": [^,]+', first)[0], '"loss": NaN') + '\n{"epoch": 2, "lo'
    )
    (run_copy.folder / "baseline" / "log.jsonl").unlink()
    history = {
        one["name"]: one for one in report_content(read_run(run_copy.folder), "test")["data"]["history"]
    }
    assert history["student"]["epochs"] == [1]
    assert history["student"]["values"]["loss"] == [None]
    assert history["baseline"] == history["baseline"] | {"epochs": [], "values": {}}


def test_every_setting_is_there_and_the_command_makes_the_same_run(
    content: dict[str, Any], finished_run: Run
) -> None:
    words, again = map(shlex.split, content["commands"])
    assert again == ["coterie", "report", str(finished_run.folder), "--split", "test"]
    assert words[:2] == ["coterie", "run"]
    assert load_config(words[2:]) == finished_run.config
    rows = {row["key"]: row for row in content["settings"]}
    assert (rows["k"]["value"], rows["k"]["default"], rows["k"]["changed"]) == ("2", "5", True)
    assert not rows["seed"]["changed"]
    assert rows["train.epochs"]["value"] == "2"
    assert len(rows) == len(content["settings"]) > 90


def test_versions_say_what_is_needed_to_check_it(content: dict[str, Any]) -> None:
    versions = dict(content["versions"])
    assert {"split hash", "seed", "student's weights", "python", "torch"} <= set(versions)
    assert re.fullmatch(r"[0-9a-f]{64}", versions["split hash"])


# The file


def test_the_page_holds_its_data_and_loads_nothing(written: Path, finished_run: Run) -> None:
    html = written.read_text(encoding="utf-8")
    assert embedded(written)["classes"] == list(read_run(finished_run.folder).class_names)
    assert "http://www.w3.org/2000/svg" in html
    addresses = re.findall(r"""(?:src|href)=["']?([^"' >]+)""", html) + re.findall(r"url\(([^)]*)", html)
    assert [address for address in addresses if not address.startswith(("#", "data:"))] == []
    assert html.count("data:image/webp;base64,") > 0


def test_by_default_it_is_in_the_run_folder_about_the_first_test_split(run_copy: Run) -> None:
    path, size, notes = write_report(run_copy.folder, builder=Net)
    assert path == run_copy.folder / "report.html"
    assert path.stat().st_size == size
    assert notes == []
    assert not list(run_copy.folder.glob(".*.tmp"))
    val = report_content(read_run(run_copy.folder), "val")
    assert val["classes"][0]["ap"]["student"] == run_copy.metrics["val"]["student"]["AP"][0]
    assert write_report(run_copy.folder, builder=Net).size == size  # the same run, the same page


def test_maps_stand_beside_the_pictures_where_the_models_can_be_built(finished_run: Run) -> None:
    run = read_run(finished_run.folder)
    content = report_content(run, "test", 2, Net)
    cards = [card for kind in content["pictures"] for card in kind["cards"]]
    assert cards
    for card in cards:
        picture = Image.open(Path(finished_run.config.data.source).parent / card["id"])
        expected = {
            model: overlay(fitted(picture, 224), heat_of(finished_run, model, picture, card["explained"]))
            for model in ("baseline", "student")
        }
        assert card["picture"] == data_url(fitted(picture, 224))
        assert card["maps"] == {model: data_url(image) for model, image in expected.items()}
        with Image.open(io.BytesIO(base64.b64decode(card["picture"].partition(",")[2]))) as image:
            assert image.size == card["size"] == (224, 224)
    without = report_content(run, "test", 2)
    assert without["picture_notes"][0].startswith("there are no class activation maps here: checkpoint")
    assert [card["maps"] for kind in without["pictures"] for card in kind["cards"]] == [{}] * len(cards)
    assert report_content(run, "test", 0)["pictures"] == []


def test_a_picture_is_upright_as_in_training(run_copy: Run, tmp_path: Path) -> None:
    table = Path(run_copy.config.data.source)
    moved = Path(shutil.copytree(table.parent, tmp_path / "photos"))
    config = (run_copy.folder / "config.yaml").read_text().replace(str(table), str(moved / table.name))
    (run_copy.folder / "config.yaml").write_text(config)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    for picture in moved.glob("*.png"):
        Image.new("RGB", (32, 16)).save(picture, exif=exif)
    content = report_content(read_run(run_copy.folder), "test", 1, Net)
    assert content["pictures"][-1]["cards"][0]["size"] == (112, 224)


def test_a_report_is_made_without_the_pictures_too(run_copy: Run, tmp_path: Path) -> None:
    table = Path(run_copy.config.data.source)
    moved = Path(shutil.copytree(table.parent, tmp_path / "photos"))
    config = (run_copy.folder / "config.yaml").read_text().replace(str(table), str(moved / table.name))
    (run_copy.folder / "config.yaml").write_text(config)
    for picture in moved.glob("*.png"):
        picture.unlink()
    path, _, notes = write_report(run_copy.folder, builder=Net)
    assert re.fullmatch(r"\d+ pictures are missing here; the first: image .*there is no such file", notes[0])
    assert "pictures are missing here" in path.read_text()
    (moved / table.name).unlink()
    path, _, notes = write_report(run_copy.folder)
    assert notes[0].endswith("labels.csv is not there")
    assert "data:image/webp" not in path.read_text()


# Bad input


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("manifest.json", None, "there is no run at"),
        ("manifest.json", "{", "cannot be used"),
        ("config.yaml", "k: none", "config.yaml cannot be used: setting 'k' must be a whole number"),
        ("metrics.json", None, "it has no metrics.json"),
        ("metrics.json", "{", "metrics.json is damaged"),
        ("metrics.json", '{"schema_version": 1}', "metrics.json is damaged (it holds no results)"),
        ("metrics.json", '{"schema_version": 1, "key": "", "splits": {}}', "it holds no results"),
        ("leaning.json", "[]", "leaning.json is damaged"),
        ("leaning.json", '{"schema_version": 1, "pairs": []}', "it is not of the models in metrics.json"),
        ("data.json", None, "has no data.json"),
        ("partitions/co-occurrence.json", "{}", "co-occurrence.json: "),
        ("partitions/diagnostics.json", '{"schema_version": 1, "branches": {}}', "is not of the groups"),
        ("partitions/diagnostics.json", None, "it has no partitions/diagnostics.json"),
        ("logits/test/index.json", None, "holds no logits of split 'test'"),
        ("logits/test/student.npy", "not an array", "are damaged"),
    ],
)
def test_a_damaged_run_is_one_message(run_copy: Run, name: str, text: str | None, message: str) -> None:
    path = run_copy.folder / name
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(CoterieError, match=re.escape(message)) as raised:
        write_report(run_copy.folder)
    assert str(run_copy.folder) in str(raised.value)
    assert not (run_copy.folder / "report.html").exists()


def test_groups_that_are_not_those_of_the_teachers_are_refused(run_copy: Run) -> None:
    path = run_copy.folder / "partitions" / "co-occurrence.json"
    content = json.loads(path.read_text())
    one, other = content["groups"]
    one[0], other[0] = other[0], one[0]
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"co-occurrence\.json is damaged \(its groups are not those of the t"):
        write_report(run_copy.folder)


def test_a_run_that_is_not_finished_says_so(run_copy: Run) -> None:
    path = run_copy.folder / "manifest.json"
    content = json.loads(path.read_text())
    content["trainings"][-1]["state"] = "pending"
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"is not finished, it lacks 'student': the `coterie run` command"):
        write_report(run_copy.folder)


def test_logits_of_another_measurement_are_not_taken(run_copy: Run) -> None:
    path = run_copy.folder / "metrics.json"
    path.write_text(path.read_text().replace('"key": "', '"key": "other'))
    with pytest.raises(RunError, match=r"the logits of split 'val' in .* are not those of its metrics\.json"):
        write_report(run_copy.folder)


def test_results_of_other_weights_are_not_shown(run_copy: Run) -> None:
    path = run_copy.folder / "manifest.json"
    content = json.loads(path.read_text())
    content["trainings"][-1]["weights_sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(RunError, match="are of other weights than its checkpoints"):
        write_report(run_copy.folder)


@pytest.mark.parametrize("target", [0, -1])
def test_a_split_without_a_positive_has_a_report(run_copy: Run, page: Page, target: int) -> None:
    folder = run_copy.folder / "logits" / "test"
    targets = np.full_like(np.load(folder / "targets.npy"), target)
    np.save(folder / "targets.npy", targets)
    path = run_copy.folder / "metrics.json"
    content = json.loads(path.read_text())
    for model, metrics in content["splits"]["test"].items():
        scores = 1 / (1 + np.exp(-np.load(folder / f"{model.replace(' ', '-')}.npy").astype(float)))
        metrics |= multilabel_metrics(scores, targets, class_names=content["class_names"])
    path.write_text(json.dumps(content))
    page.goto(write_report(run_copy.folder).path.as_uri())
    shown = page.locator("#results tbody td[data-split=test]").all_inner_texts()
    assert {text.strip() for text in shown} == {"–"}
    expect(page.locator(".pictures > li")).to_have_count(0)
    assert "test: without positives" in page.locator("main").inner_text()


def test_a_split_that_was_not_measured_is_refused(finished_run: Run) -> None:
    with pytest.raises(ConfigError, match="was not measured on split 'tset'; did you mean 'test'"):
        write_report(finished_run.folder, split="tset")


# In the browser


def column(page: Page, table: str, number: int) -> list[str]:
    """The cells of a column as they are shown."""
    cells = page.locator(f"#{table} tbody tr:visible > :nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


def test_classes_are_sorted_by_their_headings_also_by_keyboard(page: Page, written: Path) -> None:
    page.goto(written.as_uri())
    names = column(page, "class-table", 1)
    heading = page.locator("#class-table thead th").filter(has_text="student − baseline")
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "descending")
    cells = page.locator("#class-table tbody tr > td[data-value]:nth-child(5)")
    values = [float(value) for value in cells.evaluate_all("all => all.map(one => one.dataset.value)")]
    assert values == sorted(values, reverse=True)
    heading.get_by_role("button").focus()
    page.keyboard.press("Enter")
    expect(heading).to_have_attribute("aria-sort", "ascending")
    values = [float(value) for value in cells.evaluate_all("all => all.map(one => one.dataset.value)")]
    assert values == sorted(values)
    page.locator("#class-table thead button").first.click()
    expect(heading).to_have_attribute("aria-sort", "none")
    assert column(page, "class-table", 1) == sorted(names)


def test_classes_and_settings_are_filtered(page: Page, written: Path) -> None:
    page.goto(written.as_uri())
    page.locator('[data-filter="class-table"]').fill("RE")
    assert set(column(page, "class-table", 1)) == {"red", "green"}
    expect(page.locator('[data-count="class-table"]')).to_have_text("2 of 4")
    page.locator('[data-filter="class-table"]').fill("")
    page.locator('[data-only="class-table"]').select_option("gained")
    gained = page.locator("#class-table tbody tr:visible .gain").count()
    assert gained == len(column(page, "class-table", 1)) * 2  # the number and the bar
    page.locator('[data-filter="setting-table"]').fill("peak learning rate")
    assert column(page, "setting-table", 1) == ["train.lr"]
    page.locator('[data-filter="setting-table"]').fill("")
    page.locator('[data-only="setting-table"]').select_option("changed")
    assert "train.epochs" in column(page, "setting-table", 1)
    assert "seed" not in column(page, "setting-table", 1)


def test_curves_are_drawn_of_all_scores_and_of_a_class(page: Page, written: Path) -> None:

    page.goto(written.as_uri())
    lines = page.locator("#pr-chart polyline")
    whole = lines.first.get_attribute("points")
    assert whole is not None
    expect(lines).to_have_count(5)
    page.locator("#pr-class").select_option(label="stripes")
    expect(lines).to_have_count(3)
    expect(lines.first).not_to_have_attribute("points", whole)
    legend = page.locator("#pr-chart .legend button").first
    legend.click()
    expect(legend).to_have_attribute("aria-pressed", "false")
    expect(lines).to_have_count(2)
    expect(page.locator("#learning-chart polyline")).to_have_count(6)
    page.locator("#learning-what").select_option("loss")
    expect(page.locator("#learning-chart")).to_contain_text("training loss")
    page.locator("#pr-chart svg").first.hover()
    expect(page.locator("#pr-chart .readout")).to_have_text(re.compile(r"recall 0\.\d+ · "))


def test_dark_follows_the_system_until_a_person_chooses(page: Page, written: Path) -> None:
    page.emulate_media(color_scheme="light")
    page.goto(written.as_uri())
    paper = page.locator("html")
    light: str = paper.evaluate("node => getComputedStyle(node).backgroundColor")
    toggle = page.get_by_role("button", name="Dark")
    expect(toggle).to_have_attribute("aria-pressed", "false")
    page.emulate_media(color_scheme="dark")
    expect(toggle).to_have_attribute("aria-pressed", "true")
    expect(paper).not_to_have_css("background-color", light)
    dark: str = paper.evaluate("node => getComputedStyle(node).backgroundColor")
    toggle.click()
    expect(paper).to_have_css("background-color", light)
    page.reload()
    expect(paper).to_have_css("background-color", light)
    toggle.click()
    expect(paper).to_have_css("background-color", dark)
    page.emulate_media(color_scheme="light")
    expect(paper).to_have_css("background-color", dark)
    page.emulate_media(media="print")
    expect(paper).to_have_css("background-color", light)


@pytest.mark.parametrize("which", ["written", "odd"])
def test_nothing_is_wider_than_a_phone(page: Page, which: str, request: pytest.FixtureRequest) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(request.getfixturevalue(which).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.evaluate("document.body.scrollWidth") <= PHONE["width"]


def test_names_that_look_like_html_are_only_names(page: Page, odd: Path) -> None:
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(odd.as_uri())
    assert embedded(odd)["classes"] == list(ODD_NAMES)
    shown = page.locator("#class-table tbody tr").evaluate_all("all => all.map(one => one.dataset.text)")
    assert shown == list(ODD_NAMES)
    texts = page.locator("#class-table tbody tr > th").evaluate_all("all => all.map(one => one.textContent)")
    assert texts == list(ODD_NAMES)
    options = page.locator("#pr-class option").evaluate_all("all => all.map(one => one.textContent)")
    assert options == ["all scores together", *ODD_NAMES]
    for index in range(len(ODD_NAMES)):
        page.locator("#pr-class").select_option(str(index))
        drawn = page.locator("#pr-chart svg[role=img]")
        expect(drawn).to_have_attribute("aria-label", f"precision over recall of {ODD_NAMES[index]}")
    page.locator('[data-filter="class-table"]').fill(ODD_NAMES[0])
    expect(page.locator("#class-table tbody tr:visible")).to_have_count(1)
    expect(page.locator("script")).to_have_count(3)
    expect(page.locator("img[src=x]")).to_have_count(0)
    assert page.locator("#pictures .id").first.inner_text().startswith('"><img src=x onerror=alert(')
    assert page.title() == "run <b> · Coterie report"
    assert dialogs == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
