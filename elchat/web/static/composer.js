// The box where one writes: drafts, keys, send and stop.

import { $, clearWarning } from "./dom.js";
import { memory } from "./api.js";
import { emit, state } from "./state.js";

const SAVE_MS = 300;
let timer = 0;
let place = null; // whose draft it is; null until a conversation is open

const area = () => $("texto");
const isTouch = () => matchMedia("(pointer: coarse)").matches;

export function start() {
  $("redactor").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  area().addEventListener("keydown", onKey);
  area().addEventListener("input", () => {
    grow();
    clearTimeout(timer);
    timer = setTimeout(save, SAVE_MS);
  });
  addEventListener("pagehide", save);
  $("parar").addEventListener("click", () => emit("stop"));
  if (isTouch()) area().setAttribute("enterkeyhint", "enter");
}

function onKey(event) {
  if (event.isComposing || event.keyCode === 229) return; // an accent or an ideogram is being written
  if (event.key === "Enter" && !event.shiftKey && !event.ctrlKey && !event.metaKey && !isTouch()) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && area().value === "" && state.options.atajos) {
    event.preventDefault();
    emit("edit-last");
  }
}

function send() {
  const text = area().value.trim();
  if (!text || state.isSending || state.follower) return;
  const limit = state.server?.max_caracteres || Infinity;
  if (text.length > limit) {
    emit("warn", `El mensaje tiene ${text.length} caracteres y caben ${limit}. Acórtalo.`);
    return;
  }
  clearWarning();
  emit("ask", { texto: text });
}

// The server has it: only now is the draft forgotten.
export function sent() {
  area().value = "";
  clearTimeout(timer);
  memory.set(`borrador:${place}`, null);
  grow();
  if (isTouch()) area().blur(); // the keyboard leaves, the answer is seen
}

export function write(text) {
  area().value = text;
  grow();
  area().focus();
}

export function open(conversation) {
  if (place) save();
  place = conversation || "nueva";
  area().value = memory.get(`borrador:${place}`, "");
  grow();
}

// A new conversation got its id: the draft moves with it.
export function rename(conversation) {
  memory.set(`borrador:${place}`, null);
  place = conversation;
}

export function showBusy(isBusy) {
  const hadFocus = [$("enviar"), $("parar")].includes(document.activeElement);
  $("enviar").hidden = isBusy;
  $("parar").hidden = !isBusy;
  if (hadFocus) (isBusy ? $("parar") : $("enviar")).focus();
}

function save() {
  if (place) memory.set(`borrador:${place}`, area().value);
}

function grow() {
  if (CSS.supports("field-sizing", "content")) return;
  area().style.height = "auto";
  area().style.height = `${Math.min(area().scrollHeight, innerHeight * 0.4)}px`;
}
