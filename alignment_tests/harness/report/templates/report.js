"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const words = data.words;
  const CHUNK = 120; // rows drawn at once; more follow as the reader scrolls
  const number = (value) => (value === null || value === undefined ? null : Number(value)); // NaN and Infinity come as text
  const three = (value) => {
    const x = number(value);
    if (x === null) return "–";
    if (!Number.isFinite(x)) return String(x).replace("Infinity", "∞");
    if (x === 0) return "0";
    const size = Math.abs(x);
    return size >= 0.001 && size < 1e5 ? String(Number(x.toPrecision(3))) : x.toExponential(2).replace("e+", "e");
  };
  const two = (value) => {
    const x = number(value);
    return x !== null && x >= 0.01 && x < 1000 ? x.toFixed(2) : three(x);
  };
  const nearOne = (value) => {
    const x = number(value);
    return x !== null && x > 0.999 && x < 1 ? "1−" + (1 - x).toExponential(1) : three(x);
  };
  const path = (row) => (row.name.startsWith(row.phase + "/") ? row.name.slice(row.phase.length + 1) : row.name);
  const whole = (key) => (row) => row.accumulated && row.accumulated[key];
  const alone = (key) => (row) => row.isolated && row.isolated[key];

  const columns = [
    { key: "index", value: (row) => row.index, show: String, numeric: true, ascending: true },
    { key: "verdict", value: (row) => row.verdict, show: (verdict) => words[verdict] || verdict, css: "v" },
    { key: "phase", value: (row) => row.phase },
    { key: "name", value: path, css: "name mono" },
    { key: "kind", value: (row) => row.kind },
    { key: "precision", value: (row) => row.precision, show: (precision) => precision.replace("float", "") },
    { key: "error", value: whole("max_abs_error"), show: three, numeric: true },
    { key: "scale", value: (row) => (row.accumulated || row.isolated || {}).scale, show: three, numeric: true },
    { key: "tolerance", value: whole("smallest_tolerance"), show: three, numeric: true },
    { key: "used", value: (row) => row.used, show: (x) => (x === null ? "–" : two(x) + "×"), numeric: true },
    { key: "ratio", value: whole("ratio"), show: two, numeric: true },
    { key: "isolated", value: alone("max_abs_error"), show: three, numeric: true },
    { key: "isolated_ratio", value: alone("ratio"), show: two, numeric: true },
    { key: "cosine", value: whole("cosine"), show: nearOne, numeric: true, ascending: true },
    { key: "ulp", value: whole("max_ulp"), show: three, numeric: true },
  ];
  if (data.training) columns.splice(6, 0, { key: "step", value: (row) => row.step, numeric: true, ascending: true });
  if (data.drift) columns.push({ key: "drift", value: (row) => row.drift, show: two, numeric: true });

  const element = (tag, css, text) => {
    const made = document.createElement(tag);
    if (css) made.className = css;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  data.rows.forEach((row, place) => {
    row.place = place;
    for (const side of ["accumulated", "isolated"]) {
      if (row[side]) row[side] = Object.fromEntries(data.fields.map((field, at) => [field, row[side][at]]));
    }
    row.text = [row.name, row.kind, row.reason].join("\n").toLowerCase();
  });

  const form = document.querySelector("form.controls");
  const grid = document.getElementById("grid");
  const head = grid.querySelector("thead tr");
  const body = grid.querySelector("tbody");
  const selects = ["verdict", "precision", "phase", "part"];
  let shown = data.rows;
  let drawn = 0;
  let order = { column: null, sign: 1 };

  for (const key of selects) {
    for (const value of key === "phase" ? data.phases : new Set(data.rows.map((row) => row[key]))) {
      const option = element("option", "", key === "verdict" ? words[value] || value : value);
      option.value = value;
      form.elements[key].append(option);
    }
  }

  function compare(column, sign) {
    const missing = (x) => x === null || x === undefined || x === "" || Number.isNaN(x);
    const value = column.numeric ? (row) => number(column.value(row)) : column.value;
    return (a, b) => {
      const x = value(a), y = value(b);
      if (missing(x) || missing(y)) return missing(x) - missing(y) || a.place - b.place; // last, whichever way
      const result = column.numeric ? (x === y ? 0 : x - y) : x.localeCompare(y, undefined, { numeric: true });
      return sign * result || a.place - b.place;
    };
  }

  function cells(row) {
    const line = element("tr", "row " + row.verdict);
    line.tabIndex = 0;
    line.row = row;
    for (const column of columns) {
      const value = column.value(row);
      const css = (column.numeric ? "n " : "") + (column.css || "") + (column.key === "verdict" ? " " + row.verdict : "");
      line.append(element("td", css, column.show ? column.show(value) : value));
    }
    return line;
  }

  function more() {
    const batch = document.createDocumentFragment();
    for (const row of shown.slice(drawn, drawn + CHUNK)) batch.append(cells(row));
    drawn = Math.min(shown.length, drawn + CHUNK);
    body.append(batch);
  }

  function draw() {
    const wanted = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = selects.map((key) => [key, form.elements[key].value]).filter(([, value]) => value);
    shown = data.rows.filter((row) => chosen.every(([key, value]) => row[key] === value) && wanted.every((word) => row.text.includes(word)));
    if (order.column) shown.sort(compare(order.column, order.sign));
    body.replaceChildren();
    drawn = 0;
    more();
    grid.scrollTop = 0;
    if (!shown.length) {
      const line = element("tr");
      line.append(element("td", "empty", words.no_match));
      line.firstChild.colSpan = columns.length;
      body.append(line);
    }
    form.querySelector("output").textContent = words.showing.replace("{shown}", shown.length).replace("{total}", data.rows.length);
  }

  for (const column of columns) {
    const cell = element("th", column.numeric ? "n" : "");
    const button = element("button", "", words["col_" + column.key]);
    button.type = "button";
    button.addEventListener("click", () => {
      const first = column.numeric && !column.ascending ? -1 : 1; // worst on top first
      if (order.column !== column) order = { column, sign: first };
      else if (order.sign === first) order = { column, sign: -first };
      else order = { column: null, sign: 1 };
      for (const other of head.children) other.removeAttribute("aria-sort");
      if (order.column) cell.setAttribute("aria-sort", order.sign > 0 ? "ascending" : "descending");
      draw();
    });
    cell.append(button);
    head.append(cell);
  }

  const plain = (value) => (value === null || value === undefined ? "–" : Array.isArray(value) ? "(" + value.join(", ") + ")" : String(value));

  function detail(row) {
    const sides = [["accumulated", row.accumulated], ["isolated", row.isolated]];
    const box = element("td");
    box.colSpan = columns.length;
    box.append(element("p", "reason", row.reason));
    const table = element("table");
    const top = element("tr");
    top.append(element("th"));
    for (const [key, side] of sides) top.append(element("th", "", words[key] + ": " + (side ? words[key + "_help"] : words.not_compared)));
    table.append(top);
    for (const key of Object.keys(row.accumulated || row.isolated || {})) {
      const line = element("tr");
      line.append(element("td", "mono", key));
      for (const [, side] of sides) line.append(element("td", "", side ? plain(side[key]) : "–"));
      table.append(line);
    }
    if (row.accumulated || row.isolated) box.append(table);
    const line = element("tr", "detail");
    line.append(box);
    return line;
  }

  function toggle(line) {
    const open = line.classList.toggle("open");
    if (open) line.after(detail(line.row));
    else line.nextElementSibling.remove();
  }

  function filter(values) {
    form.reset();
    for (const [key, value] of Object.entries(values)) form.elements[key].value = value;
    draw();
  }

  function find(test) {
    order = { column: null, sign: 1 };
    for (const cell of head.children) cell.removeAttribute("aria-sort");
    filter({});
    const place = shown.findIndex(test);
    if (place < 0) return;
    while (drawn <= place) more();
    const line = [...body.children].find((child) => child.row === shown[place]);
    if (!line.classList.contains("open")) toggle(line);
    document.getElementById("rows").scrollIntoView();
    grid.scrollTop = line.offsetTop - head.offsetHeight - 4;
    line.focus({ preventScroll: true });
  }

  body.addEventListener("click", (event) => {
    const line = event.target.closest("tr.row");
    if (line && !String(getSelection())) toggle(line);
  });
  body.addEventListener("keydown", (event) => {
    if ((event.key === "Enter" || event.key === " ") && event.target.row) {
      event.preventDefault();
      toggle(event.target);
    }
  });
  grid.addEventListener("scroll", () => {
    if (drawn < shown.length && grid.scrollTop + grid.clientHeight > grid.scrollHeight - 600) more();
  });
  form.addEventListener("input", draw);
  form.elements.clear.addEventListener("click", () => filter({}));
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("[data-filter]")) {
    button.addEventListener("click", () => {
      filter(JSON.parse(button.dataset.filter));
      document.getElementById("rows").scrollIntoView();
    });
  }
  for (const button of document.querySelectorAll("[data-find]")) {
    button.addEventListener("click", () => find((row) => row.name === button.dataset.find));
  }

  const canvas = document.querySelector("#plot-depth .canvas");
  if (canvas && data.frame && data.steps.length) {
    const [left, right, from, to] = data.frame;
    const image = canvas.querySelector("img");
    const cursor = canvas.querySelector(".cursor");
    const tip = canvas.querySelector(".tip");
    const stepAt = (event) => {
      const share = (event.clientX - image.getBoundingClientRect().left) / image.clientWidth;
      const step = Math.round(from + ((share - left) / (right - left)) * (to - from));
      return share < left || share > right ? -1 : Math.min(Math.max(step, 0), data.steps.length - 1);
    };
    canvas.addEventListener("mousemove", (event) => {
      const step = stepAt(event);
      cursor.hidden = tip.hidden = step < 0;
      if (step < 0) return;
      const x = image.clientWidth * (left + ((step - from) / (to - from)) * (right - left));
      const rows = data.steps[step].map((place) => data.rows[place]);
      tip.replaceChildren(element("div", "mono", path(rows[0])), element("div", "", rows[0].kind));
      for (const row of rows) {
        const numbers = [whole("smallest_tolerance")(row), alone("smallest_tolerance")(row)].map(three);
        const verdict = words[row.verdict] || row.verdict;
        tip.append(element("div", "", `${row.precision}: ${words.accumulated} ${numbers[0]}, ${words.isolated} ${numbers[1]}, ${verdict}`));
      }
      cursor.style.left = x + "px";
      tip.style.left = x > image.clientWidth / 2 ? "" : x + 10 + "px";
      tip.style.right = x > image.clientWidth / 2 ? canvas.clientWidth - x + 10 + "px" : "";
    });
    canvas.addEventListener("mouseleave", () => (cursor.hidden = tip.hidden = true));
    canvas.addEventListener("click", (event) => {
      const step = stepAt(event);
      if (step >= 0) find((row) => data.steps[step].includes(row.place));
    });
  }

  form.hidden = grid.hidden = false;
  draw();
})();
