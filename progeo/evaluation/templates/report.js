"use strict";
const form = document.querySelector("form");
const list = document.getElementById("rows");
const rows = [...list.children];
const map = document.querySelector("svg.map");
const dots = map ? [...map.querySelectorAll("circle")] : [];

function matches(item) {
  const verdict = form.verdict ? form.verdict.value : "", condition = form.condition ? form.condition.value : "";
  return (!verdict || item.classList.contains(verdict)) && (!condition || item.dataset.condition === condition);
}

function update() {
  const order = {
    first: (a, b) => a.dataset.rank - b.dataset.rank,
    last: (a, b) => b.dataset.rank - a.dataset.rank,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name),
  }[form.order.value];
  for (const row of rows) row.hidden = !matches(row);
  for (const dot of dots) dot.classList.toggle("hidden", !matches(dot));
  list.append(...rows.sort(order));
  form.querySelector("output").value = `${rows.filter(row => !row.hidden).length} shown`;
}

function choose(query) {
  for (const item of [...rows, ...dots]) item.classList.toggle("chosen", item.dataset.query === query);
  const row = rows.find(item => item.dataset.query === query), dot = dots.find(item => item.dataset.query === query);
  const text = document.getElementById("chosen");
  if (text && dot) text.textContent = dot.textContent + (row ? "" : " (not among the queries shown below)");
  return { row, dot };
}

form.addEventListener("change", update);
form.addEventListener("submit", event => event.preventDefault());
list.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (!button) return;
  const { dot } = choose(button.closest(".row").dataset.query);
  if (!dot) return;
  center(+dot.getAttribute("cx"), +dot.getAttribute("cy"));
  map.focus();
  map.scrollIntoView({ block: "center" });
});

if (map) {
  const whole = map.viewBox.baseVal, all = { x: whole.x, y: whole.y, width: whole.width, height: whole.height };
  let view = { ...all }, from = null, moved = false;

  // The drawing keeps its shape in the box, so one pixel is equally many meters both ways.
  const metersPerPixel = () => Math.max(view.width / map.clientWidth, view.height / map.clientHeight);

  function show() {
    map.setAttribute("viewBox", `${view.x} ${view.y} ${view.width} ${view.height}`);
    map.style.setProperty("--dot", metersPerPixel());
    const most = 120 * metersPerPixel(), power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map(step => step * power).find(meters => meters <= most);
    document.querySelector(".scale").style.width = `${length / metersPerPixel()}px`;
    document.getElementById("scale").textContent = length >= 1000 ? `${length / 1000} km` : `${length} m`;
  }

  function zoom(factor, x = view.x + view.width / 2, y = view.y + view.height / 2) {
    const width = Math.min(Math.max(view.width * factor, all.width / 2000), all.width * 4), by = width / view.width;
    view = { x: x - (x - view.x) * by, y: y - (y - view.y) * by, width, height: view.height * by };
    show();
  }

  function pan(east, down) {
    view.x += east;
    view.y += down;
    show();
  }

  window.center = (x, y) => pan(x - view.x - view.width / 2, y - view.y - view.height / 2);

  map.addEventListener("wheel", event => {
    event.preventDefault();
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(map.getScreenCTM().inverse());
    zoom(event.deltaY > 0 ? 1.25 : 0.8, point.x, point.y);
  }, { passive: false });
  map.addEventListener("pointerdown", event => {
    from = event;
    moved = false;
  });
  map.addEventListener("pointermove", event => {
    if (!from) return;
    moved ||= Math.hypot(event.clientX - from.clientX, event.clientY - from.clientY) > 4;
    if (!moved) return;
    map.setPointerCapture(event.pointerId);
    pan((from.clientX - event.clientX) * metersPerPixel(), (from.clientY - event.clientY) * metersPerPixel());
    from = event;
  });
  for (const name of ["pointerup", "pointercancel"]) map.addEventListener(name, () => { from = null; });
  map.addEventListener("click", event => {
    if (moved || !event.target.dataset.query) return;
    const { row } = choose(event.target.dataset.query);
    if (row && !row.hidden) row.scrollIntoView({ block: "center" });
  });
  map.addEventListener("keydown", event => {
    const step = 60 * metersPerPixel();
    const action = {
      ArrowLeft: () => pan(-step, 0), ArrowRight: () => pan(step, 0), ArrowUp: () => pan(0, -step),
      ArrowDown: () => pan(0, step), "+": () => zoom(0.8), "=": () => zoom(0.8), "-": () => zoom(1.25),
      0: () => { view = { ...all }; show(); },
    }[event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  });
  window.addEventListener("resize", show);
  show();
}
update();
