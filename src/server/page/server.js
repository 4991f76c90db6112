// The server that this page came from, as its API has it. The key, where one is asked for, stays in
// this module: in memory, or in the tab's storage when its owner says so.

import {EventReader} from "./events.js";

// Beside the page, so that it also works below a path of a proxy.
const address = (path) => new URL(path, document.baseURI);

const kKeyName = "drover-key";
let key = stored_key();

function stored_key() {
  try {
    return sessionStorage.getItem(kKeyName) ?? "";
  } catch {
    return "";
  }
}

export function set_key(value, keep) {
  key = value;
  try {
    if (keep) sessionStorage.setItem(kKeyName, value);
    else sessionStorage.removeItem(kKeyName);
  } catch {
    // No storage: it stays in memory.
  }
}

// What went wrong, in words. status: of the answer, 0 where there was none. code: the API's.
export class ServerError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

const kUnreachable = "The server cannot be reached.";

function error_of(body, status) {
  const error = body?.error;
  const message = typeof error?.message === "string" ? error.message : `The server answered ${status}.`;
  return new ServerError(message, status, typeof error?.code === "string" ? error.code : null);
}

async function send(path, options = {}) {
  const headers = {...options.headers};
  if (key !== "") headers.Authorization = `Bearer ${key}`;
  let answer;
  try {
    answer = await fetch(address(path), {...options, headers, credentials: "omit", redirect: "error"});
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(kUnreachable);
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  const error = error_of(body, answer.status);
  const seconds = answer.headers.get("Retry-After");
  if (answer.status === 429 && seconds !== null) error.message += ` (try again in ${seconds} s)`;
  throw error;
}

// Throws ServerError with status 503 while the model is being loaded.
export async function health() {
  await send("health");
}

// {id, max_model_len} of the model that is served.
export async function model() {
  const answer = await send("v1/models");
  const {data} = await answer.json();
  return data[0];
}

// Asks for an answer as a stream. heard.head(headers) comes first, then heard.text(piece),
// heard.progress(read, all), heard.usage(usage) and heard.finish(reason) as they come. Returns at
// the end of the stream; throws ServerError, or AbortError when `signal` says so.
export async function ask(body, signal, heard) {
  const answer = await send("v1/chat/completions", {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify(body),
    signal,
  });
  heard.head(answer.headers);
  const stream = answer.body.getReader();
  const decoder = new TextDecoder();
  const events = new EventReader();
  try {
    for (;;) {
      const piece = await next_piece(stream);
      for (const event of events.push(decoder.decode(piece, {stream: true}))) {
        if (event.data === "[DONE]") return;
        if (event.comment !== undefined) hear_comment(event.comment, heard);
        else hear_chunk(event.data, heard);
      }
    }
  } finally {
    stream.cancel().catch(() => {});  // the server need not go on for nobody
  }
}

async function next_piece(stream) {
  let piece;
  try {
    piece = await stream.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The connection was lost before the answer's end.");
  }
  if (piece.done) throw new ServerError("The answer was cut before its end.");
  return piece.value;
}

// "read 2048 of 10240 tokens", while a long prompt is read.
function hear_comment(text, heard) {
  const found = /^read (\d{1,12}) of (\d{1,12}) tokens$/.exec(text);
  if (found !== null) heard.progress(Number(found[1]), Number(found[2]));
}

function hear_chunk(data, heard) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ServerError("The server sent what is not JSON.");
  }
  if (chunk.error) throw error_of(chunk, 200);
  if (chunk.usage) heard.usage(chunk.usage);
  const choice = chunk.choices?.[0];
  if (choice === undefined) return;
  if (choice.delta?.content) heard.text(choice.delta.content);
  if (choice.finish_reason) heard.finish(choice.finish_reason);
}
