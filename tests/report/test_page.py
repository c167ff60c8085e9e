"""The page as a browser shows it: no errors, no network, no overflow, readable; what it says."""

from __future__ import annotations

from html.parser import HTMLParser
from itertools import pairwise

import pytest

from lora_export.report.facts import read_facts
from lora_export.report.page import page
from lora_export.report.report_files import REPORT_HTML
from lora_export.report.write_report import write_report
from tests.helpers.browser import CHROMIUM, browser
from tests.helpers.showcase import HOSTILE, save_showcase

CONTRAST = """
(() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => [r, g, b]
    .map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length == 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest('progress')) continue;
    const style = getComputedStyle(element);
    const ink = parse(element.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(ground(element))].sort((x, y) => y - x);
    found.push([(a + .05) / (b + .05), walker.currentNode.data]);
  }
  return found.sort((x, y) => x[0] - y[0])[0].concat(found.length);
})()
"""
STRUCTURE = """
({
  headings: [...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1]),
  bareTables: [...document.querySelectorAll('table')].filter(t => !t.caption).length,
  bareHeads: document.querySelectorAll('th:not([scope])').length,
  bareFigures: document.querySelectorAll('svg:not([aria-label])').length,
  scrollers: [...document.querySelectorAll('.scroll')]
    .filter(s => s.tabIndex !== 0 || !s.getAttribute('aria-label')).length,
  deadLinks: [...document.querySelectorAll('a')]
    .filter(a => !document.querySelector(a.getAttribute('href'))).length,
  images: document.querySelectorAll('img,script,iframe,link').length,
  smallest: Math.min(...[...document.querySelectorAll('svg text')]
    .map(t => t.getBoundingClientRect().height)),
})
"""


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    export_dir = save_showcase(tmp_path_factory.mktemp("report") / "out")
    write_report(export_dir)
    return export_dir


REASONS = """(() => {
    const cells = [...document.querySelectorAll('.stack td.long')];
    const cut = cells.filter(c => c.getBoundingClientRect().right > innerWidth);
    return {count: cells.length, cut: innerWidth < 500 ? cut.length : 0};
})()"""
"""How many cells have sentences, and how many of them a phone cuts off."""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_it_is_readable_on_a_desk_and_a_phone_by_day_and_by_night(export):
    with browser() as tab:
        for width in (1280, 390):
            for dark in (False, True):
                tab.open(export / REPORT_HTML, width=width, height=900, dark=dark)
                assert tab.messages == []
                assert tab.requests == [(export / REPORT_HTML).as_uri()]
                assert tab.evaluate("document.documentElement.scrollWidth") == width
                tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
                assert tab.evaluate("document.documentElement.scrollWidth") == width
                least, text, count = tab.evaluate(CONTRAST)
                reasons = tab.evaluate(REASONS)
                assert reasons["count"] > 5
                assert reasons["cut"] == 0, width
                assert least >= 4.5, (least, text, width, dark)
                assert count > 300
                ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (ground == "rgb(13, 17, 23)") == dark
        found = tab.evaluate(STRUCTURE)
    levels = found.pop("headings")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert found.pop("smallest") >= 10
    assert set(found.values()) == {0}, found


class Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.text, self.tags, self.attributes = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def parsed(html):
    parser = Text()
    parser.feed(html)
    return parser, " ".join("".join(parser.text).split())


def test_strangers_names_are_text(export):
    parser, text = parsed((export / REPORT_HTML).read_text())
    assert HOSTILE in text
    assert not {"script", "img", "iframe", "object", "link"} & parser.tags
    assert not [name for name, _ in parser.attributes if name.startswith("on")]
    assert not [v for k, v in parser.attributes if k in {"src", "href"} and not v.startswith("#")]


def test_it_says_what_was_merged_how_well_and_how_fast(export):
    _, text = parsed((export / REPORT_HTML).read_text())
    for fact in (
        "support-intents, billing_intents and a-very-long-adapter-name-of-",
        "her on BertForSequenceClassification", "Verified on 2026-11-30", "✗ fail", "78 of 78",
        "Verify again in the directory of the export: lora-export verify . --base", "26 of 26",
        "3.40e-07", "PEFT, unmerged, float32", "0.9150", "-0.0050 [-0.0125, +0.0000]",
        "1.160 [1.130,", "Relative error in bert.encoder.layer of support-intents",
        "int4, blocks of 32", "cosine of the update",
        "onnxruntime 1.32.0", "150.0 kB", "91.7 MB", "AMD EPYC",
    ):  # fmt: skip
        assert fact in text, fact


def test_the_same_facts_give_the_same_bytes(export, tmp_path):
    other = save_showcase(tmp_path / "elsewhere")
    write_report(other)
    assert (other / REPORT_HTML).read_bytes() == (export / REPORT_HTML).read_bytes()
    write_report(other)
    assert (other / REPORT_HTML).read_bytes() == (export / REPORT_HTML).read_bytes()


def test_an_export_without_reports_has_a_page(tmp_path):
    export_dir = save_showcase(tmp_path / "out")
    for path in (export_dir / "reports").iterdir():
        path.unlink()
    text = parsed(page(read_facts(export_dir)))[1]
    assert "not verified" in text
    assert "Latency" not in text
