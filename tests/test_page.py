"""What all pages share: output paths, templates, and the layout in a narrow window and on paper."""

import os
import re

import pytest
from jinja2 import UndefinedError
from test_gallery import browse, needs_browser

from vgift_plugin.errors import ConfigError
from vgift_plugin.report.page import check_outputs, render


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("a.pdf",), "must end in .html"),
        (("gone/a.html",), "there is no folder"),
        (("folder.html",), "folder.html exists and is not a regular file"),
        (("a.html", "folder.html"), "folder.html exists and is not a regular file"),
        (("a.html", None, "./a.html"), "./a.html is named for two files"),
        (("a.html", "a.json", os.path.join("folder.html", "..", "a.json")), "is named for two files"),
        (("/proc/a.html",), "/proc/a.html cannot be written"),
    ],
)
def test_what_cannot_be_written_is_told_before_anything_is_measured(tmp_path, monkeypatch, paths, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_outputs(*paths)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]


def test_older_files_may_be_written_over_and_are_left_alone_until_then(tmp_path):
    (tmp_path / "a.html").write_text("older")
    check_outputs(str(tmp_path / "a.html"), None, str(tmp_path / "a.json"))
    assert (tmp_path / "a.html").read_text() == "older" and len(list(tmp_path.iterdir())) == 1


PLOT = """
{% extends "report.html" %}
{% from "macros.html" import plot %}
{% block results %}{% call plot(920, 100) %}<text>x</text>{% endcall %}{% endblock %}
"""
PRINT = """
for (const sheet of document.styleSheets) for (const rule of [...sheet.cssRules])
  if (rule.media?.mediaText === "print")
    for (const inner of rule.cssRules) sheet.insertRule(inner.cssText, sheet.cssRules.length);
"""


def test_values_are_escaped_and_none_may_be_missing(tmp_path):
    own = tmp_path / "own.html"
    own.write_text("{% extends 'report.html' %}{% block about %}{{ about }}{% endblock %}")
    assert "&lt;b&gt; &amp; c" in render(own, about="<b> & c", table="")
    with pytest.raises(UndefinedError, match="'table' is undefined"):
        render(own, about="")


@needs_browser
def test_plots_can_be_read_in_a_narrow_window_and_tables_on_paper(tmp_path):
    page, own = tmp_path / "page.html", tmp_path / "own.html"
    own.write_text(PLOT)
    page.write_text(render(own, table="0123456789" * 12))
    state = """
        document.body.style.width = "%dpx";
        const pre = document.querySelector("pre");
        seen.plot = document.querySelector("svg").getBoundingClientRect().width;
        seen.page = document.querySelector(".plot").getBoundingClientRect().width;
        seen.table = [pre.scrollWidth, pre.clientWidth, pre.getClientRects().length, pre.clientHeight];
    """
    narrow = browse(page, state % 390)
    assert narrow["plot"] > 500 and narrow["page"] < 390
    paper = browse(page, PRINT + state % 700)
    assert paper["table"][0] <= paper["table"][1] and paper["table"][3] < 20  # all letters, in one line
