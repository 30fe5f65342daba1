// Following an answer: server-sent events into the page, and words for who cannot see it.

import { announce, number } from "./dom.js";
import { remove } from "./api.js";
import { emit, state } from "./state.js";
import { nodeOf, setBlock, trimBlocks } from "./turns.js";
import * as scroll from "./scroll.js";

const REMIND_MS = 10_000;
const FINISHED = {
  completa: "Respuesta completa",
  cortada: "Respuesta cortada al llegar al largo máximo",
  parada: "Respuesta parada",
  silencio: "elchat eligió no responder",
  abstencion: "elchat dice que no lo sabe",
  error: "La respuesta falló",
};

export function phaseWords(phase) {
  if (phase.fase === "cola") return phase.posicion > 0 ? `Hay ${phase.posicion} antes que tú.` : "En la cola.";
  if (phase.fase === "leyendo") {
    const share = phase.total ? Math.round((phase.hecho / phase.total) * 100) : 0;
    return `Leyendo la conversación, ${share} %`;
  }
  return "";
}

// Listen to a turn; `handlers`: block(i, html), phase(words), mood(value), end(data), lost().
export function listen(turn, handlers) {
  const source = new EventSource(`/api/turnos/${turn}/eventos`);
  const handle = (name, action) => source.addEventListener(name, (event) => action(JSON.parse(event.data)));
  let ended = null;
  handle("bloque", (value) => handlers.block(value.i, value.html));
  handle("cola", (value) => handlers.block(value.i, value.html));
  handle("estado", (value) => handlers.phase?.(phaseWords(value), value.fase));
  handle("humor", (value) => handlers.mood?.(value));
  handle("fin", (value) => (ended = value));
  handle("cierre", () => {
    source.close();
    handlers.end(ended || { razon: "error" });
  });
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) handlers.lost?.();
    else handlers.phase?.("Reconectando…", "reconectando");
  });
  return source;
}

export class Follower {
  constructor(turn, message) {
    this.turn = turn;
    this.message = message;
    announce("elchat está respondiendo");
    this.reminder = setInterval(() => announce("sigue escribiendo"), REMIND_MS);
    this.source = listen(turn, {
      block: (i, html) => this.block(i, html),
      phase: (words, phase) => this.phase(words, phase),
      mood: (value) => emit("mood", value),
      end: (data) => this.end(data),
      lost: () => this.lost(),
    });
  }

  get node() {
    return nodeOf(this.message);
  }

  block(i, html) {
    const body = this.node?.querySelector(".cuerpo");
    if (!body) return;
    setBlock(body, i, html);
    this.phase("", "escribiendo");
    scroll.follow();
  }

  phase(words, phase) {
    const place = this.node?.querySelector(".fase .dice");
    if (place && place.textContent !== words) place.textContent = words;
    this.node?.classList.toggle("escribiendo", phase === "escribiendo");
  }

  async stop() {
    await remove(`/api/turnos/${this.turn}`).catch(() => {});
  }

  close() {
    clearInterval(this.reminder);
    this.source.close();
  }

  end(data) {
    this.close();
    const body = this.node?.querySelector(".cuerpo");
    if (body && data.bloques != null) trimBlocks(body, data.bloques);
    const text = body?.textContent.trim() || "";
    const words = text ? text.split(/\s+/).length : 0;
    const sentence = `${FINISHED[data.razon] || "Fin"}${words ? `: ${number(words)} palabras` : ""}`;
    announce(sentence);
    if (state.options.leer && text) readAloud(text);
    emit("ended", data);
  }

  lost() {
    this.close();
    emit("lost", this);
  }
}

// For screen readers, if the user asked for it: a few sentences at a time, not one flood.
function readAloud(text) {
  const sentences = text.match(/[^.!?…]+[.!?…]*\s*/g) || [text];
  let delay = 1500;
  for (let start = 0; start < sentences.length; start += 3) {
    const part = sentences.slice(start, start + 3).join("");
    setTimeout(() => announce(part), delay);
    delay += 400 + part.length * 55;
  }
}
