"""The pages in a browser: what moves when a reader clicks, and that they ask the network for nothing."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from bts_dist.counts import count, dice
from bts_dist.gallery import patient_slices
from bts_dist.report import RunRecord, write_report
from bts_dist.search_report import SearchRecord, write_search_page
from shards.config import PhantomConfig
from shards.phantom import render

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not BROWSER or not DRIVER, reason="no chromium and chromedriver on PATH (Debian: chromium-driver)"
    ),
]

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT_S = 10
PHANTOM = PhantomConfig(size=64, min_slices=8, max_slices=8, seed=3)
NAMES = ("MADE_UP_0001", "MADE_UP_0002", "MADE_UP_0003")


def phantom_run() -> RunRecord:
    """Three phantom patients whose predictions are their masks, moved by 3, 0 and 8 pixels."""
    slices, patients = [], []
    for index, shift in enumerate((3, 0, 8)):
        image, mask = render(PHANTOM, index)
        truth = mask > 0
        prediction = np.roll(truth, shift, axis=2)
        counts = count(prediction, truth)
        name = NAMES[index]
        slices.append(patient_slices(name, range(1, len(image) + 1), image, truth, prediction, counts))
        tp, fp, fn = counts.sum(axis=0).tolist()
        figures = {"dice": float(dice(counts.sum(axis=0))), "tp": tp, "fp": fp, "fn": fn}
        tumour_slices = int(truth.any(axis=(1, 2)).sum())
        patients.append(
            {"patient": name, "institution": "AX", "slices": len(image), "tumour_slices": tumour_slices}
            | figures
            | {"iou": 0.5, "hd95": None if index else 4.5, "surface_dice": 0.5}
        )
    row = {"mean": 0.7, "median": 0.7, "low": 0.6, "high": 0.8, "n": 3, "rule": "made up"}
    metrics = dict.fromkeys(("dice/patient", "dice/slice", "iou/pooled"), row)
    epochs = [{"epoch": n, "train/loss": 1 / n, "val/dice/patient": 0.2 * n} for n in (1, 2, 3)]
    score = {"metrics": metrics, "patients": patients}
    return RunRecord("made-up", {"optim": {"lr": 1e-3}}, epochs, score, slices=slices)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(phantom_run(), tmp_path_factory.mktemp("page") / "report.html").as_uri()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    assert BROWSER
    options = Options()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: Chrome, page: str) -> Iterator[Chrome]:
    """The page, opened anew at 1280 pixels.  Whatever a test does: no error, and nothing but the page is loaded."""
    resize(chromium, 1280)
    chromium.get_log("performance")
    chromium.get(page)
    wait(chromium, lambda: picture(chromium).get_attribute("data-drawn"))
    yield chromium
    assert chromium.get_log("browser") == []
    assert {address for address in requested(chromium) if not address.startswith("data:")} == {page}


def resize(driver: Chrome, width: int) -> None:
    """A window as wide as a telephone's is narrower than Chromium makes one by itself."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def wait(driver: Chrome, condition) -> None:
    WebDriverWait(driver, WAIT_S, poll_frequency=0.02).until(lambda _: condition())


def requested(driver: Chrome) -> list[str]:
    """Addresses of all requests since the log was last read."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def part(driver: Chrome, name: str):
    return driver.find_element(By.CSS_SELECTOR, f'[data-part="{name}"]')


def picture(driver: Chrome):
    return part(driver, "picture")


def pixels(driver: Chrome) -> str:
    return driver.execute_script("return arguments[0].toDataURL()", picture(driver))


def in_colour(driver: Chrome, rgb: str) -> int:
    """Pixels of the picture in just this colour."""
    script = """
      const [canvas, wanted] = arguments, {width, height} = canvas;
      const copy = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
      copy.drawImage(canvas, 0, 0);
      const {data} = copy.getImageData(0, 0, width, height);
      let found = 0;
      for (let i = 0; i < data.length; i += 4) found += data.slice(i, i + 3).join() === wanted;
      return found;
    """
    return driver.execute_script(script, picture(driver), rgb)


def column(driver: Chrome, table: str, number: int) -> list[str]:
    rows = driver.find_elements(By.XPATH, f'//table[caption="{table}"]/tbody/tr')
    return [row.find_elements(By.CSS_SELECTOR, "th, td")[number].text for row in rows]


def heading(driver: Chrome, table: str, name: str):
    return driver.find_element(By.XPATH, f'//table[caption="{table}"]//th[normalize-space()="{name}"]')


def test_the_worst_patient_opens_at_its_slice_with_most_tumour(browser: Chrome) -> None:
    cases = [case.text.split() for case in browser.find_elements(By.CSS_SELECTOR, ".case")]
    assert [case[0] for case in cases] == [NAMES[2], NAMES[0], NAMES[1]]
    assert cases[2][1] == "1.000"
    worst = phantom_run().slices[2]["slices"]
    most = max(worst, key=lambda each: each["tp"] + each["fn"])
    assert picture(browser).get_attribute("data-drawn") == f"{NAMES[2]} {most['slice']}"
    assert part(browser, "where").text == f"Slice {most['slice']} of 8"
    assert part(browser, "fn").text.split() == [str(most["fn"]), "px"]
    total = 2 * most["tp"] + most["fp"] + most["fn"]
    assert part(browser, "slice-dice").text == f"{2 * most['tp'] / total:.3f}"


def test_arrow_keys_move_through_slices_and_patients(browser: Chrome) -> None:
    slider, before = part(browser, "slider"), pixels(browser)
    begin = int(slider.get_attribute("value"))
    slider.send_keys(Keys.ARROW_LEFT)
    wait(browser, lambda: pixels(browser) != before)
    assert int(slider.get_attribute("value")) == begin - 1
    assert f"Slice {begin} of 8" in (slider.get_attribute("aria-valuetext") or "")
    slider.send_keys(Keys.END)
    wait(browser, lambda: picture(browser).get_attribute("data-drawn") == f"{NAMES[2]} 8")
    browser.find_element(By.CSS_SELECTOR, '[name="case"]').send_keys(Keys.ARROW_DOWN)
    wait(browser, lambda: str(picture(browser).get_attribute("data-drawn")).startswith(NAMES[0]))
    assert part(browser, "patient").text == NAMES[0]


def test_the_bars_over_the_slider_choose_a_slice(browser: Chrome) -> None:
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", part(browser, "profile"))
    script = """
      const {left, top, width} = arguments[0].getBoundingClientRect();
      return [left + 10, left + width - 10, top + 10];
    """
    first, last, y = browser.execute_script(script, part(browser, "profile"))
    for x, number in ((first, 1), (last, 8)):
        for kind in ("mousePressed", "mouseReleased"):
            event = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
            browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)
        wait(browser, lambda n=number: part(browser, "where").text == f"Slice {n} of 8")


def test_outlines_and_error_map_are_drawn_when_asked_for(browser: Chrome) -> None:
    truth, prediction, outlined = "255,214,10", "50,165,255", pixels(browser)
    assert in_colour(browser, truth) > 0
    assert in_colour(browser, prediction) > 0
    part(browser, "errors").click()
    wait(browser, lambda: pixels(browser) != outlined)
    part(browser, "truth").click()
    wait(browser, lambda: in_colour(browser, truth) == 0)
    assert in_colour(browser, prediction) > 0
    part(browser, "prediction").click()
    wait(browser, lambda: in_colour(browser, prediction) == 0)
    mapped = pixels(browser)
    part(browser, "errors").click()
    wait(browser, lambda: pixels(browser) != mapped)
    scan = pixels(browser)
    part(browser, "truth").click()
    part(browser, "prediction").click()
    wait(browser, lambda: pixels(browser) == outlined)
    assert scan not in (mapped, outlined)


def test_a_click_on_a_heading_sorts(browser: Chrome) -> None:
    table = "Scores by patient"
    dice_head = heading(browser, table, "Dice")
    assert column(browser, table, 0) == [NAMES[2], NAMES[0], NAMES[1]]
    assert dice_head.get_attribute("aria-sort") == "ascending"
    dice_head.find_element(By.TAG_NAME, "button").click()
    assert column(browser, table, 0) == [NAMES[1], NAMES[0], NAMES[2]]
    assert dice_head.get_attribute("aria-sort") == "descending"
    heading(browser, table, "Patient").find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert column(browser, table, 0) == list(NAMES)
    assert dice_head.get_attribute("aria-sort") is None
    distance = heading(browser, table, "HD95, px").find_element(By.TAG_NAME, "button")
    for _ in range(2):  # What is not known comes last, whichever way the others go.
        distance.click()
        assert column(browser, table, 0)[0] == NAMES[0]


def test_every_table_sorts(browser: Chrome) -> None:
    tables = browser.find_elements(By.TAG_NAME, "table")
    assert len(tables) == 3
    for table in tables:
        heads = table.find_elements(By.CSS_SELECTOR, "thead th:not([data-fixed])")
        assert all(head.find_elements(By.TAG_NAME, "button") for head in heads)
    browser.find_element(By.XPATH, '//summary[.="Every epoch"]').click()
    heading(browser, "Metrics by epoch", "epoch").find_element(By.TAG_NAME, "button").click()
    assert column(browser, "Metrics by epoch", 0) == ["3", "2", "1"]


def test_light_and_dark_follow_the_system_until_the_button_is_pressed(browser: Chrome) -> None:
    def system(scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def paper() -> str:
        return browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    button = browser.find_element(By.ID, "theme")
    system("light")
    wait(browser, lambda: button.text == "Dark")
    light = paper()
    system("dark")
    wait(browser, lambda: button.text == "Light")
    dark = paper()
    assert dark != light
    button.click()
    assert paper() == light
    system("light")
    button.click()
    assert paper() == dark


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_no_wider_than_the_window(browser: Chrome, width: int) -> None:
    resize(browser, width)
    wait(browser, lambda: browser.execute_script("return innerWidth") == width)
    for details in browser.find_elements(By.TAG_NAME, "details"):
        browser.execute_script("arguments[0].open = true", details)
    needed, given = browser.execute_script(
        "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
    )
    assert needed == given > 0.9 * width  # The rest is a scroll bar.
    wait(browser, lambda: 0.8 * min(512, width) < picture(browser).rect["width"] <= width)


def search_of(rates: list[float]) -> SearchRecord:
    rows = [
        {"trial": n, "optim.lr": rate, "dice": 0.5 + n / 10, "epochs": 1, "status": "finished"}
        | {"seconds": 1.0, "scores": [0.5 + n / 10], "error": None}
        for n, rate in enumerate(rates)
    ]
    best = len(rates) - 1
    return SearchRecord("s", "random", "dice", ["optim.lr"], frozenset(), 1, rows, best, [], {}, "", "")


def test_the_trials_of_a_search_sort(chromium: Chrome, tmp_path: Path) -> None:
    page = write_search_page(search_of([1e-3, 2e-4, 1e-2]), tmp_path / "search.html").as_uri()
    chromium.get_log("performance")
    chromium.get(page)
    table = "Trials, best first"
    assert column(chromium, table, 0) == ["2", "1", "0"]
    assert heading(chromium, table, "dice").get_attribute("aria-sort") == "descending"
    heading(chromium, table, "optim.lr").find_element(By.TAG_NAME, "button").click()
    assert column(chromium, table, 1) == ["0.01", "0.001", "0.0002"]
    heading(chromium, table, "optim.lr").find_element(By.TAG_NAME, "button").click()
    assert column(chromium, table, 0) == ["1", "0", "2"]
    assert chromium.find_element(By.ID, "theme").text in ("Light", "Dark")
    assert chromium.get_log("browser") == []
    assert {address for address in requested(chromium) if not address.startswith("data:")} == {page}
