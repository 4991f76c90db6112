// What was said: turns of a question and its answer. Only this page has it; the server is told all of
// it with each question and forgets it.

export class Conversation {
  turns = [];  // {question: {text, pictures: [{name, url}]}, answer: see new_answer()}

  add(question) {
    const turn = {question, answer: new_answer()};
    this.turns.push(turn);
    return turn;
  }

  get last() {
    return this.turns.at(-1);
  }

  // The body of a request for the answer of the last turn. A question that got no answer is left out
  // of what follows.
  request(model, {system, ...sampling}) {
    const messages = system ? [{role: "system", content: system}] : [];
    for (const turn of this.turns) {
      const is_last = turn === this.last;
      if (!is_last && turn.answer.text === "") continue;
      messages.push({role: "user", content: content_of(turn.question)});
      if (!is_last) messages.push({role: "assistant", content: turn.answer.text});
    }
    return {model, messages, stream: true, stream_options: {include_usage: true}, ...sampling};
  }

  // As a file of JSON has it.
  exported(model, settings) {
    const turns = this.turns.map(({question, answer}) => ({
      question,
      answer: {text: answer.text, finish: answer.finish, warning: answer.warning,
               error: answer.error?.message ?? null, usage: answer.usage},
    }));
    return {model, exported: new Date().toISOString(), settings, turns};
  }
}

export function new_answer() {
  return {
    state: "waiting",  // then reading, writing and done, stopped or failed
    text: "",
    pieces: 0,      // that the text came in: about as many as tokens
    finish: null,   // the server's word for why it ended
    usage: null,    // its count of tokens, at the end
    warning: null,  // of the recall map
    error: null,
    asked: 0, first: 0, ended: 0,  // milliseconds, by performance.now()
  };
}

function content_of({text, pictures}) {
  if (pictures.length === 0) return text;
  const parts = pictures.map(({url}) => ({type: "image_url", image_url: {url}}));
  return text === "" ? parts : [...parts, {type: "text", text}];
}
