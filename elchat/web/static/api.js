// Talking to the server. Every failure becomes one sentence for the user.

export class Failure extends Error {
  constructor(message, status, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

const DOWN = "No encuentro el servidor. ¿Sigue abierto «elchat serve»? Tu texto está a salvo.";
const SENTENCES = { 401: "Falta la clave. Abre el enlace que imprimió «elchat serve»." };

export async function call(method, path, body, options = {}) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : typeof body === "string" ? body : JSON.stringify(body),
      ...options,
    });
  } catch {
    throw new Failure(DOWN, 0);
  }
  if (response.status === 204) return null;
  const value = await response.json().catch(() => ({}));
  if (response.ok) return value;
  const sentence = SENTENCES[response.status] || value.error?.message || `El servidor respondió ${response.status}.`;
  throw new Failure(sentence, response.status, Number(response.headers.get("Retry-After")) || 0);
}

export const get = (path) => call("GET", path);
export const post = (path, body) => call("POST", path, body);
export const remove = (path, options) => call("DELETE", path, undefined, options);

// While the queue is full, wait what the server says and ask again, a few times.
export async function postPatiently(path, body, tell, attempts = 4) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await post(path, body);
    } catch (failure) {
      if (failure.status !== 429 || attempt === attempts) throw failure;
      const seconds = Math.max(1, failure.retryAfter) + attempt - 1;
      tell(`El modelo está ocupado. Reintento en ${seconds} s.`);
      await new Promise((done) => setTimeout(done, seconds * 1000));
    }
  }
}

// Settings of this browser only; storage may be forbidden.
export const memory = {
  get(key, fallback = null) {
    try {
      const text = localStorage.getItem(`elchat:${key}`);
      return text === null ? fallback : JSON.parse(text);
    } catch {
      return fallback;
    }
  },
  set(key, value) {
    try {
      if (value === null || value === "") localStorage.removeItem(`elchat:${key}`);
      else localStorage.setItem(`elchat:${key}`, JSON.stringify(value));
    } catch {
      /* private window: the page works without */
    }
  },
};
