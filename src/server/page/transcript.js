// The conversation as the reader sees it.

import {picture_node} from "./composer.js";
import {element} from "./inline.js";
import {copy_text, Markdown} from "./markdown.js";

const whole = (number) => number.toLocaleString("en");
const tokens = (count) => `${whole(count)} token${count === 1 ? "" : "s"}`;

function button(text, action) {
  const out = element("button", "quiet", text);
  out.type = "button";
  out.addEventListener("click", () => action(out));
  return out;
}

// One turn: the question, and an answer that grows.
export class TurnView {
  #turn;
  #body;
  #markdown;
  #frame = 0;
  #progress = "";  // what is shown of it
  #parts = {};
  #draw_soon;

  // actions: {edit(), retry()}, offered on the last turn. grown() is called when the answer is higher.
  constructor(turn, {edit, retry}, grown) {
    this.#turn = turn;
    this.#parts = {
      warning: element("p", "warning"),
      progress: element("div", "progress"),
      body: element("div", "markdown"),
      error: element("p", "error"),
      facts: element("p", "facts"),
    };
    this.#parts.error.setAttribute("role", "alert");
    const question = element("article", "question");
    question.setAttribute("aria-label", "Question");
    if (turn.question.pictures.length > 0) {
      question.append(element("div", "question-pictures",
                              ...turn.question.pictures.map(picture_node)));
    }
    if (turn.question.text !== "") question.append(element("p", "question-text", turn.question.text));
    question.append(element("div", "actions last-only", button("Edit", edit)));
    this.#body = element("article", "answer");
    this.#body.setAttribute("aria-label", "Answer");
    const p = this.#parts;
    const foot = element("div", "answer-foot", p.facts, element("div", "actions",
        button("Copy", (b) => copy_text(this.#turn.answer.text, b)),
        element("span", "last-only", button("Try again", retry))));
    this.#body.append(p.warning, p.progress, p.body, p.error, foot);
    this.node = element("section", "turn", question, this.#body);
    this.#draw_soon = () => {
      this.#frame = 0;
      this.#markdown.draw();
      grown();
    };
    this.begin();
  }

  // An answer from its beginning, the first or another one.
  begin() {
    this.#parts.body.replaceChildren();
    this.#markdown = new Markdown(this.#parts.body);
    this.show();
  }

  text(piece) {
    this.#markdown.push(piece);
    if (this.#frame === 0) this.#frame = requestAnimationFrame(this.#draw_soon);
  }

  // All but the text, as the answer is now.
  show() {
    const answer = this.#turn.answer, p = this.#parts;
    const busy = answer.state === "waiting" || answer.state === "reading" ||
      answer.state === "writing";
    this.#body.dataset.state = answer.state;
    this.#body.setAttribute("aria-busy", String(busy));  // read aloud when it is whole
    put(p.warning, answer.warning === null ? "" : `Take care: ${answer.warning}.`);
    put(p.error, answer.error === null ? "" : words_of(answer.error));
    put(p.facts, facts_of(answer));
    this.#show_progress(answer);
    if (!busy) {
      cancelAnimationFrame(this.#frame);
      this.#frame = 0;
      this.#markdown.end();
    }
  }

  #show_progress({state, progress}) {
    const node = this.#parts.progress;
    node.hidden = state !== "waiting" && state !== "reading";
    // Not made anew for nothing: it moves.
    const shown = node.hidden ? "" : `${state} ${progress?.read}`;
    if (shown === this.#progress) return;
    this.#progress = shown;
    if (node.hidden) return node.replaceChildren();
    if (!progress) return node.replaceChildren(element("span", "pulse"), "Reading the question");
    const bar = element("progress");
    bar.max = progress.all;
    bar.value = progress.read;
    bar.setAttribute("aria-label", "Read");
    node.replaceChildren(bar, `Read ${whole(progress.read)} of ${tokens(progress.all)}`);
  }
}

function put(node, text) {
  node.hidden = text === "";
  if (node.textContent !== text) node.textContent = text;
}

function words_of(error) {
  if (error.code !== "context_length_exceeded") return error.message;
  return `${error.message}. A new chat, or a shorter question, has room again.`;
}

// How many tokens, how fast, and of what prompt.
function facts_of(answer) {
  const {state, usage, pieces, asked, first, ended, finish} = answer;
  if (state === "waiting" || state === "reading") return "";
  const out = [];
  const written = usage?.completion_tokens ?? pieces;
  if (written > 0) out.push(usage ? tokens(written) : `about ${tokens(written)}`);
  // The first token comes with the prompt's end: the others are what writing took time for.
  const seconds = ((ended || performance.now()) - first) / 1000;
  if (first > 0 && written > 1 && seconds > 0) {
    out.push(`${((written - 1) / seconds).toFixed(1)} tokens/s`);
  }
  if (first > 0) out.push(`first after ${((first - asked) / 1000).toFixed(2)} s`);
  if (usage) {
    const known = usage.prompt_tokens_details?.cached_tokens ?? 0;
    out.push(`prompt ${tokens(usage.prompt_tokens)}` + (known > 0 ? `, ${whole(known)} known` : ""));
  }
  if (state === "stopped") out.push("stopped");
  if (finish === "length") out.push("cut at the limit of tokens");
  // Broken between facts alone.
  return out.map((fact) => fact.replaceAll(" ", "\u00a0")).join(" \u00b7 ");
}
