// What a page can do beyond being read: hover curves, sort tables, copy numbers. Nothing is fetched.
"use strict";

// Curves: the pointer, or the arrow keys, chooses a point; all curves tell their number there.
const make = (name, parent, attributes = {}) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return parent.appendChild(node);
};
for (const svg of document.querySelectorAll("svg[data-hover]")) {
  const told = JSON.parse(svg.dataset.hover), figure = svg.closest("figure");
  const points = told.curves.flatMap(curve => curve.points.map(([x, y, at, text]) => ({ x, y, at, text, curve })));
  const stops = [...new Map(points.map(point => [point.at, point])).values()].sort((a, b) => a.x - b.x);
  const mark = make("g", svg, { class: "mark" });
  const tip = figure.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  let chosen = -1;

  const hide = () => { mark.replaceChildren(); tip.hidden = true; };
  const show = ({ at, x }) => {
    const here = points.filter(point => point.at === at), height = svg.viewBox.baseVal.height;
    chosen = stops.findIndex(stop => stop.at === at);
    mark.replaceChildren();
    make("line", mark, { x1: x, x2: x, y1: Math.min(...points.map(p => p.y)), y2: Math.max(...points.map(p => p.y)) });
    for (const point of here) make("circle", mark, { cx: point.x, cy: point.y, r: 3, fill: point.curve.colour });
    tip.replaceChildren(line(told.x ? `${told.x} ${at}` : ""), ...here.map(p => line(p.curve.name, p.text, p.curve.colour)));
    tip.hidden = false;
    const box = svg.getBoundingClientRect(), around = figure.getBoundingClientRect();
    const scale = box.width / svg.viewBox.baseVal.width, middle = x * scale;
    const place = middle + 12 + tip.offsetWidth > box.width ? middle - 12 - tip.offsetWidth : middle + 12;
    tip.style.left = `${box.left - around.left + Math.max(0, place)}px`;
    tip.style.top = `${box.top - around.top + 0.12 * height * scale}px`;
  };
  const line = (name, text = "", colour = "") => {
    const row = document.createElement("div"), number = document.createElement("b");
    row.style.setProperty("--colour", colour || "transparent");
    row.className = colour ? "of" : "at";
    number.textContent = text;
    row.append(name, number);
    return row;
  };
  const nearest = event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const far = point => (point.x - at.x) ** 2 + 0.05 * (point.y - at.y) ** 2; // a column first, then a row
    return points.reduce((best, point) => (far(point) < far(best) ? point : best));
  };
  if (!points.length) continue;
  svg.onpointermove = svg.onpointerdown = event => show(nearest(event));
  svg.onpointerleave = svg.onblur = hide;
  svg.onkeydown = event => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { show(stops[Math.min(stops.length - 1, Math.max(0, chosen + step))]); event.preventDefault(); }
  };
}

// Wide tables: a cell says its heading, for screens on which a row is a list.
for (const table of document.querySelectorAll(".wide"))
  for (const row of table.tBodies[0].rows)
    for (const cell of row.cells) cell.dataset.heading = table.tHead.rows[0].cells[cell.cellIndex].textContent;

// Tables: a click on a heading sorts by it, a second click the other way; what has no value stays last.
for (const th of document.querySelectorAll(".sortable th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...th.childNodes);
  th.append(button);
  button.onclick = () => {
    const body = th.closest("table").tBodies[0], sign = th.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of th.parentElement.cells) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const value = row => { const cell = row.cells[th.cellIndex]; return cell.dataset.value ?? cell.textContent; };
    const order = (a, b) => (a === "") - (b === "") || sign * (a - b || (isNaN(a - b) ? a.localeCompare(b) : 0));
    body.append(...[...body.rows].sort((a, b) => order(value(a), value(b))));
  };
}

// Numbers: copied as a spreadsheet takes them, with a tab between cells and all digits.
for (const place of document.querySelectorAll("[data-copy]")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  place.append(button);
  button.onclick = async () => {
    const rows = document.querySelectorAll(place.dataset.copy);
    const text = [...rows].map(row => [...row.cells].map(cell => cell.dataset.value ?? cell.textContent).join("\t")).join("\n");
    const area = document.body.appendChild(document.createElement("textarea"));
    area.value = text;
    area.select();
    const done = document.execCommand("copy"); // works where there is no clipboard API, as in a file
    area.remove();
    button.textContent = done ? "Copied" : "Not allowed by the browser";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  };
}
