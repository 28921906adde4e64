// Requests to the service, with the token of the reader, who is asked for it where the service wants one.
const service = (() => {
  "use strict";

  const STORED_AS = "progeo token";
  const MAX_TRIES = 30, PAUSE_S = 2;
  const form = document.getElementById("token-form"), text = document.getElementById("token-text");
  const pictures = new Map();
  let token = stored(), asked = null;

  // A browser may refuse storage, and a reload asks again then.
  function stored() {
    try {
      return sessionStorage.getItem(STORED_AS);
    } catch {
      return null;
    }
  }

  function store() {
    try {
      sessionStorage.setItem(STORED_AS, token);
    } catch {
      // see above
    }
  }

  // Wait for a token other than the one that was refused; all requests wait for the same one.
  function otherToken(refused) {
    if (token !== refused) return Promise.resolve();
    if (!asked) {
      asked = new Promise(resolve => {
        text.textContent = refused === null ? "The service answers only with the token that its operator gave you."
          : "The service does not accept this token.";
        form.hidden = false;
        form.elements.token.select();
        form.elements.token.focus();
        form.onsubmit = event => {
          event.preventDefault();
          const given = form.elements.token.value.trim();
          if (!/^[!-~]+$/.test(given)) {  // a header has no other letters
            text.textContent = "A token has letters, digits and signs of ASCII only, and no spaces.";
            return;
          }
          token = given;
          store();
          form.hidden = true;
          document.getElementById("main").focus({ preventScroll: true });  // as the field with the focus is gone
          asked = null;
          resolve();
        };
      });
    }
    return asked;
  }

  const pause = seconds => new Promise(resolve => setTimeout(resolve, 1000 * seconds));

  function send(method, path, { body = null, kind = "json", progress = () => {} }) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open(method, path.replace(/^\//, ""));  // relative, so that the service may stand below a path of a proxy
      request.responseType = kind;
      if (token) request.setRequestHeader("Authorization", `Bearer ${token}`);
      request.upload.addEventListener("progress", event => event.lengthComputable && progress(event.loaded / event.total));
      request.upload.addEventListener("load", () => progress(1));
      request.addEventListener("load", () => resolve(request));
      request.addEventListener("error", () => reject(new Error("The service cannot be reached.")));
      request.send(body);
    });
  }

  // Send a request until it is answered by anything but "other token" and "busy".
  async function ask(method, path, options = {}) {
    for (let tries = 0; ;) {
      const used = token, answer = await send(method, path, options);
      if (answer.status === 401) {
        await otherToken(used);
      } else if (answer.status === 429 && tries < MAX_TRIES) {
        tries++;
        const seconds = Number(answer.getResponseHeader("Retry-After")) || PAUSE_S;
        if (options.busy) options.busy(seconds);
        await pause(seconds);
      } else if (answer.status === 200) {
        return answer.response;
      } else {
        const said = options.kind === "blob" ? null : answer.response;
        throw new Error(said && typeof said.detail === "string" ? said.detail : `The service answered with status ${answer.status}.`);
      }
    }
  }

  return {
    get: path => ask("GET", path),
    post: (path, body, options) => ask("POST", path, { ...options, body }),
    // The address of a picture, which can only be asked for with the token; one that failed is asked for again.
    picture(path) {
      if (!pictures.has(path)) {
        const asked = ask("GET", path, { kind: "blob" }).then(blob => URL.createObjectURL(blob));
        pictures.set(path, asked);
        asked.catch(() => pictures.get(path) === asked && pictures.delete(path));
      }
      return pictures.get(path);
    },
    forgetPictures() {
      for (const each of pictures.values()) each.then(address => URL.revokeObjectURL(address), () => {});
      pictures.clear();
    },
  };
})();
