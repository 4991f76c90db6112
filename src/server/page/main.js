// The page: a conversation with the model that this server has. This module holds the parts together.

import {Composer} from "./composer.js";
import {Conversation, new_answer} from "./conversation.js";
import * as server from "./server.js";
import {close_by_backdrop, settings} from "./settings.js";
import {TurnView} from "./transcript.js";

const at = (id) => document.getElementById(id);
const chat = at("chat"), transcript = at("transcript");

let conversation = new Conversation();
let views = [];
let model = null;    // null until the server is ready
let running = null;  // AbortController of the answer that is being written

const say = (words) => { at("status").textContent = words; };

const composer = new Composer({
  say,
  send(question) {
    if (running !== null) {
      say("An answer is being written; Esc stops it.");
      return false;
    }
    if (model === null) {
      connect();
      return false;
    }
    const turn = conversation.add(question);
    const view = new TurnView(turn, {edit, retry}, follow);
    views.push(view);
    transcript.append(view.node);
    show_state();
    answer(turn, view);
    return true;
  },
});

// ---- the server ----

const kPatience = {loading: 1000, unreachable: 3000};
let connecting = false;

// Until the model is there, or a key is needed.
async function connect() {
  if (connecting) return;
  connecting = true;
  try {
    while (model === null) {
      try {
        await server.health();
        model = await server.model();
        say("");
      } catch (error) {
        if (error.status === 401) return ask_for_key();
        say(error.status === 503 ? `Not ready yet: ${error.message}.` : error.message);
        const wait = error.status === 503 ? kPatience.loading : kPatience.unreachable;
        await new Promise((resolve) => setTimeout(resolve, wait));
      }
    }
  } finally {
    connecting = false;
  }
  at("model").textContent = model.id;
  document.title = `${model.id} \u2013 Drover`;
  show_fill();
}

let had_key = false;

function ask_for_key() {
  say("This server asks for a key.");
  at("key-note").textContent = had_key
    ? "That one is not known here."
    : "Its owner has one for you. It goes nowhere else.";
  if (!at("key").open) at("key").showModal();
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target;
  had_key = true;
  server.set_key(form.elements.key.value.trim(), form.elements.keep.checked);
  form.elements.key.value = "";
  at("key").close();
  say("");
  connect();
  composer.focus();
});

// ---- an answer ----

async function answer(turn, view) {
  const control = new AbortController();
  running = control;
  turn.answer = new_answer();
  const now = turn.answer;
  now.asked = performance.now();
  view.begin();
  show_state();
  follow(true);
  const live = setInterval(() => view.show(), 250);  // of its counters
  const heard = {
    head(headers) {
      now.warning = headers.get("X-Drover-Warning");
      view.show();
    },
    progress(read, all) {
      now.state = "reading";
      now.progress = {read, all};
      view.show();
    },
    text(piece) {
      now.text += piece;
      now.pieces += 1;
      if (now.first === 0) {
        now.first = performance.now();
        now.state = "writing";
        view.show();
      }
      view.text(piece);
    },
    usage(usage) { now.usage = usage; },
    finish(reason) { now.finish = reason; },
  };
  try {
    await server.ask(conversation.request(model.id, settings()), control.signal, heard);
    now.state = "done";
  } catch (error) {
    now.state = error.name === "AbortError" ? "stopped" : "failed";
    if (now.state === "failed") now.error = error;
    if (error.status === 401 && running === control) ask_for_key();
  }
  clearInterval(live);
  now.ended = performance.now();
  view.show();
  if (running !== control) return;  // a new chat has begun
  running = null;
  show_state();
  show_fill();
  follow();
}

function stop() {
  if (running === null) return;
  running.abort();
  composer.focus();  // the button that had it is about to go
}

function retry() {
  if (running !== null) return;
  answer(conversation.last, views.at(-1));
  composer.focus();
}

// The last question comes back to where it was made.
function edit() {
  stop();
  running = null;
  const turn = conversation.turns.pop();
  views.pop().node.remove();
  composer.fill(turn.question);
  composer.focus();
  show_state();
  show_fill();
}

function new_chat() {
  stop();
  running = null;
  conversation = new Conversation();
  views = [];
  transcript.replaceChildren();
  say("");
  show_state();
  show_fill();
  composer.focus();
}

function export_chat() {
  const text = JSON.stringify(conversation.exported(model?.id ?? null, settings()), null, 2);
  const file = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  const link = document.createElement("a");
  link.href = file;
  link.download = "drover-chat.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(file), 10_000);
}

// ---- what is shown around it ----

function show_state() {
  const empty = conversation.turns.length === 0;
  at("welcome").hidden = !empty;
  at("export").disabled = empty;
  at("new-chat").disabled = empty;
  at("stop").hidden = running === null;
  at("send").hidden = running !== null;
  say("");
}

// How much of the context the last answer and all before it took.
function show_fill() {
  const most = model?.max_model_len;
  at("fill").hidden = !most;
  if (!most) return;
  const used = conversation.turns.findLast((turn) => turn.answer.usage)?.answer.usage.total_tokens ?? 0;
  const part = Math.min(1, used / most);
  at("fill-part").style.width = `${100 * part}%`;
  at("fill-text").textContent = `${used.toLocaleString("en")} of ${most.toLocaleString("en")} tokens`;
  at("fill").setAttribute("aria-valuenow", part.toFixed(3));
  at("fill").setAttribute("aria-valuetext", at("fill-text").textContent);
  at("fill").classList.toggle("near", part > 0.9);
}

// Stays at the end of what is being written, unless the reader has gone elsewhere.
let at_end = true;
chat.addEventListener("scroll", () => {
  at_end = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 48;
}, {passive: true});

function follow(always = false) {
  if (always) at_end = true;
  if (at_end) chat.scrollTop = chat.scrollHeight;
}

new ResizeObserver(() => follow()).observe(chat);  // the composer grows with its text

at("stop").addEventListener("click", stop);
at("new-chat").addEventListener("click", new_chat);
at("export").addEventListener("click", export_chat);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.querySelector("dialog[open]") === null) stop();
});
close_by_backdrop(at("key"));
show_state();
connect();
