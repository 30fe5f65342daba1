// The messages of the branch being read. Nodes are kept by message id and only touched if they
// changed, so that reading the conversation again never disturbs a selection or the focus.

import { $, button, copyFrom, el, morph, number } from "./dom.js";
import { emit, state } from "./state.js";
import * as scroll from "./scroll.js";

const SHOWN = 50;
let shown = SHOWN;
const nodes = new Map(); // message id -> {node, signature}

export function start() {
  $("anteriores").addEventListener("click", () => {
    shown += SHOWN;
    render();
  });
  $("turnos").addEventListener("click", (event) => {
    const copier = event.target.closest(".copiar");
    if (copier) copyFrom(copier, copier.closest(".codigo").querySelector("pre").textContent);
  });
}

export function reset() {
  shown = SHOWN;
  nodes.clear();
  $("turnos").replaceChildren();
}

export function nodeOf(id) {
  return nodes.get(id)?.node;
}

export function render() {
  const messages = state.conversation?.mensajes || [];
  $("vacio").hidden = messages.length > 0 || state.isSending;
  $("anteriores").hidden = messages.length <= shown;
  const visible = messages.slice(-shown);
  const first = messages.length - visible.length;
  const wanted = visible.map((message, index) => nodeFor(message, first + index));
  const list = $("turnos");
  const keep = new Set(wanted);
  for (const child of [...list.children]) if (!keep.has(child)) child.remove();
  wanted.forEach((node, index) => {
    if (list.children[index] !== node) list.insertBefore(node, list.children[index] || null);
  });
  const ids = new Set(visible.map((message) => message.id));
  for (const id of [...nodes.keys()]) if (!ids.has(id)) nodes.delete(id);
  scroll.follow();
}

// What the user just sent, until the server has it.
export function showPending(text) {
  $("vacio").hidden = true;
  const bubble = el("div", { class: "texto-usuario" }, text);
  $("turnos").append(el("article", { class: "turno usuario pendiente" }, bubble));
  scroll.toEnd();
}

export function clearPending() {
  $("turnos").querySelectorAll(".pendiente").forEach((node) => node.remove());
}

function nodeFor(message, position) {
  const isLive = state.conversation.turno !== null && message === state.conversation.mensajes.at(-1);
  const signature = JSON.stringify([message, isLive, position]);
  const known = nodes.get(message.id);
  if (known?.signature === signature) return known.node;
  const turn = Math.floor(position / 2) + 1;
  const node = known?.node || el("article", { class: `turno ${message.papel === "user" ? "usuario" : "elchat"}`, "data-id": message.id, "aria-labelledby": `t-${message.id}` });
  if (message.papel === "user") fillUser(node, message, turn);
  else fillAnswer(node, message, turn, isLive);
  nodes.set(message.id, { node, signature });
  return node;
}

const heading = (message, text) => el("h2", { class: "fuera", id: `t-${message.id}` }, text);

function fillUser(node, message, turn) {
  const actions = el("div", { class: "acciones" },
    ...versionButtons(message),
    button("Copiar el mensaje", "copiar", (event) => copyFrom(event.currentTarget, message.texto)),
    button("Editar el mensaje", "editar", () => edit(node, message)));
  node.replaceChildren(heading(message, `Tú, turno ${turn}`), el("div", { class: "texto-usuario" }, message.texto), actions);
}

// An edited message is another branch: the old one stays a version away.
export function edit(node, message) {
  const area = el("textarea", { class: "edicion", rows: 3, "aria-label": "Editar el mensaje" });
  area.value = message.texto;
  const cancel = () => {
    nodes.delete(message.id);
    node.remove();
    render();
    nodeOf(message.id)?.querySelector('[aria-label="Editar el mensaje"]')?.focus();
  };
  const save = () => {
    const text = area.value.trim();
    if (text) emit("ask", { texto: text, editar: message.id });
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    if (event.key === "Escape") (event.stopPropagation(), cancel());
  });
  node.replaceChildren(heading(message, "Editando tu mensaje"), area,
    el("div", { class: "fila-botones" },
      el("button", { type: "button", class: "boton", onclick: cancel }, "Cancelar"),
      el("button", { type: "button", class: "boton lleno", onclick: save }, "Guardar y responder")));
  nodes.get(message.id).signature = "editing";
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
}

function versionButtons(message) {
  const all = message.versiones;
  if (all.length < 2) return [];
  const index = all.indexOf(message.id);
  const go = (step) => () => emit("version", { to: all[index + step], from: message.id });
  const box = el("span", { class: "versiones", role: "group", "aria-label": "Versiones" },
    button("Versión anterior", "anterior", go(-1), { disabled: index === 0 }),
    el("span", {}, `${index + 1}/${all.length}`),
    button("Versión siguiente", "siguiente", go(1), { disabled: index === all.length - 1 }));
  box.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && all[index + step]) (event.preventDefault(), go(step)());
  });
  return [box];
}

function fillAnswer(node, message, turn, isLive) {
  node.classList.toggle("viva", isLive);
  let body = node.querySelector(".cuerpo");
  if (!body) {
    body = el("div", { class: "cuerpo" });
    node.append(heading(message, `elchat, turno ${turn}`), body);
  }
  if (!isLive) setBlocks(body, message.html);
  node.querySelectorAll(".fase, .acciones, .nota, .silencio").forEach((extra) => extra.remove());
  if (isLive) {
    node.append(el("p", { class: "fase" }, el("span", { class: "puntos", "aria-hidden": "true" }), el("span", { class: "dice" }, "")));
    if (!body.childElementCount) setBlocks(body, message.html);
    return;
  }
  const note = noteFor(message);
  if (note) node.append(note);
  node.append(answerActions(message));
}

export function setBlocks(body, blocks) {
  blocks.forEach((html, index) => setBlock(body, index, html));
  trimBlocks(body, blocks.length);
}

export function setBlock(body, index, html) {
  while (body.childElementCount <= index) body.append(el("div", { class: "bloque" }));
  morph(body.children[index], html);
}

export function trimBlocks(body, count) {
  while (body.childElementCount > count) body.lastElementChild.remove();
}

function answerActions(message) {
  const data = message.datos;
  const actions = el("div", { class: "acciones" }, ...versionButtons(message));
  if (message.texto) actions.append(button("Copiar la respuesta", "copiar", (event) => copyFrom(event.currentTarget, message.texto)));
  actions.append(button("Otra versión", "otra", () => emit("ask", { regenerar: message.id })));
  if (state.server.humor && message.tiene_humor) actions.append(moodDot(message));
  const facts = [];
  if (data.fichas_s) facts.push(`${number(data.fichas_s, data.fichas_s < 10 ? 1 : 0)} fichas/s`);
  if (data.semilla) facts.push(`semilla ${data.semilla}`);
  if (facts.length) actions.append(el("span", { class: "datos", title: detail(data) }, facts.join(" · ")));
  return actions;
}

function detail(data) {
  if (!data.fichas_escritas) return "";
  return `${data.fichas_leidas} fichas leídas (${data.fichas_en_cache} ya estaban), ${data.fichas_escritas} escritas`;
}

function noteFor(message) {
  const data = message.datos;
  const again = (label, body) => el("button", { type: "button", class: "enlace", onclick: () => emit("ask", body) }, label);
  if (data.razon === "silencio") return silence(message, again);
  const lines = [];
  if (data.razon === "parada") lines.push(["Parado.", message.texto ? again("Seguir", { seguir: message.id }) : again("Probar otra vez", { regenerar: message.id })]);
  if (data.razon === "cortada") lines.push(["Respuesta cortada al llegar al largo máximo.", again("Seguir", { seguir: message.id })]);
  if (data.razon === "error") lines.push([data.frase || "El modelo no pudo terminar.", again("Probar otra vez", { regenerar: message.id })]);
  if (data.olvidados) lines.push([`Para que quepa, elchat ya no recuerda los ${data.olvidados} primeros mensajes.`]);
  if (!lines.length) return null;
  const note = el("div", { class: data.razon === "error" ? "nota error" : "nota" });
  for (const [text, action] of lines) note.append(el("p", {}, text, " ", ...(action ? [action] : [])));
  return note;
}

// The right not to answer, with its receipt.
function silence(message, again) {
  const { p = 0, techo = 0, dado } = message.datos.decision || {};
  const drawn = dado == null ? "" : ` Esta vez sacó ${number(dado, 3)}.`;
  const why = el("p", { class: "porque", hidden: true },
    `Calla si un dado de 0 a 1 saca menos que p y que el tope.${drawn} Nunca calla dos veces seguidas, ni ante una pregunta, ni si le hablan de un peligro o de un mal momento.`);
  const toggle = el("button", { type: "button", class: "enlace", "aria-expanded": "false" }, "Por qué");
  toggle.addEventListener("click", () => {
    why.hidden = !why.hidden;
    toggle.setAttribute("aria-expanded", String(!why.hidden));
  });
  return el("div", { class: "silencio" },
    el("p", {}, "elchat eligió no responder ", el("span", { class: "recibo" }, `(p = ${number(p, 2)}; tope ${number(techo, 2)})`)),
    el("div", { class: "fila" },
      again("Pedir que responda", { regenerar: message.id, responder: true }),
      again("Preguntar otra vez", { regenerar: message.id }),
      toggle),
    why);
}

// Where a mood is in the small square of 24 units.
export function place(dot, { valence = 0, arousal = 0 }) {
  dot.setAttribute("cx", 12 + valence * 6);
  dot.setAttribute("cy", 12 - arousal * 6);
}

// The mood this answer left, as a point in a small square; pressed, it comes back.
function moodDot(message) {
  const [valence, arousal] = message.datos.humor || [];
  const node = button("Volver a este humor", "", () => emit("mood-back", message.id));
  const glyph = $("punto-humor").cloneNode(true);
  glyph.removeAttribute("id");
  glyph.removeAttribute("hidden");
  place(glyph.lastElementChild, { valence, arousal });
  node.replaceChildren(glyph);
  return node;
}
