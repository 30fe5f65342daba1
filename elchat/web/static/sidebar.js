// The list of conversations: groups by day, search, rename, delete with a way back, files.

import { $, ask, button, el, toast, warn } from "./dom.js";
import { call, get, post, remove } from "./api.js";
import { emit, state } from "./state.js";

const UNDO_S = 8;
const SEARCH_MS = 150;
const hidden = new Map(); // conversations about to be deleted: id -> timer
let items = [];
let timer = 0;

export function start() {
  $("nueva").addEventListener("click", () => emit("open", null));
  $("buscar").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(refresh, SEARCH_MS);
  });
  $("buscar").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && $("buscar").value) {
      event.stopPropagation();
      $("buscar").value = "";
      refresh();
    }
    if (event.key === "ArrowDown") (event.preventDefault(), $("conversaciones").querySelector("a")?.focus());
  });
  $("conversaciones").addEventListener("keydown", onKey);
  $("importar").addEventListener("click", () => $("archivo").click());
  $("archivo").addEventListener("change", () => importFile($("archivo").files[0]));
  addEventListener("dragover", (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
  addEventListener("drop", (event) => {
    const file = event.dataTransfer.files[0];
    if (file) (event.preventDefault(), importFile(file));
  });
  addEventListener("pagehide", () => hidden.forEach((timer, id) => erase(id, { keepalive: true })));
}

export async function refresh() {
  const query = $("buscar").value.trim();
  const answer = await get(query ? `/api/buscar?q=${encodeURIComponent(query)}` : "/api/conversaciones").catch(() => null);
  if (!answer || query !== $("buscar").value.trim()) return;
  state.server.guardar = answer.guardar;
  items = answer.conversaciones;
  render(query);
}

function render(query) {
  const visible = items.filter((item) => !hidden.has(item.id));
  const list = $("conversaciones");
  const focused = document.activeElement?.closest?.("[data-id]")?.dataset.id;
  list.replaceChildren();
  if (!visible.length) {
    list.append(el("p", { class: "nada" }, query ? `Nada coincide con «${query}».` : "Aún no hay conversaciones."));
  }
  const groups = query ? [["Resultados", visible]] : byDay(visible);
  for (const [name, members] of groups) {
    if (members.length) list.append(el("h2", {}, name), el("ul", {}, ...members.map(row)));
  }
  if (focused) list.querySelector(`[data-id="${focused}"] a`)?.focus();
}

function row(item) {
  const link = el("a", { href: `#/c/${item.id}`, class: "titulo-lista" }, el("span", { class: "nombre" }, item.titulo));
  if (item.id === state.conversation?.id) link.setAttribute("aria-current", "page");
  if (item.extracto?.length) {
    link.append(el("span", { class: "extracto" }, ...item.extracto.map((piece) => (piece.coincide ? el("mark", {}, piece.texto) : piece.texto))));
  }
  return el("li", { "data-id": item.id }, link,
    el("span", { class: "acciones-lista" },
      button(`Cambiar el título de ${item.titulo}`, "editar", () => rename(item)),
      button(`Borrar ${item.titulo}`, "borrar", () => discard(item))));
}

function byDay(list) {
  const day = 86_400_000;
  const today = new Date().setHours(0, 0, 0, 0);
  const limits = [["Hoy", today], ["Ayer", today - day], ["Esta semana", today - 6 * day], ["Este mes", today - 30 * day], ["Antes", -Infinity]];
  const groups = limits.map(([name]) => [name, []]);
  for (const item of list) groups[limits.findIndex(([, from]) => item.actualizada * 1000 >= from)][1].push(item);
  return groups;
}

function onKey(event) {
  const line = event.target.closest("li");
  if (!line) return;
  const item = items.find((one) => one.id === line.dataset.id);
  const links = [...$("conversaciones").querySelectorAll("a")];
  const index = links.indexOf(line.querySelector("a"));
  if (event.key === "F2") (event.preventDefault(), event.stopPropagation(), rename(item));
  if (event.key === "Delete") (event.preventDefault(), discard(item));
  if (event.key === "ArrowDown") (event.preventDefault(), links[index + 1]?.focus());
  if (event.key === "ArrowUp") (event.preventDefault(), (links[index - 1] || $("buscar")).focus());
}

export async function rename(item) {
  const field = el("input", { name: "titulo", maxlength: 200, required: true, "aria-label": "Título", class: "campo" });
  field.value = item.titulo;
  const form = await ask("Cambiar el título", [field], "Guardar");
  const title = form?.get("titulo").trim();
  if (!title) return;
  try {
    const answer = await call("PATCH", `/api/conversaciones/${item.id}`, { titulo: title });
    emit("renamed", { id: item.id, titulo: answer.titulo });
    await refresh();
  } catch (failure) {
    warn(failure.message);
  }
}

// Hidden at once, deleted when the time to change one's mind is over.
export function discard(item) {
  const lines = [...$("conversaciones").querySelectorAll("li")];
  const index = lines.findIndex((line) => line.dataset.id === item.id);
  const next = lines[index + 1] || lines[index - 1];
  const nextId = next?.dataset.id;
  hidden.set(item.id, setTimeout(() => erase(item.id), UNDO_S * 1000));
  render($("buscar").value.trim());
  const target = nextId && $("conversaciones").querySelector(`[data-id="${nextId}"] a`);
  (target || $("nueva")).focus();
  if (item.id === state.conversation?.id) emit("open", null);
  toast(`«${item.titulo}» se borrará.`, ["Deshacer", () => restore(item.id)], UNDO_S);
}

function restore(id) {
  clearTimeout(hidden.get(id));
  hidden.delete(id);
  render($("buscar").value.trim());
}

async function erase(id, options) {
  clearTimeout(hidden.get(id));
  try {
    await remove(`/api/conversaciones/${id}`, options);
  } catch (failure) {
    if (failure.status !== 404) warn(failure.message);
  }
  hidden.delete(id);
  refresh();
}

async function importFile(file) {
  $("archivo").value = "";
  if (!file) return;
  try {
    const content = JSON.parse(await file.text());
    const body = Array.isArray(content) ? { conversaciones: content } : content;
    const answer = await post("/api/importar", body);
    const words = answer.nuevas === 1 ? "1 conversación nueva" : `${answer.nuevas} conversaciones nuevas`;
    toast(answer.nuevas ? `Importadas: ${words}.` : "Ya estaba todo aquí.");
    await refresh();
  } catch (failure) {
    warn(failure instanceof SyntaxError ? "Ese archivo no es JSON." : failure.message);
  }
}

export async function deleteAll() {
  const sure = await ask("Borrar todas las conversaciones", [el("p", {}, "Se borrarán del disco. No se puede deshacer.")], "Borrar todo");
  if (!sure) return;
  try {
    await remove("/api/conversaciones");
    emit("open", null);
    await refresh();
    toast("Borrado.");
  } catch (failure) {
    warn(failure.message);
  }
}
