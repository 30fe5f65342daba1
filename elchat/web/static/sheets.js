// The list and the settings: columns where there is room, sheets where there is not.

import { $ } from "./dom.js";
import { memory } from "./api.js";

const wide = matchMedia("(min-width: 900px)");
const roomy = matchMedia("(min-width: 1180px)");

const PLACES = {
  lista: { home: "sitio-lista", sheet: "hoja-lista", button: "abrir-lista", fits: wide },
  panel: { home: "sitio-panel", sheet: "hoja-panel", button: "abrir-panel", fits: roomy },
};

const isOpen = { lista: memory.get("abierta:lista", true), panel: memory.get("abierta:panel", false) };

export function start() {
  for (const [name, place] of Object.entries(PLACES)) {
    $(place.button).addEventListener("click", () => toggle(name));
    $(place.sheet).addEventListener("click", (event) => event.target === $(place.sheet) && $(place.sheet).close());
    $(place.sheet).addEventListener("close", () => settle(name));
    place.fits.addEventListener("change", () => settle(name));
    settle(name);
  }
  document.querySelectorAll("[data-cerrar-hoja]").forEach((node) => node.addEventListener("click", close));
}

// Put each where it belongs for this width, and say so to assistive technology.
function settle(name) {
  const place = PLACES[name];
  const node = $(name);
  if ($(place.sheet).open && !place.fits.matches) return mark(name, true);
  if ($(place.sheet).open) $(place.sheet).close();
  $(place.home).append(node);
  $(place.home).hidden = !(place.fits.matches && isOpen[name]);
  return mark(name, !$(place.home).hidden);
}

function mark(name, isShown) {
  $(PLACES[name].button).setAttribute("aria-expanded", String(isShown));
}

function toggle(name) {
  const place = PLACES[name];
  if (place.fits.matches) {
    isOpen[name] = !isOpen[name];
    memory.set(`abierta:${name}`, isOpen[name]);
    settle(name);
    return;
  }
  if ($(place.sheet).open) {
    $(place.sheet).close();
    return;
  }
  $(place.sheet).append($(name));
  $(place.sheet).showModal();
  mark(name, true);
}

export const toggleList = () => toggle("lista");
export const togglePanel = () => toggle("panel");

export function showList() {
  const place = PLACES.lista;
  if (place.fits.matches ? !isOpen.lista : !$(place.sheet).open) toggle("lista");
}

export function close() {
  for (const place of Object.values(PLACES)) if ($(place.sheet).open) $(place.sheet).close();
}
