// One owner of the scroll position. Text is followed until the user scrolls up, and again once they
// come back near the end. Nothing else in the page ever scrolls the messages.

import { $ } from "./dom.js";
import { state } from "./state.js";

const NEAR_PX = 60;
const UP_PX = 3;
const HAND_MS = 1000; // a scroll this soon after a wheel, a finger or a key is the user's

let isPinned = true;
let last = 0;
let handUntil = 0;

const box = () => $("mensajes");
const distance = () => box().scrollHeight - box().scrollTop - box().clientHeight;

export function start() {
  for (const name of ["wheel", "touchmove", "keydown", "pointerdown", "pointermove"]) {
    box().addEventListener(name, (event) => {
      if (name !== "pointermove" || event.buttons) handUntil = performance.now() + HAND_MS;
    }, { passive: true });
  }
  // The browser also moves the text by itself, when something above changes its height.
  box().addEventListener("scroll", () => {
    const top = box().scrollTop;
    if (top < last - UP_PX && performance.now() < handUntil) isPinned = false;
    if (distance() < NEAR_PX && top >= last) isPinned = true;
    last = top;
    showButton();
  }, { passive: true });
  $("bajar").addEventListener("click", () => {
    toEnd();
    $("texto").focus({ preventScroll: true });
  });
  new ResizeObserver(() => follow()).observe(box());
}

// After the messages changed: keep the end in sight if that is what the user wants.
export function follow() {
  if (isPinned && state.options.seguir) write();
  showButton();
}

export function toEnd() {
  isPinned = true;
  write();
  showButton();
}

function write() {
  const node = box();
  const top = node.scrollHeight - node.clientHeight;
  if (Math.abs(node.scrollTop - top) < 1) return;
  node.scrollTop = top;
  last = node.scrollTop;
}

function showButton() {
  $("bajar").hidden = distance() < NEAR_PX;
}
