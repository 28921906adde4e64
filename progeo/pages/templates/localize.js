// The page that localizes photos: photos are dropped, chosen, pasted or taken, and sent one by one.
(() => {
  "use strict";

  const AT_ONCE = 2;
  const MB = 1e6;
  const LARGE = "side=1024";
  const METERS_PER_DEGREE = 111195;
  const id = name => document.getElementById(name);
  const root = id("localize"), form = id("ask"), drop = id("drop"), status = id("status"), card = id("answer");
  const maxBytes = Number(root.dataset.maxMb) * MB;
  const photos = [], held = [], queue = [];  // `held` are photos that wait for valid options
  let map = null, unit = "degrees", numRunning = 0, chosen = null;

  // Nothing is certain, and nothing impossible.
  function percent(share) {
    if (share > 0.999) return "over 99.9 %";
    if (share < 0.001) return "under 0.1 %";
    return `${(100 * share).toFixed(share < 0.1 || share > 0.99 ? 1 : 0)} %`;
  }
  const button = (text, click, attributes = {}) => {
    const made = element("button", { type: "button", ...attributes }, text);
    made.addEventListener("click", click);
    return made;
  };
  const isFinished = photo => photo.answer !== null || photo.error !== "";

  // Photos

  function add(files) {
    if (!files.length) return;
    const added = [...files].map(newPhoto);
    photos.push(...added);
    choose(added[0]);
    if (card.getBoundingClientRect().top > innerHeight - 100) card.scrollIntoView({ block: "start" });
    enqueue(added);
  }

  function newPhoto(file) {
    const name = file.name || "photo";
    const photo = {
      file, name, address: URL.createObjectURL(file), answer: null, error: "", match: 0,
      bar: element("progress", { max: 1, "aria-label": `Progress of ${name}` }), note: element("span"), state: element("span"),
    };
    photo.entry = button("", () => choose(photo));
    photo.entry.append(element("span", { class: "thumbnail" }, ownPicture(photo, "")), element("span", {}, nameElement(name), photo.state));
    return photo;
  }

  // The photo as this browser shows it, or words in its place.
  function ownPicture(photo, alt) {
    const image = element("img", { src: photo.address, alt, decoding: "async", loading: "lazy" });
    image.addEventListener("error", () => {
      if (photos.includes(photo)) image.replaceWith(element("span", { class: "missing" }, "This browser cannot show this photo."));
    });
    return image;
  }

  function enqueue(some) {
    for (const photo of some) {
      Object.assign(photo, { answer: null, error: "", match: 0 });
      say(photo, "Not sent yet: correct the options first");
      photo.bar.value = 0;
    }
    held.push(...some);
    update();
    if (!showWrong()) release();
  }

  // Let held photos be sent with the options of now, which are valid.
  function release() {
    const settings = settingsNow();
    for (const photo of held) {
      photo.settings = settings;
      say(photo, "Waiting");
      photo.bar.removeAttribute("value");
    }
    queue.push(...held.splice(0));
    work();
  }

  function work() {
    while (numRunning < AT_ONCE && queue.length) {
      numRunning++;
      localize(queue.shift()).finally(() => {
        numRunning--;
        work();
      });
    }
  }

  async function localize(photo) {
    try {
      const { results, orientation } = await service.post("localize", formOf(photo), {
        progress(share) {
          if (share < 1) photo.bar.value = share;
          else photo.bar.removeAttribute("value");
          say(photo, share < 1 ? `Sending, ${Math.floor(100 * share)} %` : "Looking for the place");
        },
        busy: seconds => say(photo, `The service is busy, again in ${seconds} s`),
      });
      photo.error = results[0].error;
      if (!photo.error) photo.answer = { ...results[0], orientation };
    } catch (error) {
      photo.error = error.message;
    }
    if (photos.includes(photo)) finished(photo);
  }

  function formOf(photo) {
    if (photo.file.size > maxBytes) {
      throw new Error(`${photo.name} has ${(photo.file.size / MB).toFixed(0)} MB, and the service takes ${root.dataset.maxMb} MB: scale it down.`);
    }
    const body = new FormData();
    for (const [name, value] of Object.entries(photo.settings)) body.append(name, value);
    body.append("photos", photo.file, photo.name);
    return body;
  }

  function say(photo, text) {
    photo.note.textContent = photo.state.textContent = text;
  }

  function finished(photo) {
    say(photo, verdict(photo));
    const text = photo.error || `${headline(photo.answer)}. ${ended(photo.answer.words)}`;
    const numDone = photos.filter(isFinished).length;
    status.replaceChildren(element("span", { class: "beyond" }, element("bdi", {}, photo.name), `: ${text} `),
      photos.length > 1 ? `${numDone} of ${photos.length} photos are done.` : "");
    update();
  }

  const ended = words => words.replace(/[.]?$/, ".");

  function verdict({ answer, error }) {
    if (error) return "error";
    if (answer.known === false) return "unknown";
    return answer.confidence === null ? answer.position : `${answer.position}, ${percent(answer.confidence)}`;
  }

  const headline = ({ known, position }) => (known === false ? `Unknown, at best ${position}` : position);

  function choose(photo) {
    chosen = photo;
    update();
  }

  function clear() {
    const addresses = photos.map(photo => photo.address);
    setTimeout(() => addresses.forEach(each => URL.revokeObjectURL(each)), 10_000);  // one may still be loading
    service.forgetPictures();
    photos.length = held.length = queue.length = 0;
    status.textContent = "";
    choose(null);
    id("choose").focus();
  }

  // What stands on the page. Only what changed is made anew, so that the focus stays where it is.

  let shown = [null];

  function update() {
    form.classList.toggle("has-photos", photos.length > 0);
    id("photos").hidden = photos.length < 2;
    id("of-all").hidden = !photos.length;
    id("geojson").disabled = !photos.some(photo => photo.answer);
    id("again").hidden = !photos.length;
    id("again").disabled = !photos.every(isFinished);
    updateList();
    const now = chosen ? [chosen, chosen.answer, chosen.error] : [null];
    if (now.every((each, index) => each === shown[index])) {
      showOthersOnMap();
      return;
    }
    shown = now;
    card.hidden = chosen === null;
    card.replaceChildren(...(chosen ? cardOf(chosen) : []));
    updateMatches();
    showOnMap();
  }

  function updateList() {
    const list = id("photos");
    if (!photos.length) list.replaceChildren();
    for (const photo of photos) {
      photo.entry.setAttribute("aria-current", String(photo === chosen));
      photo.state.className = photo.error || (photo.answer && photo.answer.known === false) ? "bad" : "quiet";
      if (!photo.entry.isConnected) list.append(element("li", {}, photo.entry));
    }
  }

  function cardOf(photo) {
    const picture = element("div", { class: "own" }, ownPicture(photo, `Your photo ${photo.name}`));
    const name = element("p", { class: "quiet" }, nameElement(photo.name));
    if (!isFinished(photo)) {
      return [picture, element("div", {}, element("h2", { id: "answer-title" }, "Where is this?"), name, photo.bar, element("p", {}, photo.note))];
    }
    if (photo.error) {
      return [picture, element("div", {}, element("h2", { id: "answer-title", class: "bad" }, "Not localized"), name,
        element("p", { class: "error" }, photo.error), element("p", { class: "buttons" }, button("Try again", () => {
          card.focus();
          enqueue([photo]);
        })))];
    }
    return [picture, element("div", {}, ...answerOf(photo.answer), name)];
  }

  function answerOf(answer) {
    const { known, words, confidence, position, link, verified } = answer, isUnknown = known === false;
    const title = isUnknown ? "Unknown" : position;
    const parts = [element("h2", { id: "answer-title", class: isUnknown ? "bad" : known ? "good" : "" }, title)];
    if (confidence !== null) {
      const bar = element("span", {});
      bar.style.width = `${100 * confidence}%`;
      parts.push(element("div", { class: `share ${isUnknown ? "bad" : ""}`, "aria-hidden": "true" }, bar));
    }
    parts.push(element("p", { class: "words" }, ended(words)));
    if (verified) parts.push(element("p", { class: "quiet" }, "The best matches were compared with the photo, point by point."));
    if (isUnknown) parts.push(element("p", {}, `At best: ${position}`));
    const copy = button("Copy coordinates", () => copyText(position, copy));
    const buttons = [copy];
    if (link) buttons.push(element("a", { class: "button", href: link, target: "_blank", rel: "noopener noreferrer" }, "OpenStreetMap"));
    parts.push(element("p", { class: "buttons" }, ...buttons));
    return parts;
  }

  // The clipboard is not for pages over plain HTTP, but a selected text can be copied there.
  async function copyText(text, from) {
    let isCopied = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const field = element("textarea", { readonly: true, class: "beyond" }, text);
      document.body.append(field);
      field.select();
      isCopied = document.execCommand("copy");
      field.remove();
      from.focus();
    }
    status.textContent = isCopied ? `Copied: ${text}` : `This browser does not let pages copy: ${text}`;
  }

  // Matches

  function updateMatches() {
    const answer = chosen && chosen.answer;
    id("matches").hidden = !answer;
    if (!answer) {
      id("pair").replaceChildren();
      id("match-list").replaceChildren();
      return;
    }
    id("match-list").replaceChildren(...answer.matches.map((match, index) => matchEntry(chosen, match, index)));
    updatePair(chosen);
  }

  function matchEntry(photo, match, index) {
    const isChosen = photo.match === index;
    const label = `Compare with match ${index + 1}`;
    const shown = element("span", { class: "photo" }, match.image ? pictureOf(match, "") : element("span", { class: "missing" }, "no picture"));
    const made = match.image ? button(shown, () => chooseMatch(index), { "aria-pressed": String(isChosen), "aria-label": label }) : "";
    return element("li", { class: isChosen && match.image ? "chosen" : "" }, element("figure", {}, made, element("figcaption", {}, ...captionOf(photo, match, index))));
  }

  function captionOf({ answer }, match, index) {
    const first = answer.matches[0], meters = apart(first, match);
    return [
      element("b", {}, `Match ${index + 1}`),
      ...[
        match.probability === null ? `descriptor distance ${match.distance.toFixed(3)}` : `probability ${percent(match.probability)}`,
        match.inliers === null || match.inliers === undefined ? "" : `${match.inliers.toLocaleString("en")} matched points`,
        index && meters !== null ? `${metersText(meters)} from match 1` : "",
        match.heading_deg === null ? "" : `looking ${Math.round(match.heading_deg) % 360}°`,
      ].filter(Boolean).map(text => element("span", {}, text)),
      nameElement(match.name),
    ];
  }

  function pictureOf(match, alt, query = "") {
    const image = element("img", { alt, decoding: "async" });
    let words = "This browser cannot show this picture.";
    image.addEventListener("error", () => image.replaceWith(element("span", { class: "missing" }, words)));
    const path = query ? `${match.image}${match.image.includes("?") ? "&" : "?"}${query}` : match.image;
    service.picture(path).then(
      address => { image.src = address; },
      error => {
        words = error.message;
        image.dispatchEvent(new Event("error"));
      });
    return image;
  }

  function updatePair(photo) {
    const { matches, orientation } = photo.answer, match = matches[photo.match];
    id("pair").replaceChildren();
    if (!match.image) return;
    id("pair").append(pairFigure({
      left: ownPicture(photo, `Your photo ${photo.name}`),
      leftName: [element("b", {}, "Your photo"), nameElement(photo.name)],
      right: pictureOf(match, `Match ${photo.match + 1}: ${match.name}`, LARGE),
      rightName: captionOf(photo, match, photo.match),
      lines: orientation === "exif" ? match.lines : [],  // browsers show photos upright, and lines may be of the photo as stored
    }));
  }

  function chooseMatch(index) {
    chosen.match = index;
    const isFocused = id("match-list").contains(document.activeElement);
    updateMatches();
    if (isFocused) id("match-list").children[index].querySelector("button").focus();
  }

  // The map

  const latitudeM = METERS_PER_DEGREE;
  const longitudeM = latitude => METERS_PER_DEGREE * Math.cos(latitude * Math.PI / 180);
  const turned = degrees => ((degrees + 540) % 360) - 180;

  function apart(one, other) {
    if (one.latitude !== null && other.latitude !== null) {
      return Math.hypot((other.latitude - one.latitude) * latitudeM, turned(other.longitude - one.longitude) * longitudeM(one.latitude));
    }
    return one.east_m === null || other.east_m === null ? null : Math.hypot(other.east_m - one.east_m, other.north_m - one.north_m);
  }

  // On the side of the 180 degree meridian where the map is.
  const beside = longitude => longitude + 360 * Math.round((map.middle.lng - longitude) / 360);

  // The point of a match on the map, or null.
  function pointOf({ latitude, longitude, east_m: east, north_m: north }) {
    if (unit === "meters") return east === null ? null : [north, east];
    return latitude === null ? null : [latitude, beside(longitude)];
  }

  function showOnMap() {
    if (!map || !map.middle) return;
    const answer = chosen && chosen.answer;
    showOthersOnMap();
    map.draw("answer", answer ? drawingOf(answer) : {});
    if (answer) map.fitTo(["answer"]);
  }

  function showOthersOnMap() {
    if (!map || !map.middle) return;
    const others = photos.filter(({ answer }) => answer && answer !== chosen.answer && answer.known !== false && pointOf(answer.matches[0]));
    const positions = others.flatMap(({ answer }) => pointOf(answer.matches[0]));
    const points = { name: "your other photos", kind: "query", positions, labels: others.map(({ name }) => name) };
    map.draw("others", others.length ? { points: [points] } : {});
  }

  function drawingOf(answer) {
    const { matches, known } = answer;
    const placed = matches.map((match, index) => ({ match, index, at: pointOf(match) })).filter(({ at }) => at !== null);
    if (!placed.length) return {};
    const cells = matches.filter(match => match.corners);
    const best = { name: "estimated position", kind: "photo", positions: placed[0].at, labels: [`estimated position: ${answer.position}`] };
    const points = pointsOf(placed);
    return {
      points: [...(cells.length ? [] : [points]), ...(known === false ? [] : [best])],
      polygons: cells.length ? [cellsOf(matches)] : [],
      circles: cells.length ? [] : circlesOf(answer, placed),
    };
  }

  // Matches at one position, which differ in their heading, are one point.
  function pointsOf(placed) {
    const byPlace = new Map();
    for (const each of placed) byPlace.set(each.at.join(), [...(byPlace.get(each.at.join()) || []), each]);
    const spots = [...byPlace.values()];
    return {
      name: "matches", kind: "match", text: String(placed.length),
      positions: spots.flatMap(([{ at }]) => at),
      keys: spots.map(([{ index }]) => index),
      numbers: spots.map(each => each.map(({ index }) => index + 1).join(", ")),
      labels: spots.map(each => each.map(({ match, index }) => `${index + 1}: ${match.name}`).join("; ")),
    };
  }

  // What the confidence says about the map: the photo is inside of the first circle with that probability, so all other places
  // together have at most the rest.
  function circlesOf({ confidence, radius_m: radius, known }, placed) {
    if (confidence === null || placed[0].index !== 0) return [];
    const first = placed[0];
    const places = [];
    for (const each of placed.slice(1)) {
      if ([first, ...places].every(({ match }) => apart(match, each.match) > radius)) places.push(each);
    }
    const circle = { radius_m: radius, color: "--map-query", isDashed: known === false };
    const name = "elsewhere, together", text = `at most ${percent(1 - confidence)}`.replace("at most under", "under");
    return [
      { ...circle, name: `${percent(confidence)} here`, text: `within ${metersText(radius)}`, center: first.at, opacity: 0.1 + 0.4 * confidence },
      ...places.map(({ at }, index) => ({ ...circle, name: index ? "" : name, text, label: `${name} ${text}`, center: at, color: "--quiet", isDashed: true })),
    ];
  }

  // Classes of a cell, which differ in their heading, share its probability.
  function cellsOf(matches) {
    const cells = new Map();
    matches.forEach((match, index) => {
      if (!match.corners) return;
      const key = match.corners.join(), cell = cells.get(key) || { corners: match.corners, ranks: [], share: 0 };
      cell.ranks.push(index + 1);
      cell.share += match.probability || 0;
      cells.set(key, cell);
    });
    const all = [...cells.values()], most = Math.max(...all.map(({ share }) => share)) || 1;
    return {
      name: "cells by probability", color: 0,
      corners: all.flatMap(({ corners }) => corners.flatMap(([longitude, latitude]) => [latitude, beside(longitude)])),
      labels: all.map(({ ranks, share }) => `${ranks.join(", ")}: ${percent(share)}`),
      weights: all.map(({ share }) => share / most),
    };
  }

  async function openMap() {
    const points = await service.get("points");
    unit = points.unit;
    map = createMap(id("map"), points, { chosen: index => chosen && chosen.answer && chosen.answer.matches[index].image && chooseMatch(index) });
    id("pick").hidden = unit !== "degrees" || !map.middle;
    showOnMap();
    showOptions();
  }

  // Options

  const NEAR = /^\s*([+-]?\d+(?:\.\d*)?)\s*°?\s*[,;\s]\s*([+-]?\d+(?:\.\d*)?)\s*°?\s*$/;

  // The position and radius that are typed, of which `wrongOptions` tells whether they are valid; null for none.
  function nearNow() {
    const text = id("near").value.trim();
    if (!text) return null;
    const [, latitude, longitude] = (NEAR.exec(text) || []).map(Number);
    return { latitude, longitude, radius: Number(id("radius").value) };
  }

  // What is wrong with the options, as a sentence for each field.
  function wrongOptions() {
    const near = nearNow(), top = id("top"), wrong = {};
    if (near && !(Math.abs(near.latitude) <= 90 && Math.abs(near.longitude) <= 180)) {
      wrong.near = "A position is a latitude and a longitude in degrees, such as 37.7749, -122.4194.";
    } else if (near && !(near.radius > 0)) {
      wrong.radius = "The radius is a number of meters above 0.";
    }
    if (!top.validity.valid) wrong.top = `The number of matches is a whole number from ${top.min} to ${top.max}.`;
    return wrong;
  }

  // Show what is wrong with the options, if anything is, and go to the first such field.
  function showWrong() {
    const [first] = Object.keys(wrongOptions());
    if (!first) return false;
    showOptions();
    id("options").open = true;
    id(first).focus();
    return true;
  }

  function settingsNow() {
    const near = nearNow();
    return { top: id("top").value, ...(near && { near: `${near.latitude},${near.longitude},${near.radius}` }) };
  }

  function showOptions() {
    const wrong = wrongOptions(), isWrong = Object.keys(wrong).length > 0;
    for (const name of ["near", "radius", "top"]) id(name).setAttribute("aria-invalid", String(name in wrong));
    const near = wrong.near || wrong.radius ? null : nearNow();
    id("near-text").textContent = wrong.near || wrong.radius || (near ? "Answers near a position have no confidence: it is calibrated on searches of the complete index." : "");
    id("top-text").textContent = wrong.top || "";
    id("options-set").textContent = isWrong ? ": to be corrected" : near ? `: within ${metersText(near.radius)} of ${near.latitude}, ${near.longitude}` : "";
    showNear(near);
    if (!isWrong) release();
  }

  function showNear(near) {
    if (!map || unit !== "degrees" || !map.middle) return;
    const isNear = near !== null, center = isNear ? [near.latitude, beside(near.longitude)] : null;
    map.draw("near", isNear ? { circles: [{ name: "searched only within", text: metersText(near.radius), color: "--accent", center, radius_m: near.radius, isDashed: true }] } : {});
    if (isNear) map.fitTo(["near"]);
  }

  function setNear(latitude, longitude) {
    id("near").value = `${latitude.toFixed(6)}, ${longitude.toFixed(6)}`;
    showOptions();
  }

  function pick(isPicking) {
    id("pick").setAttribute("aria-pressed", String(isPicking));
    map.setPick(isPicking ? (latitude, longitude) => {
      pick(false);
      setNear(latitude, longitude);
      id("pick").focus({ preventScroll: true });
    } : null);
    if (!isPicking) return;
    id("near-text").textContent = "Click on the map, or move it by the arrow keys and press Enter to take its middle; Escape ends this.";
    id("map").scrollIntoView({ block: "nearest" });
    id("map").focus({ preventScroll: true });
  }

  function findMe() {
    id("near-text").textContent = "The browser looks for your position.";
    navigator.geolocation.getCurrentPosition(
      ({ coords }) => {
        id("radius").value = String(Math.max(Number(id("radius").value) || 0, Math.ceil(coords.accuracy)));
        setNear(coords.latitude, coords.longitude);
      },
      ({ message }) => { id("near-text").textContent = `The browser gives no position: ${message || "it was not allowed to"}.`; },
      { enableHighAccuracy: true, timeout: 20000 });
  }

  // Other programs

  function geojson() {
    const features = photos.filter(photo => photo.answer).flatMap(({ answer, name }) => answer.matches.slice(0, answer.matches[0].corners ? undefined : 1)
      .map((match, index) => {
        const { corners, latitude, longitude } = match;
        const geometry = corners ? { type: "Polygon", coordinates: [[...corners, corners[0]]] }
          : latitude === null ? null : { type: "Point", coordinates: [longitude, latitude] };
        const { confidence, radius_m, known } = answer, { name: found, distance, probability, heading_deg, inliers } = match;
        return {
          type: "Feature", geometry,
          properties: { photo: name, rank: index + 1, confidence, radius_m, known, match: found, distance, probability, heading_deg, inliers },
        };
      }));
    const address = URL.createObjectURL(new Blob([JSON.stringify({ type: "FeatureCollection", features }, null, 1)], { type: "application/geo+json" }));
    const link = element("a", { href: address, download: "photos.geojson" });
    document.body.append(link);
    link.click();
    link.remove();
    URL.revokeObjectURL(address);
  }

  // Events

  function start() {
    for (const input of form.querySelectorAll("input[type=file]")) {
      input.addEventListener("change", () => {
        add(input.files);
        input.value = "";  // so that the same photo can be chosen again
      });
    }
    const hasFiles = event => event.dataTransfer && [...event.dataTransfer.types].includes("Files");
    const isText = event => !hasFiles(event) && event.target instanceof HTMLInputElement;
    document.addEventListener("dragover", event => {
      if (isText(event)) return;
      event.preventDefault();
      drop.classList.toggle("over", hasFiles(event));
    });
    document.addEventListener("dragleave", event => {
      if (event.relatedTarget === null) drop.classList.remove("over");
    });
    document.addEventListener("drop", event => {
      if (isText(event)) return;
      event.preventDefault();
      drop.classList.remove("over");
      if (event.dataTransfer.files.length) add(event.dataTransfer.files);
      else status.textContent = "Only files can be dropped: copy the picture and paste it, or save it first.";
    });
    document.addEventListener("paste", event => {
      if (!event.clipboardData.files.length) return;
      event.preventDefault();
      add(event.clipboardData.files);
    });
    form.addEventListener("submit", event => {
      event.preventDefault();
      if (!showWrong() && photos.length && photos.every(isFinished)) enqueue([...photos]);
    });
    for (const name of ["near", "radius", "top"]) id(name).addEventListener("change", showOptions);
    id("pick").addEventListener("click", () => pick(id("pick").getAttribute("aria-pressed") === "false"));
    document.addEventListener("keydown", event => {
      if (event.key === "Escape" && id("pick").getAttribute("aria-pressed") === "true") {
        pick(false);
        showOptions();
        id("pick").focus();
      }
    });
    id("anywhere").addEventListener("click", () => {
      id("near").value = "";
      showOptions();
    });
    id("camera").hidden = !(matchMedia("(pointer: coarse)").matches || navigator.maxTouchPoints);
    id("here").hidden = !(window.isSecureContext && navigator.geolocation);
    id("here").addEventListener("click", findMe);
    id("geojson").addEventListener("click", geojson);
    id("clear").addEventListener("click", clear);
    openMap().catch(error => { status.textContent = error.message; });
  }

  start();
})();
