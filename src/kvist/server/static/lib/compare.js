// A comparison (see POST /live/compare): one runs at a time, so the next one may have to wait for a moment.

const WAIT = 200; // milliseconds
const TRIES = 25;

/**
 * Run a comparison and call `onEvent` for each of its events, but an error, which is thrown.
 * @param {{api: Function, stream: Function}} app
 * @param {object} body
 * @param {AbortSignal} signal
 * @param {(event: any) => void} onEvent
 */
export async function compare(app, body, signal, onEvent) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await app.stream("/live/compare", { body, signal }, (event) => {
        if (event.error) throw refused(event.error);
        onEvent(event);
      });
    } catch (error) {
      if (error.status !== 429 || tries === TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, WAIT));
    }
  }
}

/** An error that came inside of a stream, in the shape of an `ApiError`. */
export function refused({ message }) {
  return Object.assign(new Error(message), { status: 500 });
}
