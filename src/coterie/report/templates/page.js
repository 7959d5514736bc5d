"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SVG = "http://www.w3.org/2000/svg";
  const $ = (selector, among = document) => [...among.querySelectorAll(selector)];

  // Theme: the system's, until a person chooses.
  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const showTheme = () => toggle.setAttribute("aria-pressed", String(isDark()));
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("coterie-theme", root.dataset.theme); } catch { /* for this view only */ }
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();

  // Tables: sorted by their headings, filtered by name and by kind.
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!("value" in cell.dataset)) return cell.textContent.trim();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  const order = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  for (const table of $("table.sortable")) {
    const headings = $("thead th", table);
    headings.forEach((heading, column) => $("button", heading)[0]?.addEventListener("click", () => {
      const numeric = heading.classList.contains("number");
      const first = numeric ? "descending" : "ascending";
      const second = numeric ? "ascending" : "descending";
      const direction = heading.getAttribute("aria-sort") === first ? second : first;
      headings.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", direction);
      const sign = direction === "ascending" ? 1 : -1;
      const body = table.tBodies[0];
      const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
      rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : sign * order(a, b)));
      body.append(...rows.map(([, row]) => row));
    }));
  }
  const applyFilter = (id) => {
    const wanted = $(`[data-filter="${id}"]`)[0]?.value.trim().toLocaleLowerCase() ?? "";
    const only = $(`[data-only="${id}"]`)[0]?.value ?? "";
    const rows = [...document.getElementById(id).tBodies[0].rows];
    for (const row of rows) {
      const text = (row.dataset.text ?? row.cells[0].textContent).toLocaleLowerCase();
      row.hidden = !text.includes(wanted) || !(only === "" || (row.dataset.kinds ?? "").split(" ").includes(only));
    }
    const left = rows.filter((row) => !row.hidden).length;
    $(`[data-count="${id}"]`)[0].textContent = left === rows.length ? `${rows.length}` : `${left} of ${rows.length}`;
  };
  for (const tool of $("[data-filter], [data-only]")) {
    const id = tool.dataset.filter ?? tool.dataset.only;
    tool.addEventListener("input", () => applyFilter(id));
    applyFilter(id);
  }

  // Line charts.
  const element = (name, attributes = {}, ...children) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const html = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };
  const ticks = (low, high, count, least = 0) => {
    const raw = Math.max((high - low || 1) / count, least);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(at);
    return found.map((at) => Number(at.toPrecision(6)));
  };
  const plain = (value) => Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });

  /* series: [{ name, x, y, colour, dash, thin, point: [x, y] }]; axis: { label, low, high, step: the least between two marks }. */
  const chart = (place, { series, x, y, diagonal = false, summary }) => {
    const hidden = new Set(place.hiddenNames ?? []);
    place.hiddenNames = hidden;
    const extent = (axis, key) => {
      const values = series.flatMap((one) => one[key]);
      const low = axis.low ?? Math.min(...values), high = axis.high ?? Math.max(...values);
      return low === high ? [low - .5, high + .5] : [low, high];
    };
    const drawing = html("div"), readout = html("div", { className: "readout" });
    const legend = html("ul", { className: "legend" });
    for (const one of series) {
      const sample = element("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" }, element("line", {
        x1: 1, x2: 25, y1: 5, y2: 5, stroke: `var(--${one.colour})`, "stroke-width": 2.5, "stroke-dasharray": one.dash ?? "" }));
      const button = html("button", { type: "button" }, sample, one.name);
      const show = () => button.setAttribute("aria-pressed", String(!hidden.has(one.name)));
      button.addEventListener("click", () => {
        if (!hidden.delete(one.name)) hidden.add(one.name);
        show();
        draw();
      });
      show();
      legend.append(html("li", {}, button));
    }
    const draw = () => {
      const width = Math.max(place.clientWidth, 220), height = Math.round(Math.min(width * .62, 340));
      const left = 46, right = 10, top = 10, bottom = 40;
      const [x0, x1] = extent(x, "x"), [y0, y1] = extent(y, "y");
      const px = (v) => left + (v - x0) / (x1 - x0) * (width - left - right);
      const py = (v) => height - bottom - (v - y0) / (y1 - y0) * (height - top - bottom);
      const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": summary });
      for (const at of ticks(x0, x1, width / 90, x.step)) {
        svg.append(element("line", { class: "axis", x1: px(at), x2: px(at), y1: top, y2: height - bottom }),
          element("text", { x: px(at), y: height - bottom + 16, "text-anchor": "middle" }, plain(at)));
      }
      for (const at of ticks(y0, y1, 5)) {
        svg.append(element("line", { class: "axis", x1: left, x2: width - right, y1: py(at), y2: py(at) }),
          element("text", { x: left - 6, y: py(at) + 4, "text-anchor": "end" }, plain(at)));
      }
      svg.append(element("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, x.label),
        element("text", { transform: `translate(11 ${(height - bottom + top) / 2}) rotate(-90)`, "text-anchor": "middle" }, y.label));
      if (diagonal) svg.append(element("line", { class: "cross", x1: px(0), y1: py(0), x2: px(1), y2: py(1) }));
      const shown = series.filter((one) => !hidden.has(one.name) && one.x.length);
      for (const one of shown) {
        const line = one.x.map((at, i) => `${px(at).toFixed(1)},${py(one.y[i]).toFixed(1)}`).join(" ");
        svg.append(element("polyline", { class: one.thin ? "plot thin" : "plot", points: line,
          stroke: `var(--${one.colour})`, "stroke-dasharray": one.dash ?? "" }));
        const dots = one.dots || one.x.length === 1 ? one.x.map((at, i) => [at, one.y[i]]) : one.point ? [one.point] : [];
        for (const [at, value] of dots) {
          svg.append(element("circle", { cx: px(at), cy: py(value), r: one.dots ? 3 : 4.5, fill: `var(--${one.colour})` }));
        }
      }
      const cross = element("line", { class: "cross", y1: top, y2: height - bottom, visibility: "hidden" });
      svg.append(cross);
      const tell = (event) => {
        const box = svg.getBoundingClientRect();
        const at = x0 + ((event.clientX - box.left) / box.width * width - left) / (width - left - right) * (x1 - x0);
        if (at < x0 || at > x1) return;
        cross.setAttribute("x1", px(at));
        cross.setAttribute("x2", px(at));
        cross.setAttribute("visibility", "visible");
        const near = (one) => one.y[one.x.reduce((best, v, i) => (Math.abs(v - at) < Math.abs(one.x[best] - at) ? i : best), 0)];
        readout.textContent = [`${x.label} ${plain(at)}`, ...shown.slice(0, 6).map((one) => `${one.name} ${plain(near(one))}`)].join(" · ");
      };
      svg.addEventListener("pointermove", tell);
      svg.addEventListener("pointerdown", tell);
      drawing.replaceChildren(svg);
    };
    place.replaceChildren(drawing, readout, legend);
    place.observer?.disconnect();
    let before = 0;
    place.observer = new ResizeObserver(() => {
      if (Math.abs(place.clientWidth - before) > 1) {
        before = place.clientWidth;
        draw();
      }
    });
    place.observer.observe(place);
  };

  const style = (model) => data.styles[model] ?? {};
  const share = (values) => values.map((value) => value / 10000);

  const curves = document.getElementById("pr-chart");
  if (curves) {
    const choice = document.getElementById("pr-class");
    data.classes.forEach((name, index) => choice.append(html("option", { value: String(index) }, name)));
    const draw = () => {
      const of = choice.value === "" ? data.pr.all : data.pr.classes[Number(choice.value)];
      const series = Object.entries(of).filter(([, one]) => one).map(([model, one]) => (
        { name: model, x: share(one.recall), y: share(one.precision), point: one.point && share(one.point), ...style(model) }));
      const what = choice.value === "" ? "all scores together" : data.classes[Number(choice.value)];
      document.getElementById("pr-none").hidden = series.length > 0;
      chart(curves, { series, x: { label: "recall", low: 0, high: 1 }, y: { label: "precision", low: 0, high: 1 },
        summary: `precision over recall of ${what}` });
    };
    choice.addEventListener("change", draw);
    draw();
  }

  const calibration = document.getElementById("calibration-chart");
  if (calibration) {
    const series = Object.entries(data.calibration).map(([model, one]) => (
      { name: model, x: one.score, y: one.share, dots: true, ...one.style }));
    chart(calibration, { series, diagonal: true, x: { label: "score", low: 0, high: 1 },
      y: { label: "share present", low: 0, high: 1 }, summary: "how often a label is present, by its score" });
  }

  const learning = document.getElementById("learning-chart");
  if (learning) {
    const choice = document.getElementById("learning-what");
    const draw = () => {
      const series = data.history.filter((one) => choice.value in one.values).map((one) => {
        const points = one.epochs.map((epoch, i) => [epoch, one.values[choice.value][i]]).filter(([, v]) => v !== null);
        return { name: one.name, x: points.map(([e]) => e), y: points.map(([, v]) => v), ...one.style };
      }).filter((one) => one.x.length);
      const label = choice.selectedOptions[0].textContent;
      chart(learning, { series, x: { label: "epoch", step: 1 }, y: { label }, summary: `${label} by epoch of each training` });
    };
    choice.addEventListener("change", draw);
    draw();
  }

  for (const button of $("[data-copy]")) {
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.copy).textContent;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
      }
    });
  }
})();
