// "Mismos dados, otro humor": one message, one seed, two moods, side by side.

import { $, el, warn } from "./dom.js";
import { post, remove } from "./api.js";
import { emit, knobs, state } from "./state.js";
import { listen } from "./live.js";
import { setBlock } from "./turns.js";

let sides = [];

// What can be compared: the mood of now, home, and those with a name.
function moods() {
  const named = Object.entries(state.server.humores).map(([name, axes]) => [name, { reset: true, axes }]);
  return [["el de ahora", {}], ["el de casa", { reset: true }], ...named];
}

export function open() {
  const question = state.conversation?.mensajes.findLast((message) => message.papel === "user");
  if (!question) {
    warn("Escribe antes un mensaje: la comparación responde al último.");
    return;
  }
  const box = $("comparador");
  const chosen = [0, moods().length > 3 ? 3 : 1];
  const columns = el("div", { class: "columnas" });
  const verdict = el("p", { class: "veredicto", role: "status" });
  const run = el("button", { type: "button", class: "boton lleno" }, "Comparar");
  run.addEventListener("click", () => compare(question, chosen, columns, verdict, run));
  sides = [0, 1].map((index) => side(index, chosen));
  columns.replaceChildren(...sides.map((one) => one.node));
  box.replaceChildren(
    el("h2", { id: "comparador-titulo" }, "Mismos dados, otro humor"),
    el("p", { class: "tecnico" }, "El mismo mensaje y la misma semilla con dos humores. Lo que cambie lo cambia el humor."),
    el("blockquote", {}, question.texto.slice(0, 300)),
    columns, verdict,
    el("div", { class: "fila-botones" },
      el("button", { type: "button", class: "boton", onclick: () => box.close() }, "Cerrar"), run));
  box.addEventListener("close", stop, { once: true });
  box.showModal();
}

function side(index, chosen) {
  const id = `humor-comparado-${index}`;
  const select = el("select", { id, class: "campo" }, ...moods().map(([name], number) => el("option", { value: number, selected: number === chosen[index] }, name)));
  select.addEventListener("change", () => (chosen[index] = Number(select.value)));
  const body = el("div", { class: "cuerpo", tabindex: 0 });
  const keep = el("button", { type: "button", class: "enlace", hidden: true }, "Quedarme con esta");
  const node = el("section", { class: "columna", "aria-label": `Respuesta ${index + 1}` }, el("label", { for: id }, `Humor ${index + 1}`), select, body, keep);
  return { node, body, keep, turn: null, source: null, tokens: null };
}

async function compare(question, chosen, columns, verdict, run) {
  stop();
  run.disabled = true;
  verdict.textContent = "";
  let started;
  try {
    started = await post("/api/comparaciones", {
      conversacion: state.conversation.id,
      mensaje: question.id,
      ajustes: knobs(),
      humores: chosen.map((index) => moods()[index][1]),
    });
  } catch (failure) {
    verdict.textContent = failure.message;
    run.disabled = false;
    return;
  }
  sides.forEach((one, index) => {
    one.turn = started.turnos[index];
    one.tokens = null;
    one.body.replaceChildren();
    one.keep.hidden = true;
    one.source = listen(one.turn, {
      block: (i, html) => setBlock(one.body, i, html),
      end: (data) => {
        one.tokens = data.fichas || [];
        if (sides.every((other) => other.tokens)) finish(verdict, run, started.semilla);
      },
      lost: () => (verdict.textContent = "Se perdió la respuesta."),
    });
  });
}

function finish(verdict, run, seed) {
  run.disabled = false;
  const [a, b] = sides.map((one) => one.tokens);
  let split = 0;
  while (split < a.length && split < b.length && a[split] === b[split]) split += 1;
  const isSame = split === a.length && split === b.length;
  verdict.textContent = isSame
    ? `Idénticas: 0 diferencias (semilla ${seed}).`
    : `Se separan en la ficha ${split + 1} (semilla ${seed}).`;
  for (const one of sides) {
    const prefix = one.tokens.slice(0, split).join("");
    const rest = one.tokens.slice(split).join("");
    one.body.replaceChildren(el("p", { class: "fichas" },
      el("span", { class: "comun" }, prefix),
      isSame ? "" : el("mark", { class: "separa" }, "aquí se separan"),
      rest));
    one.keep.hidden = false;
    one.keep.onclick = () => keep(one);
  }
}

async function keep(one) {
  try {
    await post(`/api/conversaciones/${state.conversation.id}/conservar`, { turno: one.turn });
    $("comparador").close();
    emit("open", state.conversation.id);
  } catch (failure) {
    warn(failure.message);
  }
}

function stop() {
  for (const one of sides) {
    one.source?.close();
    if (one.turn && !one.tokens) remove(`/api/turnos/${one.turn}`).catch(() => {});
  }
}
