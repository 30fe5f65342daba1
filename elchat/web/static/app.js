// Puts the page together: opening conversations, asking, keys.

import { $, announce, el, number, warn, clearWarning } from "./dom.js";
import { get, post, postPatiently } from "./api.js";
import { emit, knobs, on, state } from "./state.js";
import * as compare from "./compare.js";
import * as composer from "./composer.js";
import * as mood from "./mood.js";
import * as scroll from "./scroll.js";
import * as settings from "./settings.js";
import * as sheets from "./sheets.js";
import * as sidebar from "./sidebar.js";
import * as turns from "./turns.js";
import { Follower } from "./live.js";

const EXAMPLES = ["¿Por qué llueve?", "Escribe un haiku sobre el café", "Dame una receta con garbanzos"];
const RETRY_MS = 2000;

async function boot() {
  settings.applyTheme();
  await takeToken();
  try {
    state.server = await get("/api/estado");
  } catch (failure) {
    warn(failure.message, ["Reintentar", () => location.reload()]);
    return;
  }
  scroll.start();
  turns.start();
  composer.start();
  sidebar.start();
  settings.start();
  sheets.start();
  mood.start();
  listen();
  showExamples();
  await sidebar.refresh();
  await openFromAddress();
  if (matchMedia("(pointer: fine)").matches) $("texto").focus();
  document.documentElement.dataset.lista = "si"; // tests wait for it
}

// The key comes once, after the #, which browsers never send; from then on it is a cookie.
async function takeToken() {
  const found = /[#&]t=([^&]+)/.exec(location.hash);
  if (!found) return;
  history.replaceState(null, "", "/");
  try {
    await post("/api/sesion", { clave: decodeURIComponent(found[1]) });
  } catch (failure) {
    warn(failure.message);
  }
}

function listen() {
  on("open", (id) => {
    if ((id ? `#/c/${id}` : "") !== location.hash) history.pushState(null, "", id ? `#/c/${id}` : "/");
    open(id);
  });
  on("ask", ask);
  on("stop", () => state.follower?.stop());
  on("ended", settle);
  on("lost", reconnect);
  on("warn", (text) => warn(text));
  on("compare", compare.open);
  on("version", showVersion);
  on("edit-last", editLast);
  on("renamed", ({ id, titulo }) => id === state.conversation?.id && showTitle(titulo));
  on("saving-changed", () => (sidebar.refresh(), showHeader(), showExamples()));
  addEventListener("hashchange", openFromAddress);
  addEventListener("popstate", openFromAddress);
  $("renombrar").addEventListener("click", () => sidebar.rename(state.conversation));
  $("guardar-esta").addEventListener("click", keepOnDisk);
  $("ver-atajos").addEventListener("click", settings.showShortcuts);
  addEventListener("keydown", onKey);
}

function showExamples() {
  const keeping = state.server.guardar ? "se guarda en este equipo" : "no se guarda";
  $("modelo").textContent = `${state.server.modelo} · recuerda ${number(state.server.contexto)} fichas · ${keeping}`;
  $("ejemplos").replaceChildren(...EXAMPLES.map((text) =>
    el("li", {}, el("button", { type: "button", class: "boton", onclick: () => emit("ask", { texto: text }) }, text))));
}

function openFromAddress() {
  const id = /^#\/c\/([0-9a-f]{32})$/.exec(location.hash)?.[1] || null;
  if (id && id === state.conversation?.id) return undefined;
  return open(id);
}

async function open(id) {
  state.follower?.close();
  state.follower = null;
  clearWarning();
  composer.open(id);
  composer.showBusy(false);
  sheets.close();
  turns.reset();
  state.conversation = null;
  if (id) {
    try {
      state.conversation = await get(`/api/conversaciones/${id}`);
    } catch (failure) {
      if (failure.status === 404) history.replaceState(null, "", "/");
      warn(failure.status === 404 ? "Esa conversación ya no está." : failure.message);
    }
  }
  turns.render();
  scroll.toEnd();
  showHeader();
  sidebar.refresh();
  emit("opened");
  followLive();
  if (matchMedia("(pointer: fine)").matches) $("texto").focus({ preventScroll: true });
}

// Ask the server again: after every change it is the truth.
async function reload() {
  const id = state.conversation?.id;
  if (!id) return;
  const fresh = await get(`/api/conversaciones/${id}`);
  if (state.conversation?.id !== id) return;
  state.conversation = fresh;
  turns.render();
  showHeader();
}

function followLive() {
  const { conversation } = state;
  if (!conversation?.turno || state.follower) return;
  state.follower = new Follower(conversation.turno, conversation.mensajes.at(-1).id);
  composer.showBusy(true);
}

async function ask(body) {
  if (state.isSending || state.follower) return;
  state.isSending = true;
  composer.showBusy(true);
  clearWarning();
  if (body.texto && !body.editar) turns.showPending(body.texto);
  try {
    const started = await postPatiently("/api/turnos", request(body), warn);
    clearWarning();
    if (!state.conversation) {
      composer.rename(started.conversacion);
      history.pushState(null, "", `#/c/${started.conversacion}`);
    }
    if (body.texto && !body.editar) composer.sent();
    state.conversation = { ...(state.conversation || { mensajes: [] }), id: started.conversacion };
    turns.clearPending();
    await reload();
    scroll.toEnd();
    sidebar.refresh();
    followLive();
    if (!state.conversation.turno) settle();
  } catch (failure) {
    state.isSending = false;
    turns.clearPending();
    turns.render();
    if (!$("texto").value && body.texto) composer.write(body.texto);
    warn(failure.message, failure.status === 0 ? ["Reintentar", () => ask(body)] : undefined);
  } finally {
    state.isSending = false;
    composer.showBusy(Boolean(state.follower));
  }
}

function request(body) {
  const { conversation, newMood } = state;
  const isMoved = !conversation && Object.keys(newMood).length > 0;
  return { conversacion: conversation?.id || null, ajustes: knobs(), ...(isMoved ? { humor: newMood } : {}), ...body };
}

async function settle() {
  state.follower = null;
  composer.showBusy(false);
  await reload().catch((failure) => warn(failure.message));
  sidebar.refresh();
}

// The stream broke and does not come back by itself: the server may have been restarted.
async function reconnect() {
  state.follower = null;
  composer.showBusy(false);
  try {
    await reload();
    followLive();
  } catch (failure) {
    warn(failure.message, ["Reintentar", reconnect]);
    if (failure.status === 0) setTimeout(() => !state.follower && reload().then(() => (clearWarning(), followLive())).catch(() => {}), RETRY_MS);
  }
}

async function showVersion({ to }) {
  if (state.follower) return;
  try {
    state.conversation = await post(`/api/conversaciones/${state.conversation.id}/hoja`, { mensaje: to });
    turns.render();
    turns.nodeOf(to)?.querySelector(".versiones button:not(:disabled)")?.focus();
    const message = state.conversation.mensajes.find((one) => one.id === to);
    announce(`Versión ${message.versiones.indexOf(to) + 1} de ${message.versiones.length}`);
    emit("opened");
  } catch (failure) {
    warn(failure.message);
  }
}

function editLast() {
  const message = state.conversation?.mensajes.findLast((one) => one.papel === "user");
  if (message && !state.follower) turns.edit(turns.nodeOf(message.id), message);
}

async function keepOnDisk() {
  try {
    await post(`/api/conversaciones/${state.conversation.id}/guardar`, {});
    await reload();
    announce("Guardada en este equipo.");
    $("texto").focus();
  } catch (failure) {
    warn(failure.message);
  }
}

function showTitle(title) {
  $("titulo").textContent = title;
  document.title = state.conversation ? `${title} · elchat` : "elchat";
}

function showHeader() {
  const { conversation, server } = state;
  showTitle(conversation?.titulo || "Conversación nueva");
  $("renombrar").hidden = !conversation;
  $("exportar-esta").hidden = !conversation;
  if (conversation) $("exportar-esta").href = `/api/exportar/${conversation.id}`;
  $("no-guarda").hidden = conversation ? conversation.guardada : server.guardar;
  $("guardar-esta").hidden = !conversation;
  const last = conversation?.mensajes.findLast((message) => message.datos.contexto)?.datos;
  $("medidor").hidden = !last;
  if (!last) return;
  const share = Math.min(100, Math.round((100 * last.contexto[0]) / last.contexto[1]));
  $("medidor").setAttribute("aria-valuenow", share);
  $("medidor").setAttribute("aria-valuetext", `${share} % de ${last.contexto[1]} fichas`);
  $("medidor").title = `La conversación ocupa ${last.contexto[0]} de ${last.contexto[1]} fichas de memoria`;
  $("medidor").querySelector(".barra span").style.width = `${Math.max(share, 2)}%`;
  $("medidor").querySelector(".cifra").textContent = `memoria ${share} %`;
}

function onKey(event) {
  const isCommand = event.ctrlKey || event.metaKey;
  if (event.key === "Escape" && !event.isComposing && !document.querySelector("dialog[open]")) {
    if (state.follower) state.follower.stop();
    return;
  }
  if (!state.options.atajos || event.altKey) return;
  const key = event.key.toLowerCase();
  const act = (action) => (event.preventDefault(), action());
  if (isCommand && !event.shiftKey && key === "k") act(() => (sheets.showList(), $("buscar").focus()));
  else if (isCommand && event.shiftKey && key === "o") act(() => emit("open", null));
  else if (isCommand && !event.shiftKey && key === "b") act(sheets.toggleList);
  else if (event.key === "F2" && state.conversation) act(() => sidebar.rename(state.conversation));
}

boot();
