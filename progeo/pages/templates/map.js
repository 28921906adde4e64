// The map of a page.
const createMap = (() => {
  "use strict";

  const ARROW_HEAD_PX = 9;
  const CLOSE_ZOOM = { degrees: 18, meters: 1 };
  const ROOMY_PX = 12, MARGIN_PX = 40, MIN_SCALE = 0.4;  // shapes are smaller where each has fewer pixels a side
  const FEW_LINES = 200, MAX_LINES = 2000;
  const MIN_SPREAD_PX = 30;
  const SVG = "http://www.w3.org/2000/svg";

  // Outlines of radius 1, for canvas and key alike.
  const OUTLINES = {
    circle: "M1 0A1 1 0 1 1-1 0A1 1 0 1 1 1 0Z",
    triangle: "M0-1L0.9 0.6H-0.9Z",
    diamond: "M0-1L0.75 0L0 1L-0.75 0Z",
    square: "M-0.8-0.8H0.8V0.8H-0.8Z",
    star: "M0-1L0.25-0.34L0.95-0.31L0.4 0.13L0.59 0.81L0 0.42L-0.59 0.81L-0.4 0.13L-0.95-0.31L-0.25-0.34Z",
    cross: "M-0.8-0.8L0.8 0.8M-0.8 0.8L0.8-0.8",
  };
  // Later ones are drawn over earlier ones. A wrong one is hollow and larger, so that it is seen around a correct one.
  const KINDS = {
    database: { outline: "circle", color: "--map-database", radius: 2.5, isFilled: true, haloPx: 0 },
    wrong: { outline: "triangle", color: "--wrong", radius: 11, isFilled: false, haloPx: 1 },
    correct: { outline: "circle", color: "--correct", radius: 4.5, isFilled: true, haloPx: 1 },
    query: { outline: "diamond", color: "--map-query", radius: 7, isFilled: true, haloPx: 1 },
    found: { outline: "diamond", color: "--map-query", radius: 7, isFilled: true, haloPx: 1 },
    match: { outline: "square", color: "--s2", radius: 6, isFilled: true, haloPx: 1 },
    photo: { outline: "star", color: "--map-query", radius: 11, isFilled: true, haloPx: 1.5 },
    problem: { outline: "cross", color: "--wrong", radius: 7, isFilled: false, haloPx: 1.5 },
  };
  const STROKE_PX = 2;
  const colorOfPolygons = number => (number === null ? "--map-database" : `--s${number % 8}`);

  const Shape = L.CircleMarker.extend({
    _updatePath() {
      if (this._renderer._drawing && !this._empty()) drawShape(this._renderer._ctx, this);
    },
    _empty() {
      return this.options.isHidden || L.CircleMarker.prototype._empty.call(this);
    },
    _containsPoint(point) {
      return !this.options.isHidden && L.CircleMarker.prototype._containsPoint.call(this, point);
    },
  });

  const Arrow = L.Polyline.extend({
    _clickTolerance() {
      return ARROW_HEAD_PX;  // room for the head
    },
    _updatePath() {
      this._renderer._updatePoly(this);
      if (this._renderer._drawing && this._parts.length) drawHead(this._renderer._ctx, this);
    },
  });

  function drawShape(context, shape) {
    const { style } = shape.options, radius = shape._radius;
    context.save();
    context.translate(shape._point.x, shape._point.y);
    context.scale(radius, radius);
    context.lineJoin = "round";
    context.globalAlpha = 1;
    context.strokeStyle = style.halo;
    context.lineWidth = (2 * style.haloPx + (style.isFilled ? 0 : STROKE_PX)) / radius;
    if (style.haloPx) context.stroke(style.path);
    context.fillStyle = context.strokeStyle = style.color;
    context.lineWidth = STROKE_PX / radius;
    if (style.isFilled) context.fill(style.path);
    else context.stroke(style.path);
    context.restore();
  }

  function drawHead(context, arrow) {
    const [from, to] = arrow._rings[0], length = from.distanceTo(to);
    if (length < ARROW_HEAD_PX || !arrow._renderer._bounds.contains(to)) return;
    const along = to.subtract(from).divideBy(length), back = to.subtract(along.multiplyBy(ARROW_HEAD_PX));
    const aside = L.point(-along.y, along.x).multiplyBy(ARROW_HEAD_PX / 2.5);
    context.globalAlpha = 1;
    context.fillStyle = arrow.options.color;
    context.beginPath();
    for (const { x, y } of [to, back.add(aside), back.subtract(aside)]) context.lineTo(x, y);
    context.fill();
  }

  function openMap(container, unit, isStill) {
    const map = L.map(container, {
      crs: unit === "degrees" ? L.CRS.EPSG3857 : L.CRS.Simple,
      minZoom: unit === "degrees" ? 1 : -14,
      maxZoom: unit === "degrees" ? 21 : 6,
      zoomSnap: 0.25,
      dragging: false,
      attributionControl: false,
      zoomAnimation: !isStill,
      fadeAnimation: !isStill,
      inertia: !isStill,
    });
    if (isStill) map.panBy = offset => L.Map.prototype.panBy.call(map, offset, { animate: false });
    L.control.scale({ imperial: false, maxWidth: 140 }).addTo(map);
    return map;
  }

  // One finger and the wheel scroll the page, unless Ctrl is held or the pointer was pressed on the map.
  function leaveScrollingToPage(container, map) {
    let isActive = false;
    const activate = () => { isActive = true; };
    container.addEventListener("pointerdown", event => {
      activate();
      map.dragging[event.pointerType === "touch" ? "disable" : "enable"]();
    }, true);
    container.addEventListener("focusin", activate);
    container.addEventListener("pointerleave", () => { isActive = false; });
    container.addEventListener("wheel", event => {
      if (!isActive && !event.ctrlKey && !event.metaKey) event.stopImmediatePropagation();
    }, { capture: true, passive: true });
  }

  function swatch(outline, color, isFilled, isDashed = false) {
    const svg = document.createElementNS(SVG, "svg"), path = document.createElementNS(SVG, "path");
    svg.setAttribute("viewBox", "-1.3 -1.3 2.6 2.6");
    svg.setAttribute("aria-hidden", "true");
    path.setAttribute("d", OUTLINES[outline]);
    path.style.fill = isFilled ? `var(${color})` : "none";
    path.style.stroke = `var(${color})`;
    path.style.strokeWidth = isFilled ? 0 : 0.3;
    if (isDashed) path.style.strokeDasharray = "0.6 0.45";
    svg.append(path);
    return svg;
  }

  const COUNTS = new Intl.NumberFormat("en-US");
  const counted = count => COUNTS.format(count);
  const pair = (values, index) => [values[2 * index], values[2 * index + 1]];
  const numPairs = values => values.length / 2;

  class PageMap {
    constructor(container, data, chosen) {
      this.container = container;
      this.data = data;
      this.chosen = chosen;
      this.isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
      this.map = openMap(container, data.unit, this.isStill);
      this.renderer = L.canvas({ padding: 0.3, tolerance: matchMedia("(pointer: coarse)").matches ? 8 : 2 });
      this.bounds = L.latLngBounds(pair(data.bounds, 0), pair(data.bounds, 1));
      this.shapes = [];
      this.byKey = new Map();
      this.styles = Object.fromEntries(Object.entries(KINDS).map(([kind, { outline, radius, isFilled, haloPx }]) =>
        [kind, { radius, isFilled, haloPx, path: new Path2D(OUTLINES[outline]) }]));
      this.key = element("div", { class: "map-key" });
      this.addLayers();
      this.addKey();
      this.fit(false);
      leaveScrollingToPage(container, this.map);
      this.pick = null;
      this.map.on("click", event => this.picked(event.latlng));
      container.addEventListener("keydown", event => {
        if (event.key === "Enter" && event.target === container) this.picked(this.map.getCenter());
      });
      new ResizeObserver(() => this.resized()).observe(container);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolor());
    }

    // Layers, the lowest first.

    addLayers() {
      const { database, polygons, points } = this.data, group = () => this.withTooltips(L.featureGroup());
      this.areas = group();
      this.lines = L.featureGroup();
      this.points = group();
      this.details = group();
      this.overlays = new Map();
      this.readColors();
      if (database) this.addDatabase(database);
      for (const each of polygons) this.addPolygons(each, this.areas);
      const order = Object.keys(KINDS);
      for (const each of [...points].sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind))) {
        this.shapes.push(...this.addPoints(each, this.points));
      }
      for (const shape of this.shapes) if (shape.key !== null) this.byKey.set(shape.key, shape);
      this.map.fitBounds(this.bounds);  // layers can be projected only on a map with a view
      for (const each of [this.areas, this.lines, this.points, this.details]) each.addTo(this.map);
      this.recolor();
      this.resizeShapes();
      this.map.on("zoomend", () => this.resizeShapes());
    }

    // In a crowd, shapes are smaller and lose their halo.
    resizeShapes() {
      if (!this.shapes.length) return;
      const pixels = L.bounds(this.shapes.map(shape => shape._point)).getSize().add([MARGIN_PX, MARGIN_PX]);
      const side = Math.sqrt(pixels.x * pixels.y / this.shapes.length);
      const scale = Math.min(1, Math.max(MIN_SCALE, side / ROOMY_PX));
      for (const [kind, { radius, haloPx }] of Object.entries(KINDS)) {
        Object.assign(this.styles[kind], { radius: radius * scale, haloPx: scale < 1 ? 0 : haloPx });
      }
      for (const shape of this.shapes) shape.setRadius(shape.options.style.radius);
    }

    addDatabase(database) {
      if (database.positions) {
        this.addPoints({ ...database, kind: "database" }, this.areas);
        return;
      }
      const { squares, origin, sides } = database;
      let most = 1;
      for (let at = 2; at < squares.length; at += 3) most = Math.max(most, squares[at]);
      for (let at = 0; at < squares.length; at += 3) {
        const low = [0, 1].map(axis => origin[axis] + squares[at + axis] * sides[axis]), count = squares[at + 2];
        const area = L.rectangle([low, low.map((value, axis) => value + sides[axis])], {
          renderer: this.renderer, stroke: false, colorName: "--map-database",
          fillOpacity: 0.25 + 0.7 * Math.log1p(count) / Math.log1p(most),
        });
        area.label = `${database.name}: ${counted(count)}`;
        this.areas.addLayer(area);
      }
    }

    addPolygons({ name, color, corners, labels, weights }, group) {
      for (let index = 0; index < corners.length / 8; index++) {
        const polygon = L.polygon([0, 1, 2, 3].map(corner => pair(corners, 4 * index + corner)), {
          renderer: this.renderer, weight: 1, colorName: colorOfPolygons(color),
          fillOpacity: weights ? 0.1 + 0.8 * weights[index] : 0.45,
        });
        polygon.label = labels ? labels[index] : name;
        group.addLayer(polygon);
      }
    }

    addPoints({ name, kind, positions, keys, labels, targets }, group) {
      const style = this.styles[kind], added = [];
      for (let index = 0; index < numPairs(positions); index++) {
        const shape = new Shape(pair(positions, index), {
          renderer: this.renderer, style, radius: style.radius, weight: STROKE_PX,
        });
        shape.key = keys ? keys[index] : null;
        shape.kind = name;
        shape.label = labels ? labels[index] : name;
        shape.target = targets && targets[2 * index] !== null ? pair(targets, index) : null;
        group.addLayer(shape);
        added.push(shape);
      }
      return added;
    }

    withTooltips(group) {
      group.bindTooltip(layer => element("bdi", {}, layer.label), { direction: "top", offset: [0, -6] });
      return group.on("click", event => {
        if (this.pick) return;  // the map gets the click
        L.DomEvent.stopPropagation(event);
        if (event.propagatedFrom instanceof Shape) this.clicked(event.propagatedFrom);
      });
    }

    // Colors are those of the page, which follow the scheme of the reader.

    readColors() {
      const style = getComputedStyle(this.container);
      this.color = name => style.getPropertyValue(name).trim();
      for (const [kind, each] of Object.entries(this.styles)) {
        Object.assign(each, { color: this.color(KINDS[kind].color), halo: this.color("--page") });
      }
    }

    recolor() {
      this.readColors();
      for (const group of [this.areas, this.lines, this.details]) {
        group.eachLayer(layer => {
          const { colorName } = layer.options;
          if (colorName) layer.setStyle({ color: this.color(colorName), fillColor: this.color(colorName) });
        });
      }
      this.points.eachLayer(shape => shape.redraw());
      this.areas.eachLayer(layer => layer.redraw());
      for (const { group } of this.overlays.values()) {
        group.eachLayer(layer => (layer.options.colorName ? this.paint(layer) : layer.redraw()));
      }
    }

    paint(layer) {
      const { colorName } = layer.options;
      layer.setStyle({ color: this.color(colorName), fillColor: this.color(colorName) });
    }

    // What a page draws after it was opened, under a name, with entries in the key; drawn again, it is replaced.

    draw(name, { points = [], polygons = [], circles = [] } = {}) {
      const before = this.overlays.get(name);
      if (before) {
        before.group.remove();
        for (const each of before.entries) each.remove();
        if (this.marked && before.group.hasLayer(this.marked)) this.mark(null, null);
      }
      const group = this.withTooltips(L.featureGroup()), entries = [], bounds = L.latLngBounds([]);
      for (const each of polygons) {
        this.addPolygons(each, group);
        for (let index = 0; index < numPairs(each.corners); index++) bounds.extend(pair(each.corners, index));
        entries.push(this.entry(each, swatch("square", colorOfPolygons(each.color), true), counted(each.corners.length / 8)));
      }
      for (const each of circles) {
        this.addCircle(each, group);
        bounds.extend(this.boundsOf(each));
        if (each.name) entries.push(this.entry(each, swatch("circle", each.color, false, each.isDashed), each.text || ""));
      }
      for (const each of points) {
        const shapes = this.addPoints(each, group);
        for (const shape of shapes) bounds.extend(shape.getLatLng());
        if (each.numbers) shapes.forEach((shape, index) => this.number(shape, each.numbers[index]));
        entries.push(this.entry(each, swatchOf(each.kind), each.text || counted(numPairs(each.positions))));
      }
      this.shapesList.prepend(...entries);
      group.addTo(this.map);
      this.overlays.set(name, { group, entries, bounds });
      this.recolor();
    }

    addCircle({ name, color, center, radius_m: radius, opacity = 0, isDashed = false, label = name }, group) {
      const circle = L.circle(center, {
        renderer: this.renderer, radius, colorName: color, weight: 2, fillOpacity: opacity, dashArray: isDashed ? "6 5" : null,
      });
      circle.label = label;
      group.addLayer(circle);
    }

    // Leaflet knows the bounds of a circle only in pixels of a view that does not move.
    boundsOf({ center: [north, east], radius_m: radius }) {
      if (this.data.unit === "degrees") return L.latLng(north, east).toBounds(2 * radius);
      return L.latLngBounds([north - radius, east - radius], [north + radius, east + radius]);
    }

    number(shape, number) {
      shape.unbindTooltip();
      shape.bindTooltip(element("span", {}, String(number)), { permanent: true, direction: "right", offset: [4, 0], className: "map-number" });
    }

    // Show everything that is drawn under some names, or all of the map if nothing is.
    fitTo(names) {
      if (this.map._animatingZoom) {  // Leaflet ignores a change of view until then
        this.map.once("zoomend", () => this.fitTo(names));
        return;
      }
      const bounds = L.latLngBounds([]);
      for (const name of names) if (this.overlays.has(name)) bounds.extend(this.overlays.get(name).bounds);
      if (!bounds.isValid() || this.isEmpty()) {
        this.fit(true);
        return;
      }
      this.map.fitBounds(bounds.pad(0.15), {
        padding: [30, 30], maxZoom: CLOSE_ZOOM[this.data.unit], animate: !this.isStill,
      });
    }

    // Let the next click on the map, or Enter on it for its middle, choose a position; null stops that.
    setPick(pick) {
      this.pick = pick;
      this.container.classList.toggle("picking", pick !== null);
    }

    picked(position) {
      const pick = this.pick, { lat, lng } = position.wrap();
      if (pick) pick(lat, lng);
    }

    arrow(shape, weight) {
      return new Arrow([shape.getLatLng(), shape.target], {
        renderer: this.renderer, interactive: false, weight, opacity: 0.8,
        colorName: "--text", color: this.color("--text"),
      });
    }

    // What is chosen.

    // Of several points at one position, each further click takes the next.
    clicked(shape) {
      const here = this.shapes.filter(each => !each.options.isHidden && each.getLatLng().equals(shape.getLatLng()));
      const next = here.includes(shape) ? here[(here.indexOf(this.marked) + 1) % here.length] : shape;
      this.mark(next, next.key, here.length);
      if (next.key === null) return;
      this.isReporting = true;  // the page may choose in turn: the map stays where the reader clicked
      this.chosen(next.key);
      this.isReporting = false;
    }

    has(key) {
      return this.byKey.has(key) || key in this.data.details;
    }

    choose(key) {
      if (this.isReporting) return true;
      const shape = this.byKey.get(key), bounds = this.mark(shape, key);
      if (!bounds.isValid()) return false;
      const maxZoom = Math.max(CLOSE_ZOOM[this.data.unit], this.map.getZoom());
      this.map.fitBounds(bounds.pad(0.1), { padding: [30, 30], maxZoom, animate: !this.isStill });
      return true;
    }

    mark(shape, key, numHere = 1) {
      const bounds = L.latLngBounds([]), detail = key === null ? null : this.data.details[key];
      this.details.clearLayers();
      if (detail) {
        for (const each of detail.polygons) this.addPolygons(each, this.details);
        for (const each of detail.points) this.addPoints(each, this.details);
        this.details.eachLayer(layer => bounds.extend(layer.getBounds ? layer.getBounds() : layer.getLatLng()));
      }
      if (shape) {
        bounds.extend(shape.getLatLng());
        if (shape.target) {
          bounds.extend(shape.target);
          this.details.addLayer(this.arrow(shape, 3));
        }
        this.details.addLayer(L.circleMarker(shape.getLatLng(), {
          renderer: this.renderer, interactive: false, fill: false, weight: 3, radius: shape.getRadius() + 6,
          colorName: "--text", color: this.color("--text"),
        }));
      }
      this.marked = shape;
      this.recolor();
      this.describe(shape, numHere);
      return bounds;
    }

    describe(shape, numHere) {
      this.text.replaceChildren();
      if (!shape) return;
      const { lat, lng } = shape.getLatLng(), also = numHere > 1 ? `, one of ${numHere} here: click again for the next` : "";
      this.text.append(nameElement(shape.label), shape.label === shape.kind ? "" : ` (${shape.kind})`, `${also}: `);
      if (this.data.unit === "meters") {
        this.text.append(`${lat.toFixed(1)} m north, ${lng.toFixed(1)} m east`);
        return;
      }
      const [latitude, longitude] = [lat, shape.getLatLng().wrap().lng].map(value => value.toFixed(6));
      const href = `https://www.openstreetmap.org/?mlat=${latitude}&mlon=${longitude}#map=18/${latitude}/${longitude}`;
      this.text.append(`${latitude}, ${longitude} `,
        element("a", { href, target: "_blank", rel: "noopener noreferrer" }, "OpenStreetMap"));
    }

    filter(keys) {
      const shown = keys === null ? null : new Set(keys);
      for (const shape of this.shapes) {
        const isHidden = shown !== null && shape.key !== null && !shown.has(shape.key);
        if (Boolean(shape.options.isHidden) === isHidden) continue;
        shape.options.isHidden = isHidden;
        shape.redraw();
      }
      this.countShown();
      this.drawLines();
      if (keys !== null) this.approach(this.shapes.filter(shape => !shape.options.isHidden));
    }

    // Go to points that lie outside of the view, or so close together in it that they look like one.
    approach(shapes) {
      const bounds = L.latLngBounds(shapes.map(shape => shape.getLatLng()));
      if (!bounds.isValid()) return;
      const [one, other] = [bounds.getNorthEast(), bounds.getSouthWest()].map(each => this.map.latLngToContainerPoint(each));
      if (one.distanceTo(other) >= MIN_SPREAD_PX && this.map.getBounds().intersects(bounds)) return;
      this.map.fitBounds(bounds.pad(0.1), {
        padding: [24, 24], maxZoom: CLOSE_ZOOM[this.data.unit], animate: !this.isStill,
      });
    }

    // Lines from all points that are shown.

    drawLines() {
      this.lines.clearLayers();
      if (!this.hasLines || !this.hasLines.checked) return;
      const from = this.shapes.filter(shape => shape.target && !shape.options.isHidden);
      const step = Math.ceil(from.length / MAX_LINES);
      for (let index = 0; index < from.length; index += step) this.lines.addLayer(this.arrow(from[index], 1.5));
      this.linesText.textContent = step > 1 ? ` of every ${step}th point` : "";
      this.points.bringToFront();
      this.details.bringToFront();
    }

    // The key: what shapes mean, what the reader can do, and what is chosen.

    addKey() {
      const { database, polygons, points, outside } = this.data;
      this.counts = new Map();
      const shapes = this.shapesList = element("ul", { class: "map-shapes" });
      for (const each of points) shapes.append(this.entry(each, swatchOf(each.kind), pointsText(each), each.name));
      for (const each of polygons) {
        shapes.append(this.entry(each, swatch("square", colorOfPolygons(each.color), true), counted(each.corners.length / 8)));
      }
      if (database) shapes.append(this.entry(database, databaseSwatch(database), databaseText(database)));
      this.text = element("p", { class: "map-text map-chosen", role: "status" });
      this.message = element("p", { class: "map-text", role: "status" });
      const help = "Zoom with + and −, with Ctrl and the wheel, or with two fingers; move with the arrow keys, the mouse "
        + "or two fingers. After a click the wheel alone zooms.";
      this.key.append(shapes, this.text, this.controls(), this.message, element("p", { class: "map-text map-help" }, help));
      if (outside) {
        this.key.append(element("p", { class: "map-text" }, `${counted(outside)} positions far from all others lie outside of this view.`));
      }
      this.container.after(this.key);
      this.drawLines();
    }

    entry({ name }, picture, text, counting = null) {
      const count = element("span", {}, text);
      if (counting !== null) this.counts.set(counting, { count, text });
      return element("li", {}, picture, nameElement(name), count);
    }

    countShown() {
      const shown = new Map(), hidden = new Map();
      for (const { kind, options } of this.shapes) {
        const counts = options.isHidden ? hidden : shown;
        counts.set(kind, (counts.get(kind) || 0) + 1);
      }
      for (const [name, { count, text }] of this.counts) {
        count.textContent = hidden.has(name) ? `${counted(shown.get(name) || 0)} of ${text}` : text;
      }
    }

    controls() {
      const row = element("div", { class: "map-controls" }, this.button("Show all", () => this.fit(true)));
      const numLines = this.shapes.filter(shape => shape.target).length;
      if (numLines) {
        this.hasLines = element("input", { type: "checkbox", checked: numLines <= FEW_LINES });
        this.hasLines.addEventListener("change", () => this.drawLines());
        this.linesText = element("span");
        row.append(element("label", {}, this.hasLines, " lines", this.linesText));
      }
      if (this.data.tiles) row.append(this.tilesButton());
      return row;
    }

    button(text, click) {
      const made = element("button", { type: "button" }, text);
      made.addEventListener("click", click);
      return made;
    }

    fit(isAnimated) {
      if (this.isEmpty()) return;
      this.map.fitBounds(this.bounds, {
        padding: [24, 24], maxZoom: CLOSE_ZOOM[this.data.unit], animate: isAnimated && !this.isStill,
      });
    }

    // Without an area, as in a window of one pixel, no view fits.
    isEmpty() {
      const { x, y } = this.map.getSize();
      return x * y === 0;
    }

    resized() {
      const wasEmpty = this.isEmpty();
      this.map.invalidateSize({ animate: false });
      if (wasEmpty) this.fit(false);
    }

    // Street tiles, which only a click asks for.

    tilesButton() {
      const host = hostOf(this.data.tiles);
      const toggle = this.button("", () => this.tiles ? this.hideTiles() : this.showTiles());
      this.tilesToggle = toggle;
      this.tilesTexts = [`Show streets from ${host}`, "Hide streets"];
      this.hideTiles();
      if (this.data.tiles.at_once) this.showTiles();
      return toggle;
    }

    showTiles() {
      let numLoaded = 0, numFailed = 0;
      this.tiles = L.tileLayer(this.data.tiles.url, {
        maxNativeZoom: 18, maxZoom: 21, referrerPolicy: "strict-origin-when-cross-origin",
      });
      this.credit = L.control.attribution({ prefix: "Leaflet" }).addTo(this.map);
      this.credit.addAttribution(creditOf(this.data.tiles));
      this.tiles.on("tileload", () => { numLoaded++; }).on("tileerror", () => {
        if (this.tiles && ++numFailed > numLoaded) {
          this.hideTiles();
          const why = location.protocol === "file:" ? "refuses pages that are opened from a file" : "refuses this page";
          this.message.textContent = `${hostOf(this.data.tiles)} gave no streets: it cannot be reached, or ${why}.`;
        }
      });
      this.map.options.zoomSnap = 1;  // between levels, tiles are blurred
      this.map.setZoom(Math.floor(this.map.getZoom()), { animate: !this.isStill });
      this.tiles.addTo(this.map);
      if (this.message) this.message.textContent = "";
      this.tilesToggle.textContent = this.tilesTexts[1];
    }

    hideTiles() {
      if (this.tiles) {
        this.tiles.remove();
        this.credit.remove();
        this.map.options.zoomSnap = 0.25;
      }
      this.tiles = null;
      this.tilesToggle.textContent = this.tilesTexts[0];
    }
  }

  const hostOf = tiles => new URL(tiles.url.replaceAll(/[{}]/g, "")).host;

  // A text of the operator, whose mention of OpenStreetMap is a link to its terms.
  function creditOf({ attribution }) {
    const credit = element("span"), [before, ...after] = attribution.split("OpenStreetMap");
    credit.append(before);
    for (const each of after) credit.append(element("a", { href: "https://www.openstreetmap.org/copyright" }, "OpenStreetMap"), each);
    if (after.length) credit.append(", ", element("a", { href: "https://www.openstreetmap.org/fixthemap" }, "report a mistake"));
    return credit.outerHTML;
  }

  function swatchOf(kind) {
    const { outline, color, isFilled } = KINDS[kind];
    return swatch(outline, color, isFilled);
  }

  const databaseSwatch = ({ positions }) => swatch(positions ? "circle" : "square", "--map-database", true);

  function pointsText({ count, known, positions }) {
    const drawn = numPairs(positions);
    const parts = [counted(count)];
    if (drawn < known) parts.push(`an even sample of ${counted(drawn)} drawn`);
    if (known < count) parts.push(`${counted(count - known)} without a position`);
    return parts.join(", ");
  }

  function databaseText({ count, known, side_m: side }) {
    const parts = [counted(count)];
    if (side) parts.push(`counted in squares of ${counted(side)} m`);
    if (known < count) parts.push(`${counted(count - known)} without a position`);
    return parts.join(", ");
  }

  return (container, data, { chosen = () => {} } = {}) => {
    if (data.bounds === null) {
      container.hidden = true;
      container.after(element("p", { class: "map-text" }, "No position is known, so there is no map."));
      return { has: () => false, choose: () => false, filter() {}, draw() {}, fitTo() {}, setPick() {}, middle: null };
    }
    const map = new PageMap(container, data, chosen);
    return {
      has: key => map.has(key),
      choose: key => map.choose(key),
      filter: keys => map.filter(keys),
      draw: (name, content) => map.draw(name, content),
      fitTo: names => map.fitTo(names),
      setPick: pick => map.setPick(pick),
      middle: map.bounds.getCenter(),
    };
  };
})();
