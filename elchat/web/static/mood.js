// The mood: a square with a dot, 64 bars, eight sliders. Only where the model has one.
// Before a conversation exists its mood can already be chosen: it goes along with the first message.

import { $, announce, button, el, number, svg, warn } from "./dom.js";
import { get, post } from "./api.js";
import { emit, on, state } from "./state.js";
import { place } from "./turns.js";

export const AXES = {
  valence: ["Agrado", "desagradable", "agradable"],
  arousal: ["Energía", "tranquilo", "activado"],
  dominance: ["Firmeza", "dócil", "firme"],
  verbosity: ["Extensión", "parco", "hablador"],
  warmth: ["Calidez", "frío", "cálido"],
  formality: ["Formalidad", "llano", "ceremonioso"],
  curiosity: ["Curiosidad", "indiferente", "curioso"],
  playfulness: ["Juego", "serio", "juguetón"],
};
const SIZE = 100; // half the square, in its own units
const WIDTH = 250; // of the drawing, labels included
const HEIGHT = 244;
const TRAIL = 12;
const CELLS = 64;
const MAX_GAIN = 2;

let parts = null;
let mood = null;
let moving = 0;

export function start() {
  if (!state.server.humor) return;
  parts = build();
  $("seccion-humor").append(...parts.nodes);
  $("seccion-humor").hidden = false;
  $("punto-humor").removeAttribute("hidden");
  $("abrir-panel").setAttribute("aria-label", "Ajustes y humor");
  on("mood", (value) => show(value, { isLive: true }));
  on("ended", () => refresh());
  on("opened", () => {
    if (!state.conversation) state.newMood = {};
    refresh();
  });
  on("mood-back", (message) => move({ mensaje: message }, "Humor recuperado."));
  refresh();
}

function build() {
  const plot = circumplex();
  const strip = cellStrip();
  const sliders = {};
  const rows = Object.keys(AXES).map((axis) => (sliders[axis] = axisSlider(axis)));
  const gain = gainSlider();
  const lock = el("input", { type: "checkbox", role: "switch" });
  lock.addEventListener("change", () => move({ frozen: lock.checked }, lock.checked ? "Humor fijado." : "Humor libre."));
  const named = el("select", { id: "humor-nombre", class: "campo" }, el("option", { value: "" }, "Elegir un humor…"),
    ...Object.keys(state.server.humores).map((name) => el("option", { value: name }, name)));
  named.addEventListener("change", () => named.value && putOn(named.value));
  const numbers = el("details", {}, el("summary", {}, "Ver los 64 números"), el("div", { class: "tabla", tabindex: 0 }));
  const compare = el("button", { type: "button", class: "boton", onclick: () => emit("compare") }, "Mismos dados, otro humor");
  const nodes = [
    el("h3", {}, "Humor"),
    plot.node,
    strip.node,
    numbers,
    el("p", { class: "tecnico" }, "Los dos ejes son una proyección de 64 números; los nombres son aproximados. No siente nada: es un estado que cambia con lo que se dice."),
    el("div", { class: "mando" }, el("div", { class: "mando-cabeza" }, el("label", { for: "humor-nombre" }, "Ponerle un humor")), named),
    ...rows.slice(0, 2).map((row) => row.node),
    el("details", {}, el("summary", {}, "Los otros seis ejes"), ...rows.slice(2).map((row) => row.node)),
    gain.node,
    el("label", { class: "interruptor" }, el("span", {}, "Fijar este humor"), lock),
    el("div", { class: "fila-botones" },
      el("button", { type: "button", class: "boton", onclick: () => move({ reset: true }, "Humor en casa.") }, "Volver a casa"),
      compare),
  ];
  return { nodes, compare, plot, strip, sliders, gain, lock, numbers, named };
}

function circumplex() {
  const trail = svg("g", { class: "rastro" });
  const home = svg("path", { class: "casa", d: "M0 -5 L5 0 L3 0 L3 5 L-3 5 L-3 0 L-5 0 Z" });
  const dot = svg("circle", { class: "punto", r: 6 });
  const label = (x, y, text, anchor = "middle") => svg("text", { x, y, "text-anchor": anchor }, text);
  const node = svg("svg", { class: "cuadrado", viewBox: `${-WIDTH / 2} ${-HEIGHT / 2} ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "Humor" },
    svg("rect", { x: -SIZE, y: -SIZE, width: 2 * SIZE, height: 2 * SIZE, rx: 8 }),
    svg("path", { class: "ejes", d: `M${-SIZE} 0H${SIZE}M0 ${-SIZE}V${SIZE}` }),
    label(0, -108, "activado"), label(0, 116, "tranquilo"),
    svg("text", { x: 0, y: 0, transform: "translate(-109 0) rotate(-90)", "text-anchor": "middle" }, "desagradable"),
    svg("text", { x: 0, y: 0, transform: "translate(115 0) rotate(-90)", "text-anchor": "middle" }, "agradable"),
    trail, home, dot);
  // A pointer may also put the dot; the sliders below do the same for everybody.
  node.addEventListener("click", (event) => {
    const box = node.getBoundingClientRect();
    const share = (value) => Math.max(-1, Math.min(1, Math.round(value * 20) / 20));
    const valence = share(((event.clientX - box.left) / box.width - 0.5) * (WIDTH / 2 / SIZE) * 2);
    const arousal = share((0.5 - (event.clientY - box.top) / box.height) * (HEIGHT / 2 / SIZE) * 2);
    move({ axes: { valence, arousal } });
  });
  return { node, trail, home, dot };
}

// Sign is up or down from the middle line, not colour alone.
function cellStrip() {
  const bars = Array.from({ length: CELLS }, (_, index) => svg("rect", { x: index * 4 + 0.4, width: 3.2, y: 20, height: 0 }));
  const node = svg("svg", { class: "tira", viewBox: `0 0 ${CELLS * 4} 40`, preserveAspectRatio: "none", role: "img", "aria-label": "Los 64 números del humor" },
    ...bars, svg("path", { class: "ejes", d: `M0 20H${CELLS * 4}` }));
  return { node, bars };
}

function axisSlider(axis) {
  const [name, low, high] = AXES[axis];
  const id = `humor-${axis}`;
  const input = el("input", { type: "range", id, min: -1, max: 1, step: 0.05 });
  const said = el("output", { for: id });
  const paint = () => {
    const value = Number(input.value);
    const side = Math.abs(value) < 0.15 ? "neutro" : `${Math.abs(value) > 0.6 ? "muy " : ""}${value < 0 ? low : high}`;
    said.textContent = side;
    input.setAttribute("aria-valuetext", `${side}, ${number(value, 2)}`);
    input.style.setProperty("--desde", `${Math.min(value + 1, 1) * 50}%`);
    input.style.setProperty("--lleno", `${Math.max(value + 1, 1) * 50}%`);
  };
  const free = button(`Dejar libre: ${name.toLowerCase()}`, "volver", () => move({ axes: { [axis]: null } }, `${name}: libre.`));
  input.addEventListener("pointerdown", () => (moving += 1));
  input.addEventListener("input", paint);
  input.addEventListener("change", () => {
    moving = 0;
    move({ axes: { [axis]: Number(input.value) } });
  });
  const node = el("div", { class: "mando" }, el("div", { class: "mando-cabeza" }, el("label", { for: id }, name), said, free), input);
  const hold = (isHeld) => free.classList.toggle("invisible", !isHeld);
  hold(false);
  return { node, hold, set: (value) => ((input.value = value), paint()) };
}

function gainSlider() {
  const input = el("input", { type: "range", id: "humor-ganancia", min: 0, max: MAX_GAIN, step: 0.1 });
  const said = el("output", { for: "humor-ganancia" });
  const paint = () => {
    const value = Number(input.value);
    const words = value === 0 ? "no influye" : value < 0.8 ? "poco" : value <= 1.2 ? "lo aprendido" : "mucho";
    said.textContent = `${words} (${number(value, 1)})`;
    input.setAttribute("aria-valuetext", said.textContent);
    input.style.setProperty("--lleno", `${(value / MAX_GAIN) * 100}%`);
  };
  input.addEventListener("input", paint);
  input.addEventListener("change", () => move({ gain: Number(input.value) }));
  const node = el("div", { class: "mando" }, el("div", { class: "mando-cabeza" }, el("label", { for: "humor-ganancia" }, "Cuánto influye"), said), input);
  return { node, set: (value) => ((input.value = value), paint()) };
}

export async function refresh() {
  if (!parts) return;
  const id = state.conversation?.id;
  parts.compare.disabled = !id;
  const value = await (id ? get(`/api/conversaciones/${id}/humor`) : post("/api/humor", state.newMood)).catch(() => null);
  if (value && id === state.conversation?.id) show(value, {});
}

function putOn(name) {
  const wanted = state.server.humores[name];
  const axes = Object.fromEntries(Object.keys(AXES).map((axis) => [axis, wanted[axis] ?? 0]));
  move({ axes }, `Humor ${name}.`);
  parts.named.value = "";
}

async function move(changes, sentence) {
  const id = state.conversation?.id;
  if (!id) state.newMood = changes.reset ? {} : { ...state.newMood, ...changes, axes: { ...state.newMood.axes, ...changes.axes } };
  try {
    show(await (id ? post(`/api/conversaciones/${id}/humor`, changes) : post("/api/humor", state.newMood)), {});
    if (sentence) announce(sentence);
  } catch (failure) {
    warn(failure.message);
    refresh();
  }
}

function show(value, { isLive = false }) {
  mood = value;
  const axes = value?.axes || {};
  const x = (axes.valence || 0) * SIZE;
  const y = -(axes.arousal || 0) * SIZE;
  parts.plot.node.classList.toggle("vacio", !value);
  parts.plot.dot.setAttribute("cx", x);
  parts.plot.dot.setAttribute("cy", y);
  place($("punto-humor").lastElementChild, axes);
  drawTrail(value?.trail || []);
  const home = value?.home || { valence: 0, arousal: 0 };
  parts.plot.home.setAttribute("transform", `translate(${home.valence * SIZE} ${-home.arousal * SIZE})`);
  drawCells(value?.vector || []);
  if (!moving) for (const [axis, control] of Object.entries(parts.sliders)) control.set(axes[axis] || 0);
  if (value?.fijos) for (const [axis, control] of Object.entries(parts.sliders)) control.hold(value.fijos.includes(axis));
  parts.gain.set(value?.gain ?? 1);
  parts.lock.checked = Boolean(value?.frozen);
  if (!isLive) parts.plot.node.setAttribute("aria-label", words());
}

function drawTrail(points) {
  const last = points.slice(-TRAIL);
  parts.plot.trail.replaceChildren(...last.map(([v, a], index) =>
    svg("circle", { cx: v * SIZE, cy: -a * SIZE, r: 2.5, opacity: 0.15 + (0.6 * (index + 1)) / last.length })));
}

function drawCells(vector) {
  const top = Math.max(0.5, ...vector.map(Math.abs));
  parts.strip.bars.forEach((bar, index) => {
    const height = ((vector[index] || 0) / top) * 19;
    bar.setAttribute("y", height > 0 ? 20 - height : 20);
    bar.setAttribute("height", Math.abs(height));
    bar.setAttribute("class", height < 0 ? "baja" : "sube");
  });
  const cells = vector.map((value, index) => el("tr", {}, el("th", { scope: "row" }, String(index + 1)), el("td", {}, number(value, 3))));
  parts.numbers.lastElementChild.replaceChildren(el("table", {}, el("tbody", {}, ...cells)));
}

export function words() {
  const { valence = 0, arousal = 0 } = mood?.axes || {};
  return `Humor en el turno ${mood?.turn ?? 0}: agrado ${number(valence, 2)}, energía ${number(arousal, 2)}.`;
}
