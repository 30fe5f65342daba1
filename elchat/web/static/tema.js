// Before the first paint: a page that opens white and turns dark hurts the eyes.

try {
  const theme = JSON.parse(localStorage.getItem("elchat:opciones"))?.tema;
  if (theme === "claro" || theme === "oscuro") document.documentElement.dataset.tema = theme;
} catch {
  /* no storage, no choice: the system's */
}
