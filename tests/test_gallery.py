"""The gallery's page: as its markup says, and as a browser shows it."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser

import pytest
from PIL import Image

from vgift_plugin import Sample, get_task
from vgift_plugin.data.photos import from_folder
from vgift_plugin.methods.vgift.flags import VgiftFlags
from vgift_plugin.methods.vgift.gallery import gallery, one_a_line
from vgift_plugin.methods.vgift.preview import preview
from vgift_plugin.methods.vgift.stream import Stream

N = 6
TASKS = "rotation,color,correspondence"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is on the PATH")


class Elements(HTMLParser):
    """All elements of a page as {attribute: value}, with "tag" and the "text" directly inside."""

    def __init__(self, html):
        super().__init__()
        self.all, self.open = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.all.append({"tag": tag, "text": "", **dict(attrs)})
        if tag not in ("meta", "img", "input"):
            self.open.append(self.all[-1])

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag, "elements are closed in their order"

    def handle_data(self, data):
        if self.open:
            self.open[-1]["text"] += data

    def of(self, **wanted):
        return [one for one in self.all if all(one.get(name.rstrip("_")) == value for name, value in wanted.items())]


@pytest.fixture(scope="module")
def page(photos, tmp_path_factory):
    """The page of real samples; one photograph has a name full of HTML."""
    folder = tmp_path_factory.mktemp("gallery")
    shutil.copytree(photos, folder / "photos")
    (folder / "photos" / "rocket.jpg").rename(folder / "photos" / "<script>alert('&amp;\")<b>.jpg")
    preview({"ssl_tasks": TASKS}, str(folder / "photos"), None, N, str(folder / "gallery.html"))
    return folder / "gallery.html"


@pytest.fixture(scope="module")
def samples(page):
    """{task: its samples}, made anew."""
    source = from_folder(str(page.parent / "photos"))
    return {
        ask.task.name: [Stream(ask.task, source, 0)(0, j) for j in range(N)]
        for ask in VgiftFlags(ssl_tasks=TASKS).tasks()
    }


def test_every_tab_leads_to_its_panel_and_every_sample_is_in_it(page, samples):
    elements = Elements(page.read_text())
    assert not elements.open
    ids = [one["id"] for one in elements.all if "id" in one]
    assert len(ids) == len(set(ids))
    tabs, panels = elements.of(role="tab"), elements.of(role="tabpanel")
    assert [tab["text"] for tab in tabs] == list(samples)
    assert [tab["aria-controls"] for tab in tabs] == [panel["id"] for panel in panels]
    assert [panel["aria-labelledby"] for panel in panels] == [tab["id"] for tab in tabs]
    assert not any("hidden" in panel for panel in panels)  # all is there without JavaScript
    made = [sample for some in samples.values() for sample in some]
    assert [figure["data-answer"] for figure in elements.of(tag="figure")] == [sample.response for sample in made]
    assert [one["text"] for one in elements.of(class_="ask")] == [sample.instruction for sample in made]
    assert [(image["width"], image["height"]) for image in elements.of(tag="img")] == [
        (str(sample.image.width), str(sample.image.height)) for sample in made
    ]
    for one, sample in zip(elements.of(tag="pre"), made, strict=True):
        *sources, params = one["text"].split("\n", len(sample.sources))
        assert tuple(sources) == sample.sources and json.loads(params) == sample.params


def test_names_full_of_html_are_text_and_nothing_comes_from_outside(page):
    html = page.read_text()
    elements = Elements(html)
    assert any("<script>alert('&amp;\")<b>.jpg" in one["text"] for one in elements.of(class_="from"))
    assert len(elements.of(tag="script")) == 1 and not elements.of(tag="b") and not elements.of(tag="link")
    assert "://" not in html and "@import" not in html and "url(" not in html
    assert {one["src"][:23] for one in elements.all if "src" in one} == {"data:image/jpeg;base64,"}
    (policy,) = elements.of(**{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy["content"]


def toy(answers):
    task = get_task("rotation")()
    image = Image.new("RGB", (32, 24), "teal")
    return Elements(gallery([("toy", task, [Sample("toy", image, "?", answer, {}) for answer in answers])], ""))


def test_few_short_answers_are_buttons_and_others_are_searched():
    answers = ["no", "90", "9", "no", "180"]
    buttons = [one["data-answer"] for one in toy(answers).all if "data-answer" in one and one["tag"] == "button"]
    assert buttons == ["9", "90", "180", "no"]
    few, many = [str(k) for k in range(12)], [str(k) for k in range(13)]
    assert not toy(few).of(tag="input") and len(toy(few).of(**{"aria-pressed": "false"})) == 12
    for others in (many, ["A-3, B-1, C-2, D-4, E-5"]):
        assert toy(others).of(type="search") and not toy(others).of(**{"aria-pressed": "true"})


def test_choices_have_a_line_each():
    params = {"points": [[1, 2], [3, 4]], "word": "grün"}
    assert one_a_line(params) == '{\n "points": [[1, 2], [3, 4]],\n "word": "grün"\n}'


def test_a_heavy_page_is_told(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[preview.__module__], "HEAVY_MB", 0.01)
    told = preview({"ssl_tasks": "rotation"}, str(photos), None, 2, str(tmp_path / "x.html"))
    assert told.endswith("MB, a smaller -n opens faster")


def browse(page, script="", link="", *options):
    """Opens the page in a browser, runs a script in it that fills `seen`, and returns that."""
    acted = page.with_name("acted.html")
    told = f"<script>const seen = {{}}; {script}; document.title = JSON.stringify(seen)</script>"
    acted.write_text(page.read_text().replace("</body>", told + "</body>"))
    common = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'browser'}"]
    command = [BROWSER, *common, "--window-size=1280,900", "--virtual-time-budget=2000", *options]
    output = [] if options else ["--dump-dom"]
    done = subprocess.run(
        [*command, *output, f"file://{acted}{link}"], capture_output=True, text=True, timeout=120, check=True
    )
    return None if options else json.loads(Elements(done.stdout).of(tag="title")[0]["text"])


STATE = """
const state = () => ({
  hash: location.hash,
  open: [...document.querySelectorAll("[role=tabpanel]")].filter(p => p.checkVisibility()).map(p => p.id),
  chosen: document.querySelector("[aria-selected=true]").textContent,
  shown: [...document.querySelectorAll("figure")].filter(f => f.checkVisibility()).map(f => f.dataset.answer),
  count: document.querySelector("section:not([hidden]) .count").textContent,
});
const press = (on, key) => on.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const tabs = document.querySelectorAll("[role=tab]");
"""


@needs_browser
def test_a_browser_shows_tabs_filters_and_pictures(page, samples):
    answers = {name: [sample.response for sample in some] for name, some in samples.items()}
    common = Counter(answers["rotation"]).most_common(1)[0][0]
    seen = browse(
        page,
        STATE
        + f"""
        seen.first = state();
        seen.widths = [...document.images].slice(0, {N}).map(i => [i.getBoundingClientRect().width, i.naturalWidth]);
        document.querySelector('.filter [data-answer="{common}"]').click(); seen.filtered = state();
        document.querySelector('.filter [value=all]').click(); seen.all = state();
        tabs[1].click(); seen.clicked = state();
        const search = document.querySelector("input[type=search]");
        search.value = "b-2 A-1"; search.oninput(); seen.searched = state();
        press(tabs[1], "ArrowRight"); seen.right = state(); seen.focus = document.activeElement === tabs[2];
        press(tabs[2], "ArrowRight"); seen.around = state(); press(tabs[0], "End"); seen.end = state();
        press(tabs[2], "ArrowLeft"); seen.left = state();
        const dialog = document.querySelector("dialog");
        const figures = document.querySelectorAll("section:last-of-type figure");
        figures[0].querySelector(".mat").click();
        const large = dialog.querySelector("img");
        seen.larger = dialog.open && large.getBoundingClientRect().width > figures[0].querySelector("img").width;
        press(dialog, "ArrowRight"); seen.next = large.src === figures[1].querySelector("img").src;
        dialog.click(); seen.closed = !dialog.open;
        """,
    )
    assert seen["first"] == {
        "hash": "",
        "open": ["rotation"],
        "chosen": "rotation",
        "shown": answers["rotation"],
        "count": f"{N} of {N} shown",
    }
    assert [width for width, _ in seen["widths"]] == [sample.image.width for sample in samples["rotation"]]
    assert [natural for _, natural in seen["widths"]] == [sample.image.width for sample in samples["rotation"]]
    same = [answer for answer in answers["rotation"] if answer == common]
    assert 0 < len(same) < N and seen["filtered"]["shown"] == same
    assert seen["filtered"]["count"] == f"{len(same)} of {N} shown" and seen["all"]["shown"] == answers["rotation"]
    assert seen["clicked"]["open"] == ["color"] and seen["clicked"]["hash"] == "#color"
    found = [answer for answer in answers["color"] if "A-1" in answer and "B-2" in answer]
    assert seen["searched"]["shown"] == found and seen["searched"]["count"] == f"{len(found)} of {N} shown"
    assert seen["right"]["open"] == ["correspondence"] and seen["focus"]
    assert seen["around"]["chosen"] == "rotation" and seen["end"]["chosen"] == "correspondence"
    assert seen["left"]["chosen"] == "color"
    assert seen["larger"] and seen["next"] and seen["closed"]


@needs_browser
def test_a_link_opens_its_tab_and_paper_shows_all(page, samples):
    assert browse(page, STATE + "seen.linked = state()", "#color")["linked"]["open"] == ["color"]
    paper = page.with_name("paper.pdf")
    browse(page, "", "", f"--print-to-pdf={paper}")
    assert len(re.findall(rb"/Subtype\s*/Image", paper.read_bytes())) >= 3 * N  # hidden tabs are printed too
