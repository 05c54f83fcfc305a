"""The gallery's page: a tab a task, filtered by answer, every picture at the size it was painted.

Without JavaScript, and on paper, all sections stand one after the other.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ...report.page import document, picture
from ...tasks.catalogue import summary
from ...tasks.task import Params, Sample, Task

Section = tuple[str, Task, list[Sample]]  # title, task, samples
MOST_BUTTONS, LONGEST_BUTTON = 12, 16  # answers, letters of one; beyond them answers are searched

STYLE = """\
nav { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: 0 1.6rem; margin: 1.5rem 0 0;
 background: var(--ground); border-bottom: 1px solid var(--line); }
button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
:focus-visible { outline: 2px solid var(--good); outline-offset: 2px; }
nav button { padding: .6rem 0; color: var(--soft); border-bottom: 2px solid transparent; margin-bottom: -1px; }
nav button[aria-selected=true] { color: var(--ink); border-color: var(--good); }
section { scroll-margin-top: 100vh; } /* a link opens a tab, at the top of the page */
nav:not([hidden]) ~ section h2 { margin-top: 1.6rem; }
.filter { display: flex; flex-wrap: wrap; align-items: center; gap: .45rem; margin: 1rem 0; }
.filter button { border: 1px solid var(--line); border-radius: 99px; padding: .1rem .75rem; background: var(--card); }
.filter button span { color: var(--soft); font-size: .85em; }
.filter button[aria-pressed=true] { border-color: var(--good); color: var(--good); }
.filter input { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
 border-radius: 6px; padding: .25rem .6rem; width: 16rem; max-width: 100%; }
.count { margin-left: .4rem; color: var(--soft); font-size: .9em; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.25rem;
 margin-top: 1rem; }
figure { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; background: var(--card); }
.mat { display: grid; place-items: center; width: 100%; background: var(--mat); cursor: zoom-in;
 min-height: min(var(--tall), 336px); }
.mat img { display: block; max-width: 100%; height: auto; }
.mat:focus-visible { outline-offset: -2px; }
figcaption { padding: .8rem 1rem .9rem; font-size: .92em; }
.ask { white-space: pre-line; }
.answer { margin: .4rem 0; font-weight: 600; color: var(--good); }
.from, details { font-size: .87em; color: var(--soft); overflow-wrap: anywhere; }
summary { cursor: pointer; width: max-content; }
details pre { white-space: pre-wrap; margin: .4rem 0 0; font-size: .95em; }
dialog { border: 0; border-radius: 8px; padding: 1rem; max-width: 96vw; max-height: 96vh; cursor: zoom-out;
 color: var(--ink); background: var(--card); }
dialog:focus-visible { outline: none; }
dialog::backdrop { background: #000b; }
dialog img { display: block; height: auto; width: min(90vw, 80vh * var(--ratio)); }
dialog p { margin: .7rem 0 0; }
@page { margin: 14mm; }
@media print {
 body { padding: 0; max-width: none; font-size: 11px; }
 nav, .filter, details { display: none !important; }
 section, section[hidden] { display: block !important; }
 section + section { break-before: page; }
 .grid { grid-template-columns: repeat(3, 1fr); gap: 1.5rem; }
 figure { border: 0; border-radius: 0; }
 .mat { min-height: 0; }
 figcaption { padding: .5rem 0 0; }
}
"""

SCRIPT = """\
{
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const panels = tabs.map(tab => document.getElementById(tab.getAttribute("aria-controls")));
  const choose = at => tabs.forEach((tab, k) => {
    tab.setAttribute("aria-selected", k === at);
    tab.tabIndex = k === at ? 0 : -1;
    panels[k].hidden = k !== at;
  });
  const go = at => {
    choose(at);
    tabs[at].focus();
    history.replaceState(null, "", "#" + panels[at].id);
  };
  const linked = () => panels.findIndex(panel => "#" + panel.id === decodeURIComponent(location.hash));
  tabs.forEach((tab, k) => {
    tab.onclick = () => go(k);
    tab.onkeydown = event => {
      const last = tabs.length - 1;
      const to = {ArrowRight: k < last ? k + 1 : 0, ArrowLeft: k ? k - 1 : last, Home: 0, End: last}[event.key];
      if (to === undefined) return;
      event.preventDefault();
      go(to);
    };
  });
  addEventListener("hashchange", () => linked() >= 0 && choose(linked()));
  choose(Math.max(0, linked()));
  document.querySelector("nav").hidden = false;

  for (const panel of panels) {
    const figures = [...panel.querySelectorAll("figure")];
    const bar = panel.querySelector(".filter");
    const show = fits => {
      for (const figure of figures) figure.hidden = !fits(figure.dataset.answer);
      const left = figures.filter(figure => !figure.hidden).length;
      bar.querySelector(".count").textContent = `${left} of ${figures.length} shown`;
    };
    const buttons = [...bar.querySelectorAll("button")];
    for (const button of buttons) button.onclick = () => {
      for (const other of buttons) other.setAttribute("aria-pressed", other === button);
      show(answer => button.value === "all" || answer === button.dataset.answer);
    };
    const search = bar.querySelector("input");
    if (search) search.oninput = () => {
      const words = search.value.toLowerCase().split(/[\\s,]+/);
      show(answer => words.every(word => answer.toLowerCase().includes(word)));
    };
    bar.hidden = false;
    show(() => true);
  }

  const dialog = document.querySelector("dialog"), large = dialog.appendChild(new Image());
  const words = dialog.appendChild(document.createElement("p"));
  let shown;
  const look = figure => {
    const small = figure.querySelector("img");
    shown = figure;
    large.src = small.src;
    large.alt = words.textContent = `${small.alt}: ${figure.dataset.answer}`;
    large.style.setProperty("--ratio", small.getAttribute("width") / small.getAttribute("height"));
    if (!dialog.open) dialog.showModal();
  };
  for (const mat of document.querySelectorAll(".mat")) mat.onclick = () => look(mat.parentElement);
  dialog.onclick = () => dialog.close();
  dialog.onkeydown = event => {
    const beside = {ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling"}[event.key];
    let next = beside && shown[beside];
    while (next && next.hidden) next = next[beside];
    if (next) look(next);
  };
}
"""


def gallery(shown: Sequence[Section], about: str) -> str:
    """Returns the page.

    Args:
        shown: what is on it, a tab each.
        about: one sentence on where the samples come from, plain text.
    """
    names = [(slug(title), escape(title)) for title, _, _ in shown]
    tabs = "".join(
        f'<button type="button" role="tab" id="tab-{name}" aria-controls="{name}">{words}</button>'
        for name, words in names
    )
    body = (
        f'<h1>What the model is asked</h1><p class="soft">{escape(about)}</p>\n'
        f'<nav role="tablist" aria-label="Tasks" hidden>{tabs}</nav>\n'
        + "\n".join(_section(*section) for section in shown)
        + '\n<dialog aria-label="The picture, larger"></dialog>'
    )
    return document("vgift preview", body, STYLE, SCRIPT)


def slug(title: str) -> str:
    """Returns a title as what stands after the # of a link: `color, published` becomes `color-published`."""
    return "-".join(re.findall(r"\w+", title))


def _section(title: str, task: Task, samples: list[Sample]) -> str:
    tall = max((sample.image.height for sample in samples), default=0)
    figures = "".join(_figure(sample, f"{title} {k}") for k, sample in enumerate(samples, 1))
    return (
        f'<section role="tabpanel" id="{slug(title)}" aria-labelledby="tab-{slug(title)}">'
        f"<h2>{escape(title)}</h2>"
        f'<p class="soft">{escape(summary(type(task)))} Chance {task.chance:.2%}.</p>'
        f"{_filter([sample.response for sample in samples])}"
        f'<div class="grid" style="--tall:{tall}px">{figures}</div></section>'
    )


def _filter(answers: list[str]) -> str:
    """Returns buttons where answers are few and short, else a field to search them; the script shows either."""
    counts = Counter(answers)
    if len(counts) <= MOST_BUTTONS and all(len(answer) <= LONGEST_BUTTON for answer in counts):
        ordered = sorted(counts, key=lambda answer: (not answer.isdecimal(), answer.zfill(LONGEST_BUTTON)))
        inside = f'<button type="button" value="all" aria-pressed="true">all <span>{len(answers)}</span></button>'
        inside += "".join(
            f'<button type="button" data-answer="{escape(answer)}" aria-pressed="false">{escape(answer)} '
            f"<span>{counts[answer]}</span></button>"
            for answer in ordered
        )
    else:
        example = escape(answers[0].split(", ")[0][:LONGEST_BUTTON])
        inside = f'<input type="search" aria-label="Answers with" placeholder="answers with, say, {example}">'
    return f'<div class="filter" hidden>{inside}<span class="count" role="status"></span></div>'


def _figure(sample: Sample, alt: str) -> str:
    redrawn = f", {sample.redraws} passed over before" if sample.redraws else ""
    names = " + ".join(Path(source).name for source in sample.sources)
    made = f"{names} → {sample.image.width}×{sample.image.height}{redrawn}"
    details = "\n".join([*sample.sources, one_a_line(sample.params)])
    return (
        f'<figure data-answer="{escape(sample.response)}">'
        f'<button type="button" class="mat" title="larger">{picture(sample.image, alt)}</button>'
        f'<figcaption><div class="ask">{escape(sample.instruction)}</div>'
        f'<div class="answer">{escape(sample.response)}</div><div class="from">{escape(made)}</div>'
        f"<details><summary>drawn parameters</summary><pre>{escape(details)}</pre></details>"
        "</figcaption></figure>"
    )


def one_a_line(params: Params) -> str:
    """Returns choices as JSON, one key a line: lists of points stay short."""
    lines = (f" {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in params.items())
    return "{\n" + ",\n".join(lines) + "\n}"
