"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const count = page.places.layer.length;
  let views = new Map(), at = null, pinned = null, drawing = 0;

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
      const text = title in row ? row[title] : written;
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

  function tell(signal, value) {
    for (const view of views.values()) view.signal(signal, value).runAsync();
  }

  function embed(box, scheme, size, renderer) {
    const spec = { ...page.charts[box.dataset.chart], ...size };
    spec.datasets = { ...spec.datasets, layers: rows() };
    return vegaEmbed(box, spec, {
      mode: "vega-lite", config: page.config[scheme], renderer, actions: false, defaultStyle: false, tooltip: showTip,
    });
  }

  // What is on the screen follows the reader's scheme and the width of its box.
  async function draw(scheme) {
    const mine = ++drawing;
    tip.hidden = true;
    for (const view of views.values()) view.finalize();
    views = new Map();
    for (const box of document.querySelectorAll(".chart.screen")) {
      const { view } = await embed(box, scheme, {}, count > 800 ? "canvas" : "svg");
      if (mine !== drawing) { view.finalize(); return; }
      view.addSignalListener("hover", (_, picked) => {
        const layer = picked.layer ? picked.layer[0] : null;
        if (layer !== at) { at = layer; tell("at", at); }
      });
      view.signal("focus", pinned).runAsync();
      views.set(box.dataset.chart, view);
    }
  }

  // What is printed is light and as wide as half a page, whatever the screen shows.
  async function drawPrint() {
    for (const box of document.querySelectorAll(".chart.print")) {
      await embed(box, "light", { width: page.printWidth }, "svg");
    }
  }

  const chips = [...document.querySelectorAll("[data-model]")];
  const nameOf = (chip) => page.models[Number(chip.dataset.model)];
  for (const chip of chips) {
    chip.addEventListener("pointerenter", () => tell("focus", nameOf(chip)));
    chip.addEventListener("pointerleave", () => tell("focus", pinned));
    chip.addEventListener("click", () => {
      pinned = pinned === nameOf(chip) ? null : nameOf(chip);
      for (const c of chips) c.setAttribute("aria-pressed", String(nameOf(c) === pinned));
      tell("focus", pinned);
    });
  }

  function saved(key, layer) {
    const { padding } = page.charts[key];
    return {
      width: 640, height: 360, layer, title: page.titles[key], background: "#fff",
      padding: { left: 12, right: 18, bottom: 14, top: padding.top },
    };
  }

  // A saved chart stands alone: light, with its title and a legend.
  for (const button of document.querySelectorAll("[data-save]")) {
    button.addEventListener("click", async () => {
      const key = button.dataset.save;
      const box = Object.assign(document.createElement("div"), { className: "chart" });
      box.dataset.chart = key;
      const legend = { title: null, orient: "bottom", symbolType: "stroke", columns: 3 };
      const layer = page.charts[key].layer.map((part) => {
        const color = part.encoding?.color;
        return color?.field === "model" ? { ...part, encoding: { ...part.encoding, color: { ...color, legend } } } : part;
      });
      const { view } = await embed(box, "light", saved(key, layer), "svg");
      const blob = new Blob([await view.toSVG()], { type: "image/svg+xml" });
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = "normscope-" + key + ".svg";
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }

  const scheme = () => (dark.matches ? "dark" : "light");
  const folded = [...document.querySelectorAll("details")];
  let before = [];
  addEventListener("beforeprint", () => {
    before = folded.map((d) => d.open);
    for (const d of folded) d.open = true;
  });
  addEventListener("afterprint", () => {
    folded.forEach((d, i) => { d.open = before[i]; });
  });
  dark.addEventListener("change", () => draw(scheme()));
  draw(scheme()).then(drawPrint);
})();
