"use strict";

// Two photos side by side, or one above the other where there is no room, with lines between matched points.
//
// `left` and `right` are elements, an `img` or a text in its place, or null; `leftName` and `rightName` are lists of what
// stands under them. `lines` are [x, y of the left photo, x, y of the right one], as fractions of width and height from the
// upper left corner of the photos as they are shown.
const pairFigure = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const NUM_COLORS = 8;
  const END_PX = 3;
  let areShown = true;  // of one pair to the next

  function shape(tag, attributes) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  }

  // The area of a photo inside its element, which shows all of it: `object-fit: contain`.
  function areaOf(photo, around) {
    const box = photo.getBoundingClientRect();
    const scale = Math.min(box.width / photo.naturalWidth, box.height / photo.naturalHeight);
    const width = scale * photo.naturalWidth, height = scale * photo.naturalHeight;
    return { x: box.x - around.x + (box.width - width) / 2, y: box.y - around.y + (box.height - height) / 2, width, height };
  }

  // Each line is drawn twice, the wider one below in the color of the page, so that it is seen on photos of any color.
  function draw(svg, left, right, lines) {
    const around = svg.getBoundingClientRect();
    const [from, to] = [left, right].map(photo => areaOf(photo, around));
    const under = shape("g", { class: "halo" }), over = shape("g", {});
    lines.forEach(([x, y, u, v], index) => {
      const ends = { x1: from.x + x * from.width, y1: from.y + y * from.height, x2: to.x + u * to.width, y2: to.y + v * to.height };
      const color = `l${index % NUM_COLORS}`;
      for (const group of [under, over]) {
        group.append(shape("line", { class: color, ...ends }));
        for (const end of [1, 2]) group.append(shape("circle", { class: color, cx: ends[`x${end}`], cy: ends[`y${end}`], r: END_PX }));
      }
    });
    svg.replaceChildren(under, over);
  }

  function overlay(pair, left, right, lines) {
    const svg = shape("svg", { class: "lines", "aria-hidden": "true" });
    const isReady = photo => photo.complete && photo.naturalWidth > 0;
    const redraw = () => {
      if (svg.isConnected && isReady(left) && isReady(right)) draw(svg, left, right, lines);
    };
    new ResizeObserver(redraw).observe(svg);
    pair.append(svg);
    const shown = element("input", { type: "checkbox", checked: areShown });
    const show = () => svg.classList.toggle("off", !areShown);
    shown.addEventListener("change", () => {
      areShown = shown.checked;
      show();
    });
    show();
    const text = lines.length === 1 ? " line between 1 matched point" : ` lines between ${lines.length} matched points`;
    const label = element("label", { class: "lines-shown" }, shown, text);
    for (const photo of [left, right]) {
      photo.addEventListener("load", redraw);
      photo.addEventListener("error", () => {  // no lines over a text in its place
        svg.remove();
        label.remove();
      });
    }
    return label;
  }

  const isPhoto = each => each !== null && each.tagName === "IMG";
  const figure = (photo, name, mark = "") => photo && element("figure", { class: mark }, photo, element("figcaption", {}, ...name));

  return ({ left, right, leftName = [], rightName = [], rightMark = "", lines = [] }) => {
    const pair = element("div", { class: "pair" }, figure(left, leftName), figure(right, rightName, rightMark));
    const made = element("div", { class: "matched" }, pair);
    if (lines.length && isPhoto(left) && isPhoto(right)) made.append(overlay(pair, left, right, lines));
    return made;
  };
})();
