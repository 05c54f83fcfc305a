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
      const words = search.value.toLowerCase().split(/[\s,]+/);
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
