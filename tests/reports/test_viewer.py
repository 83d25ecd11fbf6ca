"""viewer.html in a real browser: what is drawn, by keys and by hand; what a hostile name can do; what it weighs; who is on it."""

import base64
import json
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scored_runs import scored_run

from brainseg.compare import publish
from brainseg.comparison.compare import compare_runs
from brainseg.comparison.runs import ScoredRun
from brainseg.config import CompareConfig, CompareTrackingConfig
from brainseg.data.store import Store
from brainseg.reports import viewer
from brainseg.reports.predictions import Prediction, write_predictions
from brainseg.reports.viewer import Case, choose_patients

SLICES, SIDE = 12, 40
CHANNELS = ("pre-contrast", "FLAIR", "post-contrast")
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&amp;'\""
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,900",
]
YELLOW, BLUE, VERMILLION = (
    (240, 228, 66),
    (86, 180, 233),
    (213, 94, 0),
)  # truth, the first run, the second


def square(slices: range, first: int, side: int, value: int = 1) -> np.ndarray:
    mask = np.zeros((SLICES, SIDE, SIDE), np.uint8)
    mask[slices.start : slices.stop, first : first + side, first : first + side] = value
    return mask


def images(seed: int = 0) -> np.ndarray:
    """Each channel of each slice has a grey level of its own: 20 * channel + 10 * slice, and one white pixel."""
    levels = np.add.outer(10 * np.arange(SLICES), 20 * np.arange(3) + seed)
    found = np.broadcast_to(levels[:, :, None, None], (SLICES, 3, SIDE, SIDE)).astype(np.uint8)
    found[:, :, :8, :8] = 255
    return found


def case(
    name: str,
    dice: float = 0.5,
    other: float | None = 0.4,
    truth: np.ndarray | None = None,
    **further: Any,
) -> Case:
    truth = square(range(3, 9), 10, 12) if truth is None else truth
    truth[6, 30:34, 20:30] = truth.max()  # the largest slice is the seventh
    predictions = [
        square(range(4, 8), 12, 12, truth.max()),
        None if other is None else square(range(0, 2), 14, 14),
    ]
    return Case(
        name, images(), CHANNELS, truth, predictions, [dice, other], **{"role": "test"} | further
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no browser here (chromium, chromedriver)")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(
        options, webdriver.ChromeService(shutil.which("chromedriver"))
    )  # with a new, empty profile
    yield driver
    driver.quit()


class Page:
    """The open page: keys, and what is on its screen."""

    def __init__(self, browser: Any, path: Path, place: str = "") -> None:
        self.browser = browser
        browser.get("about:blank")  # a new hash alone would not load it again
        browser.get(path.as_uri() + place)
        self.drawn()

    def run(self, script: str) -> Any:
        return self.browser.execute_script(script)

    def drawn(self) -> None:
        """Until the image of the patient is decoded and drawn."""
        wait = "const done = arguments[0]; (function look() { if (mosaic) done(); else setTimeout(look, 10); })()"
        self.browser.execute_async_script(wait)

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()
        self.drawn()

    def text(self, name: str) -> str:
        return self.browser.find_element("id", name).text

    @property
    def place(self) -> tuple[str, int]:
        return self.text("patient"), int(self.text("where").split()[1])

    @property
    def pixels(self) -> np.ndarray:
        """RGB (H, W, 3) of the image's canvas."""
        png = self.run("return document.getElementById('image').toDataURL()").partition(",")[2]
        return np.asarray(Image.open(BytesIO(base64.b64decode(png))).convert("RGB"))

    def grey(self) -> float:
        """In the lower left corner, where there is never a mask."""
        height = len(self.pixels)
        corner = self.pixels[round(0.85 * height) : round(0.95 * height), : round(0.1 * height)]
        assert np.ptp(corner, axis=2).max() == 0, "an image without masks is grey"
        return float(corner.mean())

    def has(self, colour: tuple[int, int, int]) -> int:
        return int((self.pixels == colour).all(axis=2).sum())

    def names(self) -> list[str]:
        return [one.text for one in self.browser.find_elements("css selector", "#patients .name")]

    def faults(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dice 0.9, 0.2, 0.5 by name; the largest tumour is that of b; c was not segmented by the second run."""
    path = tmp_path_factory.mktemp("viewer") / "viewer.html"
    larger = square(range(3, 9), 10, 20)
    cases = [
        case("a", 0.9, 0.1),
        case("b", 0.2, 0.3, larger, spacing=(5.0, 1.0, 1.0)),
        case("c", 0.5, None),
    ]
    viewer.write_viewer(
        path, cases, ["unet", "deeper"], "Three of them", ["a note"], left_out=["d", "e"]
    )
    return path


@pytest.fixture
def page(browser: Any, three: Path) -> Page:
    return Page(browser, three)


def test_it_opens_at_the_worst_patient_and_its_largest_slice(page: Page) -> None:
    assert page.names() == ["b", "c", "a"] and page.place == ("b", 7)
    assert page.browser.title == "Three of them" and "a note" in page.text("notes")
    assert "2 more scored" in page.text("left-out")
    assert page.faults() == []


def test_keys_and_the_slider_go_through_the_slices(page: Page) -> None:
    from selenium.webdriver import Keys

    before = page.grey()
    page.press(Keys.ARROW_RIGHT)
    assert page.place == ("b", 8) and page.grey() > before
    page.press(Keys.ARROW_DOWN, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert page.place == ("b", 5) and page.grey() < before
    page.press(Keys.END, Keys.ARROW_UP)
    assert page.place == ("b", 12), "there is no slice beyond the last"
    page.press(Keys.PAGE_DOWN)
    assert page.place == ("b", 7)
    page.run(
        "const s = document.getElementById('slice'); s.value = 2; s.dispatchEvent(new Event('input'))"
    )
    assert page.place == ("b", 3)
    page.browser.find_element("id", "slice").send_keys(Keys.ARROW_RIGHT)
    assert page.place == ("b", 4), "one slice, not two, when the slider has the focus"
    page.press(Keys.HOME)
    assert page.place == ("b", 1)
    page.press("g")
    assert page.place == ("b", 7)


def test_every_slice_and_channel_is_the_one_that_was_given(page: Page) -> None:
    from selenium.webdriver import Keys

    page.press("h", Keys.HOME)
    page.run("setWindow(127.5, 255)")  # grey values as they are
    for slice_ in range(SLICES):
        assert page.grey() == pytest.approx(10 * slice_ + 20, abs=3)
        page.press(Keys.ARROW_RIGHT)
    for channel in (2, 0):  # FLAIR, the second, is what it opens with
        page.press("c")
        page.run("setWindow(127.5, 255)")
        assert page.grey() == pytest.approx(10 * (SLICES - 1) + 20 * channel, abs=3)
    assert CHANNELS[0] in page.browser.find_element("id", "image").get_attribute("aria-label")


def test_truth_and_each_prediction_are_switched_on_and_off(page: Page) -> None:
    assert page.has(YELLOW) and page.has(BLUE) and not page.has(VERMILLION), (
        "the second run found nothing in this slice"
    )
    page.press("t")
    assert not page.has(YELLOW) and page.has(BLUE)
    page.press("1")
    assert not page.has(BLUE)
    page.press("t")
    assert page.has(YELLOW)
    page.browser.find_element("css selector", "#masks input[data-source='1']").click()
    assert page.has(BLUE)
    page.press("h")
    assert not page.has(YELLOW) and not page.has(BLUE)
    page.press("h")
    assert page.has(YELLOW) and page.has(BLUE)
    page.press("p", "g")
    page.run("go(0)")
    assert page.has(VERMILLION) and not page.has(YELLOW)


def test_the_outline_lies_where_the_mask_is(page: Page) -> None:
    page.press("1")
    yellow = np.argwhere((page.pixels == YELLOW).all(axis=2)) * SIDE / len(page.pixels)
    assert yellow.min(axis=0) == pytest.approx([10, 10], abs=0.4) and yellow.max(
        axis=0
    ) == pytest.approx([34, 30], abs=0.4)


def test_fill_tints_the_inside_that_an_outline_leaves_free(page: Page) -> None:
    page.press("1", "f")
    middle = page.pixels[len(page.pixels) // 2, len(page.pixels) // 2].astype(int)
    assert middle[0] - middle[2] > 30, "yellow: much red, little blue"
    page.press("f")
    assert np.ptp(page.pixels[len(page.pixels) // 2, len(page.pixels) // 2]) == 0


def test_closer_fills_the_image_with_the_tumour(page: Page) -> None:
    page.press("1")
    far = page.has(YELLOW) / len(page.pixels)
    page.press("z")
    yellow = np.argwhere((page.pixels == YELLOW).all(axis=2)) / len(page.pixels)
    assert page.has(YELLOW) / len(page.pixels) > far and np.ptp(yellow, axis=0).max() > 0.55


def test_contrast_and_brightness(page: Page) -> None:
    before = page.grey()
    page.press(*"...")
    assert page.grey() > before, "brighter"
    page.press("r")
    assert page.grey() == before
    page.run(
        "const s = document.getElementById('brightness'); s.value = 20; s.dispatchEvent(new Event('input'))"
    )
    assert page.grey() < before
    page.press("r", *"+" * 8)
    spread = page.run("return state.high - state.low")
    page.press(*"-" * 4)
    assert page.run("return state.high - state.low") > spread


def test_patients_by_dice_of_each_run_name_and_volume(page: Page) -> None:
    found = {}
    for _ in range(4):
        found[page.browser.find_element("css selector", "#sort option:checked").text] = page.names()
        page.press("s")
    assert found == {
        "Dice of unet, worst first": ["b", "c", "a"],
        "Dice of deeper, worst first": ["a", "b", "c"],
        "name": ["a", "b", "c"],
        "volume, largest first": ["b", "a", "c"],
    }
    page.press("n")
    assert page.place[0] == "c", "the next in the order shown"
    page.press("n", "n", "p", "p", "p", "p")
    assert page.place[0] == "b"
    page.browser.find_elements("css selector", "#patients button")[2].click()
    page.drawn()
    assert page.place[0] == "a"


def test_volume_in_ml_where_the_spacing_is_known_else_in_voxels(page: Page) -> None:
    assert (
        f"{(6 * 400 + 40) * 5 / 1000:.1f}" in page.text("masks")
        and page.text("unit") == "ml"
        and "0.200" in page.text("masks")
    )
    page.press("n")
    assert (
        "904" in page.text("masks")
        and page.text("unit") == "voxels"
        and "test patient" in page.text("role")
    )


def test_a_link_names_patient_and_slice(page: Page, three: Path) -> None:
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    page.press("n", Keys.ARROW_RIGHT)
    WebDriverWait(page.browser, 10).until(
        lambda browser: browser.current_url.endswith("#patient=c&slice=8")
    )
    assert Page(page.browser, three, "#patient=a&slice=2").place == ("a", 2)
    assert Page(page.browser, three, "#patient=a&slice=9999").place == ("a", 12)
    assert Page(page.browser, three, "#patient=nobody&slice=2").place == ("b", 7)
    page.run("location.hash = '#patient=c&slice=3'")
    WebDriverWait(page.browser, 10).until(lambda _: page.place == ("c", 3))


def test_everything_can_be_reached_and_has_a_name(page: Page) -> None:
    """What a screen reader says of each control is not empty, and the keyboard alone gets everywhere."""
    controls = "[...document.querySelectorAll('button, input, select, canvas[role]')].filter(one => one.offsetParent)"
    name = "one.getAttribute('aria-label') || one.textContent.trim() || one.closest('label')?.textContent.trim()"
    named = page.run(f"return {controls}.map(one => {name})")
    assert len(named) > 15 and all(named)
    assert (
        page.run("return document.getElementById('slice').getAttribute('aria-valuetext')")
        == "Slice 7 of 12: truth, unet"
    )
    assert page.run(
        "return [...document.querySelectorAll('button, input, select')].every(one => one.tabIndex === 0)"
    )


def test_a_narrow_screen_needs_no_scrolling_sideways(page: Page) -> None:
    page.browser.set_window_size(500, 900)
    try:
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")
        assert page.run("return document.getElementById('image').clientWidth") > 200
    finally:
        page.browser.set_window_size(1400, 900)


def test_several_classes(browser: Any, tmp_path: Path) -> None:
    truth = square(range(3, 9), 10, 12)
    truth[:, 16:22] *= 3
    viewer.write_viewer(
        tmp_path / "page.html",
        [case("a", truth=truth)],
        ["unet", "other"],
        classes=["background", "oedema", "core", "rim"],
    )
    page = Page(browser, tmp_path / "page.html")
    page.press("1")
    both = page.has(YELLOW)
    page.press("k")
    assert (
        page.browser.find_element("css selector", "#class option:checked").text == "oedema"
        and 0 < page.has(YELLOW) < both
    )
    page.press("k")
    assert not page.has(YELLOW), "no pixel of the second class"
    page.press("k", "k", "b")
    assert not page.has(YELLOW) and page.has((230, 159, 0)) and page.has((204, 121, 167)), (
        "each class in its colour"
    )
    assert page.faults() == []


def test_a_hostile_name_runs_nothing(browser: Any, tmp_path: Path) -> None:
    given_ = [
        Case(
            HOSTILE,
            images(),
            [HOSTILE] * 3,
            square(range(3), 5, 9),
            [square(range(3), 5, 9)],
            [0.5],
            HOSTILE,
        )
    ]
    viewer.write_viewer(
        tmp_path / "page.html",
        given_,
        [HOSTILE],
        HOSTILE,
        [HOSTILE],
        ["background", HOSTILE, HOSTILE],
        [HOSTILE],
    )
    page = Page(browser, tmp_path / "page.html")
    assert (
        page.browser.title == HOSTILE
        and page.text("patient") == HOSTILE
        and page.names() == [HOSTILE]
    )
    assert not page.browser.find_elements("tag name", "img") and page.faults() == []


def test_no_other_script_may_run(browser: Any, three: Path, tmp_path: Path) -> None:
    """Were a text not escaped one day, the policy would still stop it."""
    (tmp_path / "page.html").write_text(
        three.read_text().replace("<main>", "<script>document.title='owned'</script><main>")
    )
    page = Page(browser, tmp_path / "page.html")
    assert page.browser.title == "Three of them" and "Content Security Policy" in page.faults()[0]


def test_a_page_without_truth_or_patients_opens(browser: Any, tmp_path: Path) -> None:
    """As of scans that nobody has outlined yet: float images, one channel, one slice."""
    lone = Case(
        "a",
        np.random.default_rng(0).normal(size=(1, 1, 33, 21)),
        ["T2"],
        None,
        [np.ones((1, 33, 21), np.uint8)],
        [None],
    )
    viewer.write_viewer(tmp_path / "page.html", [lone], ["unet"])
    page = Page(browser, tmp_path / "page.html")
    assert (
        page.place == ("a", 1)
        and page.has(YELLOW) == 0
        and page.pixels.any()
        and page.faults() == []
    )
    rows = browser.find_elements("css selector", "#masks tr")
    assert [row.text.split()[0] for row in rows if row.is_displayed()] == ["unet"], (
        "no row for a truth that is not there"
    )
    page.press("t", "h", "h")
    assert page.faults() == []
    viewer.write_viewer(tmp_path / "none.html", [], ["unet"])
    browser.get((tmp_path / "none.html").as_uri())
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def parsed(path: Path, name: str) -> Any:
    return json.loads(path.read_text().split(f'id="{name}">')[1].split("</script>")[0])


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.integers(1, 255))
@settings(max_examples=50)
def test_runs_give_the_mask_back(seed: int, height: int, width: int, classes: int) -> None:
    mask = np.random.default_rng(seed).integers(0, classes + 1, (height, width)).astype(np.uint8)
    runs = np.frombuffer(base64.b64decode(viewer._encode_runs(mask)), "<u4")
    assert np.array_equal(np.repeat(runs & 255, runs >> 8), mask.ravel() if mask.any() else [])


@given(
    st.lists(st.tuples(st.sampled_from(viewer.ROLES), st.floats(0, 1)), max_size=40),
    st.integers(0, 25),
)
def test_the_most_telling_are_of_the_first_role_and_hold_its_worst_and_best(
    scores: list[tuple[str, float]], count: int
) -> None:
    chosen = choose_patients(scores, count)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(count, len(scores))
    roles = [scores[index][0] for index in chosen]
    left = [scores[index][0] for index in range(len(scores)) if index not in chosen]
    assert all(
        viewer.ROLES.index(one) <= viewer.ROLES.index(other) for one in roles for other in left
    )
    if count >= 4 and roles:
        first = [score for role, score in scores if role == min(roles, key=viewer.ROLES.index)]
        own = [
            scores[index][1]
            for index in chosen
            if scores[index][0] == min(roles, key=viewer.ROLES.index)
        ]
        assert min(own) == min(first) and max(own) == max(first)


def test_a_patient_weighs_as_much_as_its_pictures(tmp_path: Path) -> None:
    """A phantom slice of 256 x 256 takes at most 12 KB a channel; an empty page no more than its own parts."""
    from brainseg.config import PhantomConfig
    from brainseg.data.phantom.cohort import ensure_cohort

    store = Store(
        ensure_cohort(PhantomConfig(patients=3, slices=8, size=256, folder=str(tmp_path)))
    )
    masks = [store.masks(*store.rows_of(volume))[:, 0] for volume in store.volumes]
    cases = [
        viewer.build_case(store, volume, [mask] * 6, [1.0] * 6, "test")
        for volume, mask in zip(store.volumes, masks, strict=True)
    ]
    sizes = []
    for part in (cases[:1], cases):
        viewer.write_viewer(tmp_path / "page.html", part, [f"run {number}" for number in range(6)])
        sizes.append((tmp_path / "page.html").stat().st_size)
    assert (sizes[1] - sizes[0]) / 2 < 8 * 3 * 12_000 and sizes[0] - (
        sizes[1] - sizes[0]
    ) / 2 < 60_000
    index = parsed(tmp_path / "page.html", "index")
    assert [one["largest"] for one in index["patients"]] == [
        int((mask > 0).sum(axis=(1, 2)).argmax()) for mask in masks
    ]


def test_nothing_is_fetched_and_the_same_input_is_the_same_page(
    three: Path, tmp_path: Path
) -> None:
    text = three.read_text()
    assert (
        "http:" not in text and "https:" not in text and "src=" not in text and "href=" not in text
    )
    for name in "ab":
        viewer.write_viewer(tmp_path / name, [case("a"), case("b")], ["unet", "deeper"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def with_masks(root: Path, data: Path, width: int, dice: float) -> ScoredRun:
    """A scored run on the cohort of `data` that kept its masks: the truth, moved by a pixel."""
    store = Store(data)
    scores = {volume: dice + number / 100 for number, volume in enumerate(store.volumes)}
    run = scored_run(
        root, scores, width=width, data={"path": str(data), "fingerprint": store.fingerprint}
    )
    masks = [
        np.roll(store.masks(*store.rows_of(volume))[:, 0], 1, axis=2) for volume in store.volumes
    ]
    write_predictions(
        run.path / "predictions.h5",
        [Prediction(*one, None) for one in zip(scores, ["test"] * 10, masks, strict=True)],
    )
    return run


def test_compare_shows_the_masks_of_every_configuration_that_kept_them(
    tmp_path: Path, phantom_file: Path
) -> None:
    runs = [
        with_masks(tmp_path / str(width), phantom_file, width, 0.9 - width / 100)
        for width in (8, 16, 32)
    ]
    (runs[1].path / "predictions.h5").unlink()
    config = CompareConfig(viewer=4, tracking=CompareTrackingConfig(name="none"))
    said = publish(compare_runs(runs), tmp_path / "out", config)
    assert str(tmp_path / "out" / "viewer.html") in said
    assert '<a href="viewer.html">' in (tmp_path / "out" / "report.html").read_text()
    index = parsed(tmp_path / "out" / "viewer.html", "index")
    volumes = Store(phantom_file).volumes
    assert index["runs"] == ["width=8", "width=32"] and "2 of 3 configurations" in " ".join(
        index["notes"]
    )
    shown = [volumes[0], volumes[1], volumes[4], volumes[9]]  # Dice rises with the number
    assert [one["name"] for one in index["patients"]] == shown and index["left_out"] == [
        one for one in volumes if one not in shown
    ]
    assert (
        index["patients"][0]["dice"] == pytest.approx([0.82, 0.58])
        and len(set(index["patients"][0]["voxels"])) == 1
    )
    masks = parsed(tmp_path / "out" / "viewer.html", "case-0")["masks"]
    assert masks[1] == masks[2] != masks[0]


def test_no_page_without_masks_or_data_or_on_request(tmp_path: Path, phantom_file: Path) -> None:
    off = CompareTrackingConfig(name="none")
    kept = with_masks(tmp_path / "kept", phantom_file, 8, 0.5)
    cases = {
        "asked": ([kept], 0),
        "gone": ([scored_run(tmp_path / "gone", {"TCGA_A_1_1": 0.5})], 20),
    }
    for name, (runs, count) in cases.items():
        said = publish(
            compare_runs(runs), tmp_path / "out" / name, CompareConfig(viewer=count, tracking=off)
        )
        assert "viewer.html" not in said and not (tmp_path / "out" / name / "viewer.html").exists()
        assert "viewer.html" not in (tmp_path / "out" / name / "report.html").read_text()
