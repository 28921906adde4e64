// The page on the place index.
(() => {
  "use strict";

  const labeled = (label, text, attributes = {}) =>
    element("div", attributes, element("dt", {}, element("bdi", {}, label)), element("dd", {}, element("bdi", {}, text)));

  function show(id, facts, attributes) {
    document.getElementById(id).replaceChildren(...Object.entries(facts).map(([label, text]) => labeled(label, text, attributes)));
  }

  async function open() {
    const [card, points] = await Promise.all([service.get("card"), service.get("points")]);
    show("figures", card.figures, { class: "figure" });
    show("index-facts", card.index);
    show("encoder-facts", card.encoder);
    createMap(document.getElementById("map"), points);
  }

  open().catch(error => { document.getElementById("status").textContent = error.message; });
})();
