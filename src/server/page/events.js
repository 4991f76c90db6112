// Server-sent events, read by hand: fetch gives bytes, and EventSource can neither POST nor send a key.
// Source: WHATWG HTML, "Server-sent events", section "Interpreting an event stream".

// Cuts a text that comes in pieces into lines ended by \n, \r\n or \r, and lines into events. Each
// line is looked at once.
export class EventReader {
  #rest = [];         // of a line that has no end yet
  #data = [];         // lines of the event that has no end yet
  #after_cr = false;  // a \n that comes now belongs to the line before

  // Returns what became whole: {data: "..."} for an event, {comment: "..."} for a comment.
  push(text) {
    const out = [];
    let from = 0;
    if (this.#after_cr && text.length > 0) {
      if (text[0] === "\n") from = 1;
      this.#after_cr = false;
    }
    const end = /[\r\n]/g;
    end.lastIndex = from;
    for (let found; (found = end.exec(text)) !== null; ) {
      this.#rest.push(text.slice(from, found.index));
      this.#line(this.#rest.join(""), out);
      this.#rest.length = 0;
      from = found.index + 1;
      if (found[0] === "\r") {
        if (from === text.length) this.#after_cr = true;
        else if (text[from] === "\n") from += 1;
      }
      end.lastIndex = from;
    }
    if (from < text.length) this.#rest.push(text.slice(from));
    return out;
  }

  #line(line, out) {
    if (line === "") {
      if (this.#data.length > 0) out.push({data: this.#data.join("\n")});
      this.#data.length = 0;
    } else if (line[0] === ":") {
      out.push({comment: line.slice(1).trim()});
    } else {
      const colon = line.indexOf(":");
      const name = colon < 0 ? line : line.slice(0, colon);
      let value = colon < 0 ? "" : line.slice(colon + 1);
      if (value[0] === " ") value = value.slice(1);
      if (name === "data") this.#data.push(value);
    }
  }
}
