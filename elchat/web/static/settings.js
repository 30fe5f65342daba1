// Sampling in plain words, and how the page behaves.

import { $, ask, button, el, number, warn } from "./dom.js";
import { post } from "./api.js";
import { DEFAULTS, emit, saveKnobs, setOption, state } from "./state.js";
import { deleteAll } from "./sidebar.js";

const LENGTHS = [32, 64, 128, 256, 512, 1024, 2048, 4096];

// limits: first value whose words still apply.
const pick = (value, pairs) => pairs.find(([limit]) => value <= limit)[1];

const SLIDERS = [
  {
    key: "temperatura", name: "Atrevimiento", technical: "temperature", min: 0, max: 1.5, step: 0.05, digits: 2,
    words: (v) => pick(v, [[0, "ninguno: siempre lo más probable"], [0.5, "prudente"], [0.85, "equilibrado"], [1.1, "atrevido"], [9, "imprevisible"]]),
  },
  {
    key: "top_p", name: "Variedad de palabras", technical: "top-p", min: 0.05, max: 1, step: 0.05, digits: 2,
    words: (v) => pick(v, [[0.3, "muy pocas"], [0.7, "pocas"], [0.9, "bastantes"], [0.99, "casi todas"], [1, "todas"]]),
  },
  {
    key: "min_p", name: "Descartar lo raro", technical: "min-p", min: 0, max: 0.5, step: 0.01, digits: 2,
    words: (v) => pick(v, [[0, "nada"], [0.05, "un poco"], [0.2, "bastante"], [1, "casi todo"]]),
  },
  {
    key: "repeticion", name: "Evitar repetirse", technical: "repetition penalty", min: 1, max: 1.5, step: 0.02, digits: 2,
    words: (v) => pick(v, [[1, "no"], [1.12, "un poco"], [1.25, "bastante"], [9, "mucho"]]),
  },
];

export function start() {
  const box = $("mandos");
  box.append(el("h3", {}, "Cómo responde"));
  for (const spec of SLIDERS) {
    box.append(slider({ ...spec, get: () => state.knobs[spec.key], set: (value) => (state.knobs[spec.key] = value), initial: DEFAULTS[spec.key] }));
  }
  box.append(lengthSlider(), seedField(), systemField(), toggle("Dejar que use la calculadora", state.knobs.calculadora, (isOn) => {
    state.knobs.calculadora = isOn;
    saveKnobs();
  }));
  pageOptions($("opciones"));
}

// A range with its meaning in words, its number, its technical name and a way back.
export function slider({ name, technical, min, max, step, digits = 0, words, get, set, initial, show }) {
  const id = `m-${technical.replace(/\W+/g, "-")}`;
  const input = el("input", { type: "range", id, min, max, step });
  const said = el("output", { for: id });
  const figure = el("span", { class: "cifra" });
  const back = button(`Restablecer ${name.toLowerCase()}`, "volver", () => {
    input.value = show ? show.toPosition(initial) : initial;
    change();
    input.focus();
  });
  const value = () => (show ? show.fromPosition(Number(input.value)) : Number(input.value));
  const paint = () => {
    const now = value();
    said.textContent = words(now);
    figure.textContent = number(now, digits);
    input.setAttribute("aria-valuetext", `${words(now)}, ${number(now, digits)}`);
    input.style.setProperty("--lleno", `${((Number(input.value) - min) / (max - min)) * 100}%`);
    back.classList.toggle("invisible", Math.abs(now - initial) < 1e-9);
  };
  const change = () => {
    set(value());
    saveKnobs();
    paint();
  };
  input.value = show ? show.toPosition(get()) : get();
  input.addEventListener("input", change);
  paint();
  const node = el("div", { class: "mando" },
    el("div", { class: "mando-cabeza" }, el("label", { for: id }, name), said, back),
    input,
    el("div", { class: "mando-pie" }, el("span", { class: "tecnico" }, technical), figure));
  node.refresh = () => {
    input.value = show ? show.toPosition(get()) : get();
    paint();
  };
  return node;
}

function lengthSlider() {
  return slider({
    name: "Largo máximo", technical: "max tokens", min: 0, max: LENGTHS.length - 1, step: 1,
    words: (v) => `unas ${number(Math.round((v * 0.7) / 10) * 10)} palabras`,
    get: () => state.knobs.largo, set: (value) => (state.knobs.largo = value), initial: DEFAULTS.largo,
    show: {
      toPosition: (value) => Math.max(0, LENGTHS.findIndex((length) => length >= value)),
      fromPosition: (position) => LENGTHS[position],
    },
  });
}

function seedField() {
  const input = el("input", { id: "m-semilla", class: "campo", inputmode: "numeric", pattern: "-?[0-9]{1,19}", placeholder: "al azar", autocomplete: "off" });
  input.value = state.knobs.semilla || "";
  const set = (value) => {
    const text = String(value).trim();
    const isGood = /^-?[0-9]{0,19}$/.test(text);
    input.setAttribute("aria-invalid", String(!isGood));
    if (isGood) state.knobs.semilla = text || null;
    saveKnobs();
    paint();
  };
  const hint = el("p", { class: "tecnico", id: "m-semilla-nota" });
  const paint = () => {
    hint.textContent = state.knobs.semilla ? "Fijos: la misma pregunta dará la misma respuesta." : "Cada respuesta tira dados nuevos y dice cuáles.";
  };
  input.setAttribute("aria-describedby", "m-semilla-nota");
  input.addEventListener("input", () => set(input.value));
  const roll = button("Tirar otra vez y fijar", "dado", () => {
    input.value = crypto.getRandomValues(new Uint32Array(1))[0];
    set(input.value);
  });
  const free = button("Dejar al azar", "volver", () => {
    input.value = "";
    set("");
  });
  paint();
  return el("div", { class: "mando" }, el("div", { class: "mando-cabeza" }, el("label", { for: "m-semilla" }, "Dados"), el("output", {}, "semilla")), el("div", { class: "fila" }, input, roll, free), hint);
}

function systemField() {
  const area = el("textarea", { id: "m-sistema", class: "campo", rows: 2, maxlength: 8000, placeholder: "Por ejemplo: responde en una frase." });
  area.value = state.knobs.sistema || "";
  area.addEventListener("input", () => {
    state.knobs.sistema = area.value;
    saveKnobs();
  });
  return el("div", { class: "mando" }, el("div", { class: "mando-cabeza" }, el("label", { for: "m-sistema" }, "Instrucciones"), el("output", {}, "mensaje de sistema")), area);
}

function pageOptions(box) {
  const themes = el("fieldset", { class: "tema" }, el("legend", {}, "Tema"),
    ...[["sistema", "Del sistema"], ["claro", "Claro"], ["oscuro", "Oscuro"]].map(([value, text]) => {
      const input = el("input", { type: "radio", name: "tema", value, checked: state.options.tema === value });
      input.addEventListener("change", () => (setOption("tema", value), applyTheme()));
      return el("label", {}, input, el("span", {}, text));
    }));
  const saving = toggle("Guardar las conversaciones en este equipo", state.server.guardar, async (isOn) => {
    try {
      await post("/api/guardar", { guardar: isOn });
      state.server.guardar = isOn;
      emit("saving-changed");
    } catch (failure) {
      warn(failure.message);
    }
  });
  saving.id = "m-guardar";
  box.append(el("h3", {}, "La página"), themes, saving,
    toggle("Seguir el texto mientras se escribe", state.options.seguir, (isOn) => setOption("seguir", isOn)),
    toggle("Leer respuestas (lector de pantalla)", state.options.leer, (isOn) => setOption("leer", isOn)),
    toggle("Atajos de teclado", state.options.atajos, (isOn) => setOption("atajos", isOn)),
    el("button", { type: "button", class: "boton peligro", onclick: deleteAll }, "Borrar todas las conversaciones"));
}

function toggle(text, isOn, change) {
  const input = el("input", { type: "checkbox", role: "switch", checked: isOn });
  input.addEventListener("change", () => change(input.checked));
  return el("label", { class: "interruptor" }, el("span", {}, text), input);
}

export function applyTheme() {
  const theme = state.options.tema;
  if (theme === "sistema") delete document.documentElement.dataset.tema;
  else document.documentElement.dataset.tema = theme;
}

export function showShortcuts() {
  const rows = [
    ["Enter", "Enviar"], ["Mayús + Enter", "Otra línea"], ["Esc", "Parar la respuesta o cerrar"],
    ["↑ con el cuadro vacío", "Editar tu último mensaje"], ["Ctrl/⌘ + Enter al editar", "Guardar y responder"],
    ["Ctrl/⌘ + K", "Buscar"], ["Ctrl/⌘ + Mayús + O", "Conversación nueva"], ["Ctrl/⌘ + B", "Mostrar u ocultar la lista"],
    ["F2", "Cambiar el título"], ["Supr en la lista", "Borrar"], ["← → en las versiones", "Otra versión"],
  ];
  const table = el("table", { class: "atajos" }, el("tbody", {}, ...rows.map(([keys, what]) => el("tr", {}, el("th", { scope: "row" }, el("kbd", {}, keys)), el("td", {}, what)))));
  return ask("Atajos de teclado", [table], null);
}
