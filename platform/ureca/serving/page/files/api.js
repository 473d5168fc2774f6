// Calls of the service. Failures become a ServiceError with the service's message.

export class ServiceError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

const TOKEN = "ureca token"; // in sessionStorage: lives as long as this tab
export const keepToken = (token) => sessionStorage.setItem(TOKEN, token);
export const hasToken = () => sessionStorage.getItem(TOKEN) !== null;

/** The service's index: {"service", "models", "links"}. */
export const serviceIndex = async () => (await ask("./", { headers: { Accept: "application/json" } })).json();

/** A file of the page. */
export const fileOf = async (path) => (await ask(path)).blob();

/** The JSON response of a call. */
export const post = async (path, body, signal) => (await send(path, body, signal)).json();

/** The events of a streamed response, each an object. */
export async function* stream(path, body, signal) {
  const response = await send(path, { ...body, stream: true }, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ; ) {
    const { value, done } = await reader.read().catch((error) => { throw lost(error); });
    if (done) throw new ServiceError("The connection broke before the end. Try again.");
    const blocks = (text + value).split("\n\n");
    text = blocks.pop(); // the start of the next event
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") {
        await reader.read().catch(() => {}); // the end of the body; all events have arrived
        return;
      }
      const event = JSON.parse(data);
      if (event.error && event.id === undefined) throw new ServiceError(event.error.message);
      yield event;
    }
  }
}

const send = (path, body, signal) => {
  const headers = { "Content-Type": "application/json" };
  if (hasToken()) headers.Authorization = `Bearer ${sessionStorage.getItem(TOKEN)}`;
  return ask(path, { method: "POST", headers, body: JSON.stringify(body), signal });
};

const ask = async (path, options = {}) => {
  const response = await fetch(path, options).catch((error) => { throw lost(error); });
  if (response.ok) return response;
  const text = await response.text();
  let message;
  try {
    message = JSON.parse(text).error.message;
  } catch {
    message = `${path}: HTTP ${response.status}: ${text.slice(0, 200)}`; // from a proxy in between
  }
  throw new ServiceError(message, response.status);
};

const lost = (error) =>
  error.name === "AbortError" ? error : new ServiceError("The service can't be reached. Is it still running?");
