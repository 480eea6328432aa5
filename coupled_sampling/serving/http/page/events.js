/** What is asked of the server: JSON, and server-sent events as they come. Errors are `Error`s whose message is for people. */

async function ask(path, key, more) {
  if (!/^[\x21-\x7e]*$/.test(key)) throw new Error("The API key has characters that no key has, such as a space.");
  const headers = { ...more.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...more, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
  if (!response.ok) throw new Error(await refusal(response));
  return response;
}

async function refusal(response) {
  const told = await response.json().then((body) => body.error?.message, () => undefined);
  const message = told ?? response.statusText;
  if (response.status === 401) return `The server did not accept the API key: ${message}`;
  const later = response.headers.get("Retry-After");
  return `The server refused (${response.status}): ${message}${later ? `. Try again in ${later} s.` : ""}`;
}

export async function getJson(path, key) {
  return (await ask(path, key, {})).json();
}

/** The data of every event that the server sends in answer to `body`. */
export async function* postForEvents(path, key, body, signal) {
  const sent = { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" }, signal };
  const response = await ask(path, key, sent);
  for await (const data of eventData(response.body.pipeThrough(new TextDecoderStream()))) {
    signal.throwIfAborted(); // events that came together with one before
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Error(`The server stopped: ${event.error.message}`);
    yield event;
  }
}

async function* eventData(stream) {
  const reader = stream.getReader(); // not every browser iterates over streams
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const events = (text + value).split("\n\n");
      text = events.pop();
      for (const event of events) {
        const lines = event.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have failed already
  }
}
