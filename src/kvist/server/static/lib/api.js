// Talking to the server: JSON, and server-sent events read with fetch (so that a POST can be streamed too).

/** What the server refused, or could not do. `status` is 0 where it could not be reached. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.name = "ApiError";
    this.status = status;
  }
}

async function request(path, { method, body, signal } = {}) {
  const options = { method: method ?? (body === undefined ? "GET" : "POST"), signal, credentials: "same-origin" };
  options.headers = { Accept: "application/json" };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached.");
  }
  if (response.ok) return response;
  if (response.status === 401) location.reload(); // the server answers with the page that asks for a key
  const told = await response.json().catch(() => null);
  throw new ApiError(response.status, told?.error?.message ?? `The server answered ${response.status}.`);
}

/**
 * The JSON that a path answers with; ApiError where it refuses.
 * @param {string} path
 * @param {{method?: string, body?: unknown, signal?: AbortSignal}} [options] a body makes it a POST
 */
export async function api(path, options) {
  return (await request(path, options)).json();
}

/**
 * Call `onEvent(object)` for each `data:` of a stream until it ends; `[DONE]` ends it too.
 * @param {string} path
 * @param {{body?: unknown, signal?: AbortSignal}} options
 * @param {(event: any) => void} onEvent
 */
export async function stream(path, options, onEvent) {
  const response = await request(path, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        const data = line.slice(6).trimEnd();
        if (data === "[DONE]") return;
        onEvent(JSON.parse(data));
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof SyntaxError) throw error;
    if (error instanceof TypeError) throw new ApiError(0, "The connection broke.");
    throw error;
  } finally {
    reader.cancel().catch(() => {}); // it may be closed already
  }
}
