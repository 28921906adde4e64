"use strict";

// The rows of photos: filters, order, pages, the address, keys, the lightbox and the CSV file.
function createGallery(data, map) {
  const PER_PAGE = 20;
  const MARKS = ["wrong", "correct", ""], SIGNS = ["✗ wrong", "✓ correct", ""];
  const form = document.getElementById("controls"), list = document.getElementById("rows");
  const lightbox = document.getElementById("lightbox"), count = document.getElementById("count");
  const names = Object.keys(data.filters);
  const rows = data.rows.map(([key, photo, mark, facets, strips, note, link]) =>
    ({ key, photo, mark, facets, strips, note, link }));
  const byKey = new Map(rows.map(row => [row.key, row]));
  const nameOf = row => (row.photo === null ? "" : data.photos[row.photo][0]);
  const format = {
    rank: value => `Rank ${value.toLocaleString("en")}`,
    meters: metersText,
    descriptor: value => `descriptor distance ${value.toFixed(3)}`,
    percent: value => `${value.toFixed(1)} %`,
    inliers: value => `${value.toLocaleString("en")} matched points`,
    text: value => String(value),
  };
  let visible = rows, page = 0, chosen = null, enlarged = null;

  // The values of a filter that a row has: one, none, or several of a list.
  const valuesOf = (row, index) => [row.facets[index]].flat().flatMap(number => data.filters[names[index]][number] ?? []);

  function filtered() {
    const wanted = names.map(name => form.elements[name].value);
    const contained = form.elements.contains.value.toLowerCase();
    const found = rows.filter(row =>
      wanted.every((value, index) => value === "" || [row.facets[index]].flat().includes(Number(value)))
      && (!contained || nameOf(row).toLowerCase().includes(contained)));
    const order = data.orders[form.elements.order.value][1];
    if (order === "reversed") found.reverse();
    if (order === "name") {
      const collator = new Intl.Collator("en", { numeric: true });
      found.sort((a, b) => collator.compare(nameOf(a), nameOf(b)));
    }
    return found;
  }

  const numPages = () => Math.max(1, Math.ceil(visible.length / PER_PAGE));

  function render() {
    page = Math.min(Math.max(page, 0), numPages() - 1);
    const first = page * PER_PAGE, shown = visible.slice(first, first + PER_PAGE);
    list.replaceChildren(...shown.map(rowElement));
    list.start = first + 1;
    const range = shown.length ? `${first + 1} to ${first + shown.length} of ` : "";
    count.value = `${range}${visible.length.toLocaleString("en")} ${visible.length === 1 ? data.noun : data.plural}`;
    for (const button of document.querySelectorAll(".pager button")) {
      const next = page + Number(button.dataset.step);
      button.disabled = next < 0 || next >= numPages();
    }
  }

  function update() {
    visible = filtered();
    page = 0;
    render();
    map.shown(visible.length === rows.length ? null : new Set(visible.map(row => row.key)));
    writeAddress();
  }

  function turn(step) {
    page += step;
    render();
    writeAddress();
    document.getElementById("gallery").scrollIntoView();
  }

  function photoElement(number, label) {
    const [name, picture] = data.photos[number];
    if (picture === false) return null;
    if (picture) return element("img", { alt: `${label} ${name}`, src: `data:image/webp;base64,${picture}`, decoding: "async" });
    return element("span", { class: "missing" }, picture === "" ? "cannot be opened" : "no picture on this page");
  }

  function buttonOf(row, item, label) {
    const number = item ? item[0] : row.photo;
    if (data.photos[number][1] === false) return null;
    const button = element("button", { type: "button", class: "photo", "aria-label": `Enlarge ${label} ${data.photos[number][0]}` },
      photoElement(number, label));
    button.addEventListener("click", () => enlarge(row, item));
    return button;
  }

  function captionOf(item) {
    const lines = data.measures.flatMap(([, kind], index) => {
      const value = item[2 + index];
      return value === null || value === undefined ? [] : [element("span", {}, format[kind](value))];
    });
    const sign = SIGNS[item[1]] ? element("span", { class: "mark" }, SIGNS[item[1]]) : null;
    return [sign, ...lines, nameElement(data.photos[item[0]][0])];
  }

  function rowElement(row) {
    const facets = names.flatMap((name, index) => (Array.isArray(row.facets[index]) ? [] : valuesOf(row, index)));
    const made = element("li", { class: `row ${MARKS[row.mark]}`, "data-key": row.key });
    made.classList.toggle("chosen", row.key === chosen);
    const caption = element("figcaption", {},
      element("span", {}, element("bdi", {}, facets.join(" · "))),
      row.photo === null ? null : nameElement(nameOf(row)),
      row.note ? element("span", { class: "note" }, element("bdi", {}, row.note)) : null,
      row.link ? element("a", { href: row.link, target: "_blank", rel: "noopener noreferrer" }, "OpenStreetMap") : null);
    if (map.isOnMap(row.key)) {
      const button = element("button", { type: "button" }, "on the map");
      button.addEventListener("click", () => {
        mark(row.key);
        map.toMap(row.key);
      });
      caption.append(button);
    }
    made.append(element("figure", { class: "query" }, row.photo === null ? null : buttonOf(row, null, data.noun), caption));
    made.append(element("div", { class: "strips" }, ...row.strips.map(([title, items]) => element("section", {},
      element("h3", {}, element("bdi", {}, data.titles[title])),
      element("ol", {}, ...items.map(item => element("li", {},
        element("figure", { class: MARKS[item[1]] }, buttonOf(row, item, data.titles[title]), element("figcaption", {}, ...captionOf(item))))))))));
    return made;
  }

  function mark(key) {
    chosen = key;
    for (const each of list.children) each.classList.toggle("chosen", Number(each.dataset.key) === key);
    writeAddress();
  }

  // Go to a row: to its page if the filters show it, else after removing the filters.
  function choose(key) {
    if (!byKey.has(key)) return;
    if (!visible.some(row => row.key === key)) {
      form.reset();
      update();
    }
    const index = visible.findIndex(row => row.key === key);
    if (Math.floor(index / PER_PAGE) !== page) {
      page = Math.floor(index / PER_PAGE);
      render();
    }
    mark(key);
    map.chosen(key);
    const shown = list.children[index - page * PER_PAGE];
    shown.scrollIntoView({ block: "center" });
    const button = shown.querySelector("button");
    if (button) button.focus({ preventScroll: true });
  }

  function step(direction) {
    if (!visible.length) return;
    const now = visible.findIndex(row => row.key === chosen);
    const next = now < 0 ? page * PER_PAGE : Math.min(Math.max(now + direction, 0), visible.length - 1);
    choose(visible[next].key);
  }

  // The photo of a row beside one of its items; arrows go through the items.
  function enlarge(row, item) {
    const items = row.strips.flatMap(([title, some, lines = {}]) =>
      some.map((each, number) => ({ title, each, lines: linesOf(lines[number] || []) })));
    const index = items.findIndex(({ each }) => each === item);
    enlarged = direction => {
      const next = Math.min(Math.max(index + direction, row.photo === null ? 0 : -1), items.length - 1);
      if (next !== index) enlarge(row, next < 0 ? null : items[next].each);
    };
    const hasOwn = row.photo !== null;
    const figure = pairFigure({
      left: hasOwn ? photoElement(row.photo, data.noun) : null,
      leftName: hasOwn ? [nameElement(nameOf(row)), ...pathOf(row.photo)] : [],
      right: item ? photoElement(item[0], data.titles[items[index].title]) : null,
      rightName: item ? [...captionOf(item), ...pathOf(item[0])] : [],
      rightMark: item ? MARKS[item[1]] : "",
      lines: item ? items[index].lines : [],
    });
    if (lightbox.open) {  // its buttons stay, and one of them focused
      lightbox.firstElementChild.replaceChildren(figure);
      return;
    }
    const button = (text, action) => {
      const made = element("button", { type: "button" }, text);
      made.addEventListener("click", action);
      return made;
    };
    const buttons = items.length ? [button("Previous", () => enlarged(-1)), button("Next", () => enlarged(1))] : [];
    lightbox.replaceChildren(element("div", { "aria-live": "polite" }, figure),
      element("nav", { "aria-label": "Photos" }, ...buttons, button("Close", () => lightbox.close())));
    lightbox.showModal();
  }

  // Thousandths, four for each line.
  const linesOf = numbers => Array.from({ length: numbers.length / 4 }, (_, line) =>
    numbers.slice(4 * line, 4 * line + 4).map(each => each / 1000));

  const pathOf = number => (data.photos[number][2] ? [element("code", {}, data.photos[number][2])] : []);

  function writeAddress() {
    const state = new URLSearchParams();
    if (chosen !== null) state.set(data.noun, chosen);
    else if (page) state.set("page", page + 1);
    names.forEach(name => {
      const value = form.elements[name].value;
      if (value !== "") state.set(name, data.filters[name][Number(value)]);
    });
    if (form.elements.order.value !== "0") state.set("order", data.orders[form.elements.order.value][0]);
    if (form.elements.contains.value) state.set("contains", form.elements.contains.value);
    try {
      history.replaceState(null, "", `#${state}`);
    } catch {
      // Safari refuses more than 100 changes in a few seconds, as by a key that is held down.
    }
  }

  function readAddress() {
    const state = new URLSearchParams(location.hash.slice(1));
    names.forEach(name => {
      const index = data.filters[name].indexOf(state.get(name));
      form.elements[name].value = index < 0 ? "" : String(index);
    });
    form.elements.order.value = String(Math.max(0, data.orders.findIndex(([label]) => label === state.get("order"))));
    form.elements.contains.value = state.get("contains") || "";
    chosen = null;
    visible = filtered();
    page = (Number(state.get("page")) || 1) - 1;
    render();
    map.shown(visible.length === rows.length ? null : new Set(visible.map(row => row.key)));
    if (state.get(data.noun)) choose(Number(state.get(data.noun)));
  }

  // As `write_csv` does it: an apostrophe in front of what a spreadsheet would run.
  function withoutFormula(value) {
    const isText = typeof value === "string" && !/^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/.test(value);
    return isText ? value.replace(/(^|[;\t])(?=[-=+@\t\r\n\uff1d\uff0b\uff0d\uff20])/g, "$1'") : value;
  }

  // One line for each item of the visible rows, numbers as they are.
  function csv() {
    const quoted = value => (value === null || value === undefined ? "" : /[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
    const head = ["number", data.noun, ...names, "verdict", "strip", "name", "correct", ...data.measures.map(([name]) => name)];
    const lines = [head];
    for (const row of visible) {
      const facets = names.map((name, index) => valuesOf(row, index).join("; "));
      const start = [row.key, nameOf(row), ...facets, MARKS[row.mark]];
      const items = row.strips.flatMap(([title, some]) => some.map(item =>
        [data.titles[title], data.photos[item[0]][0], ["0", "1", ""][item[1]], ...item.slice(2)]));
      lines.push(...(items.length ? items.map(item => [...start, ...item]) : [start]));
    }
    const cell = data.spreadsheet_safe ? value => quoted(withoutFormula(value)) : quoted;
    return lines.map(line => line.map(cell).join(",")).join("\r\n") + "\r\n";
  }

  function download() {
    const address = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    const link = element("a", { href: address, download: `${data.plural}.csv` });
    document.body.append(link);
    link.click();
    link.remove();
    URL.revokeObjectURL(address);
  }

  form.addEventListener("change", () => {
    chosen = null;
    update();
  });
  form.elements.contains.addEventListener("input", () => {
    chosen = null;
    update();
  });
  form.addEventListener("submit", event => event.preventDefault());
  document.getElementById("csv").addEventListener("click", download);
  for (const button of document.querySelectorAll(".pager button")) {
    button.addEventListener("click", () => {
      chosen = null;
      turn(Number(button.dataset.step));
    });
  }
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (lightbox.open) {
      if (event.key === "ArrowRight") enlarged(1);
      if (event.key === "ArrowLeft") enlarged(-1);
      return;
    }
    if (event.target.closest("input, select, textarea, dialog")) return;
    if (event.key === "j") step(1);
    if (event.key === "k") step(-1);
  });
  lightbox.addEventListener("click", event => {
    if (event.target === lightbox) lightbox.close();
  });
  window.addEventListener("hashchange", () => {
    if (location.hash === "#main") writeAddress();  // the skip link changes no filter
    else readAddress();
  });
  readAddress();
  return { choose };
}
