// Small tools for the document. All HTML that reaches it comes from our server, already clean.

const policy = window.trustedTypes
  ? window.trustedTypes.createPolicy("elchat", { createHTML: (text) => text })
  : { createHTML: (text) => text };

export const $ = (id) => document.getElementById(id);

// el("p", {class: "nota"}, "texto", node): attributes as written; on* are listeners.
export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function icon(name) {
  return svg("svg", { "aria-hidden": "true" }, svg("use", { href: `#i-${name}` }));
}

export function button(label, iconName, onclick, extra = {}) {
  return el("button", { type: "button", class: "icono", "aria-label": label, title: label, onclick, ...extra }, icon(iconName));
}

export function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = policy.createHTML(html);
  return template.content;
}

// Make `node` read `html`, touching only what differs: a selection inside what stays survives.
export function morph(node, html) {
  sync(node, parse(html));
}

function sync(node, fresh) {
  const before = [...node.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((next, index) => {
    const now = before[index];
    if (!now) node.append(next);
    else if (now.isEqualNode(next)) return;
    else if (now.nodeType === Node.TEXT_NODE && next.nodeType === Node.TEXT_NODE) retype(now, next.data);
    else if (isSameShell(now, next)) sync(now, next);
    else now.replaceWith(next);
  });
  before.slice(after.length).forEach((extra) => extra.remove());
}

function retype(node, text) {
  if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
  else node.data = text;
}

function isSameShell(a, b) {
  return a.nodeType === Node.ELEMENT_NODE && b.nodeType === Node.ELEMENT_NODE && a.cloneNode(false).isEqualNode(b.cloneNode(false));
}

// --- telling the user ---------------------------------------------------------------------------

export function announce(text) {
  $("anuncio").textContent = text;
}

// `action`: [label, function]. It stays until it is closed or another takes its place.
export function warn(text, action) {
  const box = $("aviso");
  box.replaceChildren(el("p", {}, text));
  if (action) box.append(el("button", { type: "button", class: "enlace", onclick: () => (clearWarning(), action[1]()) }, action[0]));
  box.append(button("Cerrar el aviso", "cerrar", clearWarning));
}

export function clearWarning() {
  $("aviso").replaceChildren();
}

let toastTimer = 0;

export function toast(text, action, seconds = 8) {
  const box = $("tostada");
  clearTimeout(toastTimer);
  const close = () => {
    box.hidden = true;
    box.replaceChildren();
  };
  box.replaceChildren(el("span", {}, text));
  if (action) box.append(el("button", { type: "button", class: "enlace", onclick: () => (close(), action[1]()) }, action[0]));
  box.hidden = false;
  announce(text);
  toastTimer = setTimeout(close, seconds * 1000);
  return close;
}

// A question in a dialog; resolves with the form's data, or null. `fields`: nodes to show.
export function ask(title, fields, accept) {
  const box = $("dialogo");
  const back = document.activeElement;
  return new Promise((resolve) => {
    const form = el("form", { method: "dialog" },
      el("h2", { id: "dialogo-titulo" }, title),
      ...fields,
      el("div", { class: "fila-botones" },
        el("button", { type: "button", class: "boton", onclick: () => box.close() }, accept ? "Cancelar" : "Cerrar"),
        accept ? el("button", { type: "submit", class: "boton lleno", value: "si" }, accept) : null));
    let answer = null;
    form.addEventListener("submit", () => (answer = new FormData(form)));
    box.addEventListener("close", () => {
      resolve(answer);
      back?.focus?.();
    }, { once: true });
    box.replaceChildren(form);
    box.showModal();
    form.querySelector("input, textarea")?.select();
  });
}

// navigator.clipboard is missing on plain http outside this machine.
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { class: "fuera", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

export async function copyFrom(node, text) {
  const label = node.getAttribute("aria-label");
  const done = await copy(text);
  const word = done ? "Copiado" : "No se pudo copiar";
  announce(word);
  if (label) {
    node.classList.toggle("hecho", done);
    node.title = word;
    setTimeout(() => (node.classList.remove("hecho"), (node.title = label)), 1500);
  } else {
    node.textContent = word;
    setTimeout(() => (node.textContent = "Copiar"), 1500);
  }
}

export const number = (value, digits = 0) =>
  value.toLocaleString("es", { minimumFractionDigits: digits, maximumFractionDigits: digits });
