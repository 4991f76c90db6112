// Markdown within a line, as nodes of the document: code, emphasis, links. Text becomes text nodes and
// never HTML, so nothing that a model writes is more than text with a look. One pass: each place of the
// text is looked at a bounded number of times.
// Source: CommonMark 0.31, "Inlines", with these liberties: a line's end is a line's end; pictures are
// named but not loaded; \( and \[ stay, since models mean formulas by them; "<br>" ends a line.

const kMarks = 24;  // openers that wait for their closers, and so the depth of what is nested
const kEscapes = new Set("\\`*_~#+-.!|<>{}&$");
const kProtocols = new Set(["http:", "https:", "mailto:"]);

// The address as a browser takes it, or null for one that is not of the web or of mail.
export function safe_address(text) {
  try {
    const url = new URL(text);
    return kProtocols.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

export function append_inline(parent, text) {
  new InlineReader(parent, text).read();
}

export function element(name, class_name = "", ...children) {
  const out = document.createElement(name);
  if (class_name !== "") out.className = class_name;
  out.append(...children);
  return out;
}

function link(address, ...children) {
  const out = element("a", "", ...children);
  out.href = address;
  out.target = "_blank";
  out.rel = "noopener noreferrer";
  return out;
}

const is_space = (c) => c === undefined || /\s/.test(c);
const is_punctuation = (c) => c !== undefined && /[\p{P}\p{S}]/u.test(c);

class InlineReader {
  #parent;
  #text;
  #from = 0;      // of the plain text that has no node yet
  #marks = [];    // openers, as text nodes until they are closed: {kind, count, node, size, both};
                  // size: of the run that it was; both: might close as well (for the rule of three)
  #ticks = null;  // places of runs of backticks, by their length

  constructor(parent, text) {
    this.#parent = parent;
    this.#text = text;
  }

  read() {
    const special = /[\\`*_~[\]!<\n]|https?:\/\//g;
    for (let found; (found = special.exec(this.#text)) !== null; ) {
      special.lastIndex = this.#take(found.index, found[0]);
    }
    this.#flush(this.#text.length);
  }

  // What stands at `at`; returns where to go on.
  #take(at, what) {
    switch (what) {
      case "\\":
        return this.#escape(at);
      case "`":
        return this.#code(at);
      case "*":
      case "_":
      case "~":
        return this.#emphasis(at, what);
      case "!":
        if (this.#text[at + 1] !== "[") return at + 1;
        return this.#open(at, "![", 2);
      case "[":
        return this.#open(at, "[", 1);
      case "]":
        return this.#close_bracket(at);
      case "<":
        return this.#angle(at);
      case "\n":
        return this.#line_end(at, at + 1);
      default:
        return this.#bare_address(at);
    }
  }

  // The plain text before `at` becomes a node; what follows begins at `next`.
  #flush(at, next = at) {
    if (at > this.#from) this.#parent.append(this.#text.slice(this.#from, at));
    this.#from = next;
    return next;
  }

  #put(node, at, next) {
    this.#flush(at, next);
    this.#parent.append(node);
    return next;
  }

  #line_end(at, next) {
    let end = at;
    while (end > this.#from && this.#text[end - 1] === " ") end -= 1;
    return this.#put(element("br"), end, next);
  }

  #escape(at) {
    const next = this.#text[at + 1];
    if (next === "\n") return this.#line_end(at, at + 2);
    if (!kEscapes.has(next)) return at + 1;
    this.#flush(at, at + 1);
    return at + 2;
  }

  #run(at, char) {
    let end = at;
    while (this.#text[end] === char) end += 1;
    return end - at;
  }

  #code(at) {
    const count = this.#run(at, "`");
    const end = this.#closing_ticks(at + count, count);
    if (end < 0) return at + count;
    let text = this.#text.slice(at + count, end).replaceAll("\n", " ");
    if (text.length > 2 && text.startsWith(" ") && text.endsWith(" ") && text.trim() !== "") {
      text = text.slice(1, -1);
    }
    return this.#put(element("code", "", text), at, end + count);
  }

  // Where the next run of `count` backticks begins, or -1. Runs are found once for the whole text.
  #closing_ticks(from, count) {
    if (this.#ticks === null) {
      this.#ticks = new Map();
      for (const run of this.#text.matchAll(/`+/g)) {
        const length = run[0].length;
        if (!this.#ticks.has(length)) this.#ticks.set(length, {places: [], next: 0});
        this.#ticks.get(length).places.push(run.index);
      }
    }
    const runs = this.#ticks.get(count);
    if (runs === undefined) return -1;
    while (runs.next < runs.places.length && runs.places[runs.next] < from) runs.next += 1;
    return runs.places[runs.next] ?? -1;
  }

  #open(at, kind, count, both = false) {
    this.#flush(at, at + count);
    const node = document.createTextNode(this.#text.slice(at, at + count));
    this.#parent.append(node);
    if (this.#marks.length === kMarks) this.#marks.shift();  // the oldest stays text
    this.#marks.push({kind, count, node, size: count, both});
    return at + count;
  }

  #emphasis(at, char) {
    let count = this.#run(at, char);
    const end = at + count;
    if (count > 3 || (char === "~" && count !== 2)) return end;
    const before = this.#text[at - 1], after = this.#text[end];
    const left = !is_space(after) &&
      (!is_punctuation(after) || is_space(before) || is_punctuation(before));
    const right = !is_space(before) &&
      (!is_punctuation(before) || is_space(after) || is_punctuation(after));
    const opens = left && (char !== "_" || !right || is_punctuation(before));
    const closes = right && (char !== "_" || !left || is_punctuation(after));
    if (closes) {
      const fits = (m) => m.kind === char && !((m.both || (left && right)) &&
        (m.size + end - at) % 3 === 0 && (m.size % 3 !== 0 || (end - at) % 3 !== 0));
      while (count > 0) {
        const mark = this.#marks.findLastIndex(fits);
        if (mark < 0) break;
        this.#flush(end - count);
        count -= this.#close(mark, count, char);
        this.#from = end - count;
      }
    }
    if (count === 0) return end;
    return opens ? this.#open(end - count, char, count, left && right) : end;
  }

  // Closes the mark with up to `count` characters, and returns how many that took.
  #close(index, count, char) {
    const mark = this.#marks[index];
    const taken = Math.min(count, mark.count) >= 2 ? 2 : 1;
    this.#wrap(mark.node, element(char === "~" ? "del" : taken === 2 ? "strong" : "em"));
    mark.count -= taken;
    mark.node.data = mark.node.data.slice(taken);
    this.#marks.length = index + 1;
    if (mark.count === 0) {
      this.#marks.pop();
      mark.node.remove();
    }
    return taken;
  }

  // All that came after `node` goes into `wrapper`, which comes after it.
  #wrap(node, wrapper) {
    while (node.nextSibling !== null) wrapper.append(node.nextSibling);
    node.after(wrapper);
    return wrapper;
  }

  #close_bracket(at) {
    const index = this.#marks.findLastIndex((m) => m.kind === "[" || m.kind === "![");
    if (index < 0) return at + 1;
    const mark = this.#marks[index];
    // Bounded everywhere, so that it takes no longer than the address is.
    const target =
      /\(\s{0,8}(<[^<>\n]{0,2000}>|[^\s()<>]{0,2000}(?:\([^\s()<>]{0,500}\)[^\s()<>]{0,500}){0,4})(?:\s{1,8}(?:"[^"\n]{0,500}"|'[^'\n]{0,500}'))?\s{0,8}\)/y;
    target.lastIndex = at + 1;
    const found = target.exec(this.#text);
    if (found === null) {
      this.#marks.splice(index, 1);
      return at + 1;
    }
    const next = at + 1 + found[0].length;
    this.#flush(at, next);
    const address = safe_address(found[1].replace(/^<|>$/g, ""));
    this.#marks.length = index;
    if (mark.kind === "![") {
      const picture = this.#wrap(mark.node, element("span", "unloaded"));
      picture.prepend("picture: ");
      if (address !== null) picture.title = `Not loaded: ${address}`;
    } else {
      // No link in a link: neither what was one by itself, nor brackets around this one.
      const wrapper = this.#wrap(mark.node, address === null ? element("span") : link(address));
      for (const inner of wrapper.querySelectorAll("a")) inner.replaceWith(...inner.childNodes);
      this.#marks = this.#marks.filter((m) => m.kind !== "[");
    }
    mark.node.remove();
    return next;
  }

  #angle(at) {
    const tag = /<(?:br {0,4}\/?|((?:https?:\/\/|mailto:)[^\s<>]{1,2000}))>/iy;
    tag.lastIndex = at;
    const found = tag.exec(this.#text);
    if (found === null) return at + 1;
    const next = at + found[0].length;
    if (found[1] === undefined) return this.#put(element("br"), at, next);
    const address = safe_address(found[1]);
    return address === null ? at + 1 : this.#put(link(address, found[1]), at, next);
  }

  #bare_address(at) {
    const written = /https?:\/\/[^\s<>"'`*|\\^{}[\]]{1,2000}/y;
    written.lastIndex = at;
    const found = written.exec(this.#text);
    if (found === null) return at + 4;
    let text = found[0].replace(/[.,:;!?]{1,20}$/, "");
    if (text.endsWith(")") && !text.includes("(")) text = text.slice(0, -1);
    const address = safe_address(text);
    return address === null ? at + 4 : this.#put(link(address, text), at, at + text.length);
  }
}
