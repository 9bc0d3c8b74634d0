"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const count = page.places ? page.places.layer.length : 0;
  const views = new Map(), logged = new Set(), at = {};
  let focus = null, pinned = null, drawing = 0;

  // A fresh copy for each chart: Vega marks the rows it takes in.
  function rows() {
    return Array.from({ length: count }, (_, i) => {
      const row = {};
      for (const k in page.places) row[k] = page.places[k][i];
      for (const k in page.values) {
        const v = page.values[k][i];
        if (v !== null) row[k] = v === "x" ? null : v;
      }
      return row;
    });
  }

  function showTip(_, event, item, value) {
    if (!value) { tip.hidden = true; return; }
    const list = document.createElement("dl");
    const row = item.datum.datum ?? {};  // of a nearest point; there Vega-Lite fills in the numbers only
    for (const [title, written] of Object.entries(value)) {
      const text = typeof row[title] === "string" || written === undefined ? row[title] : written;
      if (text === "" || text === null || text === undefined) continue;
      list.append(Object.assign(document.createElement("dt"), { textContent: title }));
      list.append(Object.assign(document.createElement("dd"), { textContent: text }));
    }
    tip.replaceChildren(list);
    tip.hidden = false;
    const right = event.clientX + 16 + tip.offsetWidth > innerWidth;
    const below = event.clientY + 16 + tip.offsetHeight > innerHeight;
    tip.style.left = Math.max(4, right ? event.clientX - 16 - tip.offsetWidth : event.clientX + 16) + "px";
    tip.style.top = Math.max(4, below ? event.clientY - 16 - tip.offsetHeight : event.clientY + 16) + "px";
  }

  const signals = (key) => (page.charts[key].params ?? []).map((p) => p.name);
  function tell(signal, value) {
    for (const [box, view] of views) if (signals(box.dataset.chart).includes(signal)) view.signal(signal, value).runAsync();
  }

  function embed(box, scheme, size) {
    const key = box.dataset.chart, spec = { ...structuredClone(page.charts[key]), ...size };
    if (logged.has(key)) for (const part of spec.layer) if (part.encoding.y?.field) Object.assign(part.encoding.y, page.logs[key]);
    if (count) spec.datasets = { ...spec.datasets, layers: rows() };
    return vegaEmbed(box, spec, {
      mode: "vega-lite", config: page.config[scheme], renderer: count > 800 && !size ? "canvas" : "svg", actions: false,
      defaultStyle: false, tooltip: showTip,
    });
  }

  async function show(box) {
    const mine = drawing;
    const { view } = await embed(box, dark.matches ? "dark" : "light");
    views.get(box)?.finalize();
    views.delete(box);
    if (mine !== drawing) { view.finalize(); return; }
    views.set(box, view);
    const names = signals(box.dataset.chart), here = names.find((name) => name.startsWith("at_"));
    if (!here) return;
    view.addSignalListener("hover", (_, picked) => {
      const place = picked[here.slice(3)]?.[0] ?? null;
      if (place !== at[here]) { at[here] = place; tell(here, place); }
    });
    view.signal("focus", focus).runAsync();
  }

  // What is on the screen follows the reader's scheme and the width of its box; in a folded section it has none.
  async function draw() {
    const mine = ++drawing;
    tip.hidden = true;
    for (const box of document.querySelectorAll(".chart.screen")) {
      if (mine !== drawing) return;
      if (box.clientWidth) await show(box);
    }
  }

  // What is printed is light and as wide as half a page, whatever the screen shows.
  async function drawPrint() {
    for (const box of document.querySelectorAll(".chart.print")) {
      await embed(box, "light", "facet" in page.charts[box.dataset.chart] ? {} : { width: page.printWidth });
    }
  }

  function look(name) {
    focus = name;
    tell("focus", name);
  }
  const chips = [...document.querySelectorAll("[data-name]")];
  const nameOf = (chip) => page.models[Number(chip.dataset.name)];
  for (const chip of chips) {
    chip.addEventListener("pointerenter", () => look(nameOf(chip)));
    chip.addEventListener("pointerleave", () => look(pinned));
    chip.addEventListener("click", () => {
      pinned = pinned === nameOf(chip) ? null : nameOf(chip);
      for (const c of chips) c.setAttribute("aria-pressed", String(nameOf(c) === pinned));
      look(pinned);
    });
  }

  for (const button of document.querySelectorAll("[data-log]")) {
    button.addEventListener("click", () => {
      const key = button.dataset.log;
      if (!logged.delete(key)) logged.add(key);
      button.setAttribute("aria-pressed", String(logged.has(key)));
      show(document.querySelector(`.chart.screen[data-chart="${CSS.escape(key)}"]`));
    });
  }

  // A saved chart stands alone: light, with its title and a legend.
  const legend = { title: null, orient: "bottom", symbolType: "stroke", columns: 3 };
  function legible(part) {
    const color = part.encoding?.color;
    return color?.legend === null && color.type === "nominal"
      ? { ...part, encoding: { ...part.encoding, color: { ...color, legend } } } : part;
  }
  for (const button of document.querySelectorAll("[data-save]")) {
    button.addEventListener("click", async () => {
      const key = button.dataset.save, chart = page.charts[key];
      const box = Object.assign(document.createElement("div"), { className: "chart" });
      box.dataset.chart = key;
      const padding = { left: 12, right: 18, bottom: 14, top: 12 + (chart.padding?.top ?? 0) };
      const title = button.closest("figure").querySelector("h3").textContent;
      const size = chart.layer ? { width: 640, height: 360, layer: chart.layer.map(legible) } : {};
      const { view } = await embed(box, "light", { ...size, title, background: "#fff", padding });
      const blob = new Blob([await view.toSVG()], { type: "image/svg+xml" });
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = "normscope-" + key + ".svg";
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }

  const folded = [...document.querySelectorAll("details:not(.numbers)")];
  let before = [];
  addEventListener("beforeprint", () => {
    before = folded.map((d) => d.open);
    for (const d of folded) d.open = true;
  });
  addEventListener("afterprint", () => {
    folded.forEach((d, i) => { d.open = before[i]; });
  });
  for (const fold of folded) {
    fold.addEventListener("toggle", () => {
      for (const box of fold.querySelectorAll(".chart.screen")) if (fold.open && !views.has(box)) show(box);
    });
  }
  dark.addEventListener("change", draw);
  draw().then(drawPrint);
})();
