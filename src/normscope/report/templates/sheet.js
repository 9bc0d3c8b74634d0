"use strict";
(() => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let drawing = 0, views = [];

  const embed = (box, scheme, size, renderer) => vegaEmbed(box, { ...page.charts[box.dataset.chart], ...size }, {
    mode: "vega-lite", config: page.config[scheme], renderer, actions: false, defaultStyle: false, tooltip: true,
  });

  // What is on the screen follows the reader's scheme and the width of its box.
  async function draw() {
    const mine = ++drawing;
    for (const view of views) view.finalize();
    views = [];
    for (const box of document.querySelectorAll(".chart.screen")) {
      const { view } = await embed(box, dark.matches ? "dark" : "light", {}, "svg");
      if (mine !== drawing) { view.finalize(); return; }
      views.push(view);
    }
  }

  // What is printed is light and as wide as half a page, whatever the screen shows.
  async function drawPrint() {
    for (const box of document.querySelectorAll(".chart.print")) {
      const sized = "width" in page.charts[box.dataset.chart] ? { width: page.printWidth } : {};
      await embed(box, "light", sized, "svg");
    }
  }

  // A chart in a folded section has no width until it is opened.
  for (const fold of document.querySelectorAll("details")) fold.addEventListener("toggle", draw);
  dark.addEventListener("change", draw);
  draw().then(drawPrint);
})();
