"use strict";
// The page's behaviour: theme, plots, tables, downloads. What it shows is in the page; what it plots is in #data.
(() => {
  const { figures, download, name } = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const plots = [...document.querySelectorAll(".plot")];
  const darkByDefault = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 40rem)");

  // --- Theme ---------------------------------------------------------------------------------------------------------

  const toggle = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ?? (darkByDefault.matches ? "dark" : "light")) === "dark";

  function themeChanged() {
    toggle.setAttribute("aria-pressed", String(isDark()));
    drawAll();
  }

  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    themeChanged();
  });
  darkByDefault.addEventListener("change", themeChanged);

  // --- Plots ---------------------------------------------------------------------------------------------------------

  // The colour that a variable of the style sheet has now; a probe, because light-dark() is only resolved in use.
  const probe = document.body.appendChild(document.createElement("i"));
  probe.hidden = true;

  function colour(variable) {
    probe.style.color = variable;
    return getComputedStyle(probe).color;
  }

  function withColours(value) {
    if (typeof value === "string") return value.startsWith("var(--") ? colour(value) : value;
    if (Array.isArray(value)) return value.map(withColours);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, withColours(one)]));
  }

  function merged(base, more) {
    const result = { ...base };
    for (const [key, value] of Object.entries(more)) {
      const both = [base[key], value].every((one) => one && typeof one === "object" && !Array.isArray(one));
      result[key] = both ? merged(base[key], value) : value;
    }
    return result;
  }

  function layoutOf(figure) {
    const axis = {
      automargin: true,
      gridcolor: "var(--line)",
      linecolor: "var(--line)",
      zerolinecolor: "var(--line)",
      ticks: "",
      ticklabelstandoff: 5,
      fixedrange: narrow.matches, // dragging scrolls a phone; it must not zoom
      title: { standoff: 10, font: { color: "var(--muted)", size: 13 } },
      tickfont: { color: "var(--muted)" },
    };
    const base = {
      autosize: true,
      font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: "var(--ink)" },
      paper_bgcolor: "var(--surface)",
      plot_bgcolor: "var(--surface)",
      margin: { l: 8, r: 16, t: 10, b: 8 },
      showlegend: false,
      dragmode: narrow.matches ? false : "zoom",
      hovermode: "x unified",
      hoverdistance: -1, // always the nearest point: no need to hit it
      hoverlabel: { bgcolor: "var(--raised)", bordercolor: "var(--line)", font: { color: "var(--ink)" } },
      uirevision: "what the reader hid or zoomed stays",
      xaxis: axis,
      yaxis: axis,
    };
    return withColours(merged(base, figure.layout));
  }

  function draw(plot) {
    const figure = figures[plot.dataset.figure];
    const hidden = (index) =>
      plot.parentElement.querySelector(`[data-trace="${index}"]`)?.getAttribute("aria-pressed") === "false";
    const traces = figure.data.map((trace, index) => ({ ...withColours(trace), visible: !hidden(index) }));
    return Plotly.react(plot, traces, layoutOf(figure), { displayModeBar: false, responsive: true });
  }

  // One at a time, so that the page answers in between; a newer call takes over. data-plots tells when all are there.
  let turn = 0;
  async function drawAll() {
    const mine = ++turn;
    root.dataset.plots = "drawing";
    for (const plot of plots) {
      await draw(plot);
      await new Promise((resolve) => setTimeout(resolve));
      if (mine !== turn) return;
    }
    root.dataset.plots = "drawn";
  }

  for (const plot of plots) {
    for (const button of plot.parentElement.querySelectorAll("[data-trace]")) {
      button.addEventListener("click", () => {
        button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") === "false"));
        draw(plot);
      });
    }
  }
  narrow.addEventListener("change", drawAll);

  // Paper is white and has its own width.
  addEventListener("beforeprint", () => {
    turn++;
    root.dataset.printed = root.dataset.theme ?? "";
    root.dataset.theme = "light";
    for (const plot of plots) {
      draw(plot);
      Plotly.relayout(plot, { width: Math.min(plot.clientWidth, plot.closest(".small") ? 330 : 640) });
    }
  });
  addEventListener("afterprint", () => {
    if (root.dataset.printed) root.dataset.theme = root.dataset.printed;
    else delete root.dataset.theme;
    delete root.dataset.printed;
    drawAll();
  });

  // --- Downloads -----------------------------------------------------------------------------------------------------

  function save(text, type, file) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  // Alone, the picture needs what the page says around it: a title and a legend.
  async function svg(plot) {
    const figure = figures[plot.dataset.figure];
    const layout = merged(plot.layout, {
      title: { text: figure.title, x: 0.02, font: { size: 18 } },
      margin: { l: 24, r: 24, t: 90, b: 24 },
      showlegend: figure.data.length > 1,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    });
    const size = { width: 960, height: 540 };
    const url = await Plotly.toImage({ data: plot.data, layout: { ...layout, ...size } }, { format: "svg", ...size });
    return decodeURIComponent(url.slice(url.indexOf(",") + 1));
  }

  function csv(table) {
    const cell = (one) => `"${one.textContent.trim().replaceAll('"', '""')}"`;
    return [...table.rows].map((row) => [...row.cells].map(cell).join(",") + "\r\n").join("");
  }

  for (const button of document.querySelectorAll("[data-save]")) {
    button.addEventListener("click", async () => {
      const figure = button.closest("figure");
      const plot = figure.querySelector(".plot");
      if (button.dataset.save === "svg") save(await svg(plot), "image/svg+xml", `${plot.dataset.figure}.svg`);
      else save(csv(figure.querySelector("table")), "text/csv", `${plot.dataset.figure}.csv`);
    });
  }

  const data = document.getElementById("download");
  data.addEventListener("click", () => save(JSON.stringify(download, null, 2) + "\n", "application/json", name));

  // --- Tables --------------------------------------------------------------------------------------------------------

  for (const panel of document.querySelectorAll(".table")) {
    const body = panel.querySelector("tbody");
    const rows = [...body.rows];
    const heads = [...panel.querySelectorAll("th")];
    const search = panel.querySelector("[data-filter]");
    const choices = [...panel.querySelectorAll("[data-choose]")].map((select) => [
      select,
      heads.findIndex((head) => head.dataset.key === select.dataset.key),
    ]);

    const sortKey = (row, column) => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
    };
    const compare = (a, b) =>
      typeof a === typeof b
        ? typeof a === "number"
          ? a - b
          : a.localeCompare(b, "en", { numeric: true })
        : typeof a === "number"
          ? -1 // what has no number comes last
          : 1;

    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const sorted = [...rows].sort((a, b) => compare(sortKey(a, column), sortKey(b, column)) * (up ? 1 : -1));
        body.append(...sorted);
      });
    });

    function filter() {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        const chosen = choices.every(([select, at]) => !select.value || row.cells[at].textContent === select.value);
        row.hidden = !(chosen && words.every((word) => text.includes(word)));
      }
      const shown = rows.filter((row) => !row.hidden).length;
      panel.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
    }
    panel.querySelector("form").addEventListener("input", filter);
    panel.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  }

  data.hidden = toggle.hidden = false;
  themeChanged();
})();
