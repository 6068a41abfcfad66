"use strict";
// Sorts and filters tables, tells what a point is, changes the theme. Without it the page reads the same.
(() => {
  const make = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // Theme: that of the system, or a chosen one, which the browser keeps if it may.
  const themes = ["auto", "light", "dark"];
  let theme = "auto";
  try { theme = themes.find((name) => name === localStorage.getItem("theme")) ?? "auto"; } catch { /* not allowed */ }
  const toggle = make("button", { id: "theme", type: "button" });
  const applyTheme = () => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    toggle.textContent = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" }[theme];
    try { localStorage.setItem("theme", theme); } catch { /* not allowed */ }
  };
  toggle.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    applyTheme();
  });
  applyTheme();
  document.body.prepend(toggle);

  // Tables.
  const order = new Intl.Collator("en", { numeric: true });
  const key = (row, column) => {
    const cell = row.cells[column];
    if (!cell.classList.contains("number")) return cell.textContent;
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  };
  for (const box of document.querySelectorAll(".table")) {
    const body = box.querySelector("tbody");
    const rows = [...body.rows];
    if (rows.length < 2) continue;
    const heads = [...box.querySelectorAll("thead th")];
    const sort = (column, direction) => {
      const sorted = [...rows];
      if (direction !== "none") {
        const sign = direction === "ascending" ? 1 : -1;
        sorted.sort((a, b) => {
          const [x, y] = [key(a, column), key(b, column)];
          if (x === null || y === null) return (x === null) - (y === null); // what has no number comes last
          return sign * (typeof x === "number" ? x - y : order.compare(x, y));
        });
      }
      body.append(...sorted);
      heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? direction : "none"));
    };
    heads.forEach((head, column) => {
      const button = make("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      const next = { none: "ascending", ascending: "descending", descending: "none" };
      button.addEventListener("click", () => sort(column, next[head.getAttribute("aria-sort")]));
    });
    if (rows.length < 6) continue;
    const field = make("input", { type: "search", placeholder: "Filter rows", spellcheck: false });
    field.setAttribute("aria-label", `Filter rows: ${box.querySelector(".scroll").getAttribute("aria-label")}`);
    const told = make("output", {});
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of rows) {
        const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        count += !row.hidden;
      }
      told.textContent = words.length ? `${count} of ${rows.length} rows` : "";
    });
    box.prepend(make("div", { className: "tools" }, field, told));
  }

  // Pictures: words at a point, and its method alone. Arrow keys go from point to point.
  const tip = make("div", { id: "tip", hidden: true });
  tip.setAttribute("aria-hidden", "true"); // points have the same words as their label
  document.body.append(tip);
  const middle = (element) => {
    const box = element.getBoundingClientRect();
    return [box.left + box.width / 2, box.top + box.height / 2];
  };
  const leave = (chart) => {
    tip.hidden = true;
    chart.classList.remove("focused");
    for (const element of chart.querySelectorAll(".on")) element.classList.remove("on");
  };
  const enter = (chart, target) => {
    leave(chart);
    const shown = new Set([target.dataset.series]);
    if (target.classList.contains("point")) {
      const [x, y] = middle(target);
      const near = [...chart.querySelectorAll(".point")].filter((other) => {
        const [a, b] = middle(other);
        return Math.hypot(a - x, b - y) < 5;
      });
      for (const other of near) shown.add(other.dataset.series);
      tip.textContent = [target, ...near.filter((other) => other !== target)].map((p) => p.dataset.tip).join("\n\n");
      tip.hidden = false;
      const width = tip.offsetWidth, height = tip.offsetHeight;
      tip.style.left = `${Math.max(6, Math.min(x + 12, innerWidth - width - 6))}px`;
      tip.style.top = `${y + 14 + height > innerHeight ? Math.max(6, y - height - 14) : y + 14}px`;
    }
    chart.classList.add("focused");
    for (const element of chart.querySelectorAll("[data-series]")) {
      element.classList.toggle("on", shown.has(element.dataset.series));
    }
  };
  for (const chart of document.querySelectorAll(".chart")) {
    const points = [...chart.querySelectorAll(".point")];
    points.forEach((point, i) => point.setAttribute("tabindex", i === 0 ? "0" : "-1"));
    chart.addEventListener("pointerover", (event) => {
      const target = event.target.closest("[data-series]");
      if (target) enter(chart, target);
    });
    chart.addEventListener("pointerout", () => leave(chart));
    chart.addEventListener("focusin", (event) => enter(chart, event.target));
    chart.addEventListener("focusout", () => leave(chart));
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") leave(chart);
      if (!step || !points.includes(document.activeElement)) return;
      event.preventDefault();
      const now = points.indexOf(document.activeElement);
      const next = points[(now + step + points.length) % points.length];
      points[now].setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  }
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });

  // On paper nothing is folded.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of folded) one.open = false; });
})();
