// What the page knows. The server is the truth: after every change it is asked again.

import { memory } from "./api.js";

export const DEFAULTS = {
  temperatura: 0.7,
  top_p: 0.95,
  min_p: 0,
  repeticion: 1.1,
  largo: 512,
  semilla: null,
  sistema: null,
  calculadora: false,
};

export const OPTIONS = { tema: "sistema", seguir: true, leer: false, atajos: true };

export const state = {
  server: null, // {modelo, contexto, humor, guardar, ...}
  conversation: null, // {id, titulo, guardada, mensajes, turno} or null: a new one
  follower: null, // the answer being written
  isSending: false,
  newMood: {}, // of the conversation about to begin, moved by hand
  knobs: { ...DEFAULTS, ...memory.get("mandos", {}) },
  options: { ...OPTIONS, ...memory.get("opciones", {}) },
};

export function saveKnobs() {
  memory.set("mandos", state.knobs);
}

export function setOption(name, value) {
  state.options[name] = value;
  memory.set("opciones", state.options);
}

// The knobs as the server takes them.
export function knobs() {
  const { semilla, sistema, ...rest } = state.knobs;
  return { ...rest, semilla: semilla || null, sistema: sistema?.trim() || null };
}

const listeners = {};

export function on(name, listener) {
  (listeners[name] ||= []).push(listener);
}

export function emit(name, value) {
  for (const listener of listeners[name] || []) listener(value);
}
