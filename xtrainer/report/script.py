"""What does the page do by itself? It draws the figures, in the scheme of the reader."""

SCRIPT = """\
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const shown = {by: "step", scale: "linear"};
  const colour = name =>
    getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  // Names of colours and of points become what they stand for.
  function filled(value, key) {
    if (key === "color" && value[0] === "@") return colour(value.slice(1));
    if (Array.isArray(value)) return value;
    if (value === null || typeof value !== "object") return value;
    if (typeof value.x === "string" && value.x in data.axes) return data.axes[value.x][shown.by];
    return Object.fromEntries(Object.entries(value).map(([k, one]) => [k, filled(one, k)]));
  }

  function axis(more, title) {
    return Object.assign({
      gridcolor: colour("grid"), zeroline: false, linecolor: colour("line"), ticks: "",
      tickfont: {size: 11, color: colour("muted")}, automargin: true,
      title: {text: title, font: {size: 11.5, color: colour("muted")}, standoff: 8},
    }, more);
  }

  function layout(plot) {
    const own = filled(plot.layout);
    const title = shown.by === "step" ? "step" : data.time_title;
    const y = Object.assign({}, own.yaxis, plot.switches ? {type: shown.scale} : {});
    return Object.assign({
      margin: {l: 54, r: 12, t: 8, b: 40}, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", hovermode: "x unified", dragmode: "zoom",
      font: {family: "system-ui, -apple-system, Segoe UI, Roboto, Arial, sans-serif", size: 12,
             color: colour("ink")},
      hoverlabel: {bgcolor: colour("soft"), bordercolor: colour("line"),
                   font: {size: 12, color: colour("ink")}},
    }, own, {
      xaxis: axis(own.xaxis, plot.switches ? title : ""),
      yaxis: axis(y, own.yaxis && own.yaxis.title ? own.yaxis.title.text : ""),
      legend: Object.assign({
        orientation: "h", x: 0, xanchor: "left", y: 1.01, yanchor: "bottom",
        font: {size: 11.5, color: colour("muted")}, bgcolor: "rgba(0,0,0,0)",
      }, own.legend),
    });
  }

  const settings = {
    displaylogo: false, responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };

  function draw(place) {
    const plot = data.plots[place.id];
    place.dataset.drawn = "yes";
    return Plotly.react(place, plot.traces.map(trace => filled(trace)), layout(plot), settings);
  }

  const places = () => [...document.querySelectorAll(".plot")];
  const visible = place => !place.closest("details:not([open])");
  function drawAll(which) {
    return Promise.all(places().filter(visible).filter(which).map(draw));
  }

  for (const button of document.querySelectorAll(".switch button")) {
    button.addEventListener("click", () => {
      shown[button.dataset.sets] = button.dataset.value;
      for (const other of button.parentElement.children) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      for (const place of places()) {
        if (data.plots[place.id].switches) place.dataset.drawn = "no";
      }
      drawAll(place => place.dataset.drawn !== "yes");
    });
  }
  for (const part of document.querySelectorAll("details")) {
    part.addEventListener("toggle", () => drawAll(place => place.dataset.drawn !== "yes"));
  }
  dark.addEventListener("change", () => {
    for (const place of places()) place.dataset.drawn = "no";
    drawAll(() => true);
  });
  drawAll(() => true).then(() => { document.body.dataset.ready = "yes"; });
})();
"""
