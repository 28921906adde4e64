"use strict";

// Make an element with attributes, and children that are elements or texts. Data reaches the page as text only.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter(child => child !== null && child !== ""));
  return made;
}

// A name shortened in its middle, the whole name in a tooltip.
function nameElement(name) {
  const text = name.length <= 33 ? name : `${name.slice(0, 14)}…${name.slice(-18)}`;
  return element("bdi", { class: "name", title: name }, text);
}

function metersText(meters) {
  const digits = { minimumFractionDigits: 1, maximumFractionDigits: 1 };
  return meters < 10000 ? `${meters.toLocaleString("en", digits)} m` : `${(meters / 1000).toLocaleString("en", digits)} km`;
}

(function start() {
  const dataOf = id => {
    const found = document.getElementById(id);
    return found ? JSON.parse(found.textContent) : null;
  };
  const ofMap = dataOf("map-data"), ofGallery = dataOf("gallery-data");
  let gallery = null;
  const map = ofMap && createMap(document.getElementById("map"), ofMap, { chosen: key => gallery && gallery.choose(key) });
  if (ofGallery) {
    gallery = createGallery(ofGallery, {
      isOnMap: key => Boolean(map && map.has(key)),
      toMap(key) {
        map.choose(key);
        document.getElementById("map").scrollIntoView({ block: "center" });
        document.getElementById("map").focus({ preventScroll: true });
      },
      chosen: key => map && map.choose(key),
      shown: keys => map && map.filter(keys),
    });
  }

  // A page that is written again and again says how old it is.
  const showAge = time => {
    time.title = time.title || time.textContent;
    time.textContent = `${Math.max(0, Math.round((Date.now() - Date.parse(time.dateTime)) / 1000))} s ago`;
  };
  for (const time of document.querySelectorAll("time.age")) {
    showAge(time);
    setInterval(showAge, 1000, time);
  }

  // Printed, folded parts are open.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const each of opened) each.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const each of opened) each.open = false;
  });
})();
