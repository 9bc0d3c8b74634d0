"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const boxes = [...document.querySelectorAll("[data-chart]")];
  const logged = new Set(), views = new Map();
  let focus = null;

  function showTip(_, event, item, value) {
    if (!value) { tip.hidden = true; return; }
    const list = document.createElement("dl");
    const row = item.datum.datum ?? {};  // of a nearest point; there Vega-Lite fills in the numbers only
    for (const [title, written] of Object.entries(value)) {
      const text = title in row && typeof row[title] === "string" ? row[title] : written;
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

  async function draw(box) {
    const key = box.dataset.chart, chart = page.charts[key];
    views.get(key)?.finalize();
    const spec = structuredClone(logged.has(key) ? chart.log : chart.spec);
    const { view } = await vegaEmbed(box, spec, {
      mode: "vega-lite", config: page.config[dark.matches ? "dark" : "light"], renderer: "svg", actions: false,
      defaultStyle: false, tooltip: showTip,
    });
    views.set(key, view);
    tell(view);
  }

  function tell(view) {
    try { view.signal("focus", focus).runAsync(); } catch { /* a map has no variants to highlight */ }
  }

  async function drawAll() {
    tip.hidden = true;
    for (const box of boxes) await draw(box);
  }

  for (const button of document.querySelectorAll("[data-log]")) {
    button.addEventListener("click", () => {
      const key = button.dataset.log;
      if (!logged.delete(key)) logged.add(key);
      button.setAttribute("aria-pressed", String(logged.has(key)));
      draw(boxes.find((box) => box.dataset.chart === key));
    });
  }

  let pinned = null;
  const chips = [...document.querySelectorAll("[data-variant]")];
  const nameOf = (chip) => page.variants[Number(chip.dataset.variant)];
  function look(name) {
    focus = name;
    for (const view of views.values()) tell(view);
  }
  for (const chip of chips) {
    chip.addEventListener("pointerenter", () => look(nameOf(chip)));
    chip.addEventListener("pointerleave", () => look(pinned));
    chip.addEventListener("click", () => {
      pinned = pinned === nameOf(chip) ? null : nameOf(chip);
      for (const c of chips) c.setAttribute("aria-pressed", String(nameOf(c) === pinned));
      look(pinned);
    });
  }

  dark.addEventListener("change", drawAll);
  drawAll();
})();
