// Markdown as nodes of the document, while it is being written: what is finished stays as it is, and
// only the last block is drawn again. Blocks, lines and depth have limits, so that any text costs time
// in proportion to its length and no more.
// Source: CommonMark 0.31, "Blocks", and GitHub's tables; leaves out what models do not write (setext
// headings, indented code, references, HTML).

import {append_inline, element} from "./inline.js";

const kLongest = 16384;  // characters of a block (but code) before it is closed where it is
const kDeepest = 8;      // lists and quotes in each other; what is deeper is shown as it is written
const kColumns = 64;     // of a table
const kCodeRun = 8192;   // characters of code that are laid out together

// ---- lines ----

const is_blank = (line) => line.trim() === "";
const indent_of = (line) => line.length - line.trimStart().length;

function untab(line) {
  return line.includes("\t") ? line.replace(/^[ \t]+/, (s) => s.replaceAll("\t", "    ")) : line;
}

function fence_of(line) {
  const found = /^( {0,3})(`{3,}|~{3,})([^`]*)$/.exec(line);
  return found && {indent: found[1].length, char: found[2][0], count: found[2].length,
                   language: found[3].trim().split(/\s/, 1)[0].slice(0, 40)};
}

function closes_fence(fence, line) {
  const text = line.trim();
  return text.length >= fence.count && indent_of(line) < 4 &&
    text === fence.char.repeat(text.length);
}

// A list's item: where it begins, where its text begins, and its number.
function marker_of(line) {
  const found = /^( *)([-*+]|\d{1,9}[.)])( +|$)/.exec(line);
  if (found === null || is_rule(line)) return null;
  const ordered = found[2].length > 1;
  const spaces = found[3].length > 4 ? 1 : found[3].length;
  return {indent: found[1].length, text: found[1].length + found[2].length + spaces, ordered,
          number: ordered ? Number.parseInt(found[2], 10) : 0};
}

const is_heading = (line) => /^ {0,3}#{1,6}(?:\s|$)/.test(line);
const is_quote = (line) => /^ {0,3}>/.test(line);

function is_rule(line) {
  const text = line.length < 200 ? line.replace(/\s/g, "") : "";
  return text.length >= 3 && /^(?:-+|\*+|_+)$/.test(text) && indent_of(line) < 4;
}

// Whether a line ends the paragraph above it. "1986. A year" does not: only lists that begin at 1 do.
function begins_block(line) {
  const marker = marker_of(line);
  return is_heading(line) || is_quote(line) || is_rule(line) || fence_of(line) !== null ||
    (marker !== null && (!marker.ordered || marker.number === 1));
}

function cells_of(line) {
  const text = line.trim().replace(/^\|/, "");
  const cells = text.split(/(?<!\\)\|/, kColumns + 1).map((cell) => cell.trim());
  if (cells.length > 1 && cells.at(-1) === "") cells.pop();
  return cells.slice(0, kColumns);
}

// The row below a table's head: its columns' alignments, or null.
function alignments_of(line) {
  if (!/^[\s|:-]+$/.test(line) || !line.includes("-") || !line.includes("|")) return null;
  const cells = cells_of(line);
  if (!cells.every((cell) => /^:?-+:?$/.test(cell))) return null;
  return cells.map((cell) => {
    const left = cell.startsWith(":"), right = cell.endsWith(":");
    return left && right ? "center" : right ? "right" : "";
  });
}

// ---- code ----

class CodeBlock {
  #lines = [];  // all that is finished, for the copy button
  #code = element("code");
  #run = null;  // the last part: laying out a text again and again would cost its square
  #partial = document.createTextNode("");

  constructor(language) {
    const copy = element("button", "quiet copy", "Copy");
    copy.type = "button";
    copy.addEventListener("click", () => copy_text(this.text, copy));
    const pre = element("pre", "", this.#code);
    pre.tabIndex = 0;  // so that keys can scroll it
    pre.setAttribute("role", "region");
    pre.setAttribute("aria-label", language === "" ? "Code" : `Code in ${language}`);
    this.node = element("figure", "code", element("figcaption", "", element("span", "", language),
                                                  copy), pre);
  }

  get text() {
    return this.#lines.join("") + this.#partial.data;
  }

  append(text) {
    if (this.#run === null || this.#run.length > kCodeRun) {
      this.#run = document.createTextNode("");
      this.#code.append(element("span", "run", this.#run));
    }
    this.#lines.push(text);
    this.#run.appendData(text);
  }

  // The line that is being written.
  set partial(text) {
    this.#partial.data = text;
    if (text !== "") (this.#code.lastChild ?? this.#code).append(this.#partial);
    else this.#partial.remove();
  }
}

export async function copy_text(text, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    done = false;  // not from here: a page over plain HTTP may not
  }
  const label = button.dataset.label ?? button.textContent;
  button.dataset.label = label;
  button.textContent = done ? "Copied" : "Not allowed here";
  setTimeout(() => { button.textContent = label; }, 1500);
}

// ---- blocks ----

// Takes lines and gives blocks, each when it is finished, to `put`. Code is given when it begins.
class Blocks {
  #put;
  #depth;
  #open = null;  // {kind, lines, size} or {kind: "code", fence, code}

  constructor(put, depth = 0) {
    this.#put = put;
    this.#depth = depth;
  }

  get code() {
    return this.#open?.kind === "code" ? this.#open : null;
  }

  // Lines so far with another one after them, given to `put` without a change here.
  draw_with(line, put) {
    const copy = new Blocks(put, this.#depth);
    if (this.#open !== null) copy.#open = {...this.#open, lines: [...this.#open.lines]};
    if (line !== "") copy.line(line);
    copy.close();
  }

  line(text) {
    const line = untab(text);
    const open = this.#open;
    if (open?.kind === "code") {
      if (closes_fence(open.fence, line)) this.#open = null;
      else open.code.append(text.slice(Math.min(open.fence.indent, indent_of(text))) + "\n");
      return;
    }
    if (open !== null && open.size <= kLongest && this.#continues(open, line)) {
      open.lines.push(line);
      open.size += line.length + 1;
      return;
    }
    this.close();
    this.#begin(line);
  }

  close() {
    const open = this.#open;
    this.#open = null;
    if (open !== null && open.kind !== "code") this.#put(this.#draw(open));
  }

  #continues(open, line) {
    switch (open.kind) {
      case "paragraph":
        if (open.lines.length === 1 && open.lines[0].includes("|")) {
          const alignments = alignments_of(line);
          if (alignments !== null && alignments.length === cells_of(open.lines[0]).length) {
            open.kind = "table";
            return true;
          }
        }
        return !is_blank(line) && !begins_block(line);
      case "table":
        return !is_blank(line) && line.includes("|");
      case "quote":
        return is_quote(line) || (!is_blank(line) && !begins_block(line));
      case "list":
        return this.#continues_list(open, line);
    }
    return false;
  }

  #continues_list(open, line) {
    if (is_blank(line)) return true;
    if (indent_of(line) - open.marker.indent >= 2) return true;
    const marker = marker_of(line);
    if (marker !== null) return marker.ordered === open.marker.ordered;
    return !is_blank(open.lines.at(-1)) && !begins_block(line);
  }

  #begin(line) {
    if (is_blank(line)) return;
    const fence = fence_of(line);
    if (fence !== null) {
      const code = new CodeBlock(fence.language);
      this.#open = {kind: "code", fence, code, lines: [], size: 0};
      this.#put(code.node);
    } else if (is_heading(line)) {
      this.#put(draw_heading(line));
    } else if (is_rule(line)) {
      this.#put(element("hr"));
    } else {
      const marker = marker_of(line);
      const kind = marker !== null ? "list" : is_quote(line) ? "quote" : "paragraph";
      this.#open = {kind, marker, lines: [line], size: line.length};
    }
  }

  #draw({kind, lines, marker}) {
    if (this.#depth >= kDeepest && kind !== "paragraph") {
      return element("p", "plain", lines.join("\n"));
    }
    switch (kind) {
      case "table":
        return draw_table(lines);
      case "quote":
        return this.#draw_inner(element("blockquote"),
                                lines.map((line) => line.replace(/^ {0,3}> ?/, "")));
      case "list":
        return this.#draw_list(lines, marker);
    }
    const out = element("p");
    append_inline(out, lines.map((line) => line.trimStart()).join("\n").trimEnd());
    return out;
  }

  #draw_inner(parent, lines) {
    const blocks = new Blocks((node) => parent.append(node), this.#depth + 1);
    for (const line of lines) blocks.line(line);
    blocks.close();
    return parent;
  }

  #draw_list(lines, first) {
    const list = element(first.ordered ? "ol" : "ul");
    if (first.ordered && first.number !== 1) list.start = first.number;
    let item = [], text = 0;
    const end_item = () => {
      if (item.length > 0) list.append(this.#draw_inner(element("li"), item));
      item = [];
    };
    for (const line of lines) {
      const marker = marker_of(line);
      if (marker !== null && marker.ordered === first.ordered && marker.indent - first.indent < 2) {
        end_item();
        text = marker.text;
        item.push(line.slice(text));
      } else {
        item.push(line.slice(Math.min(text, indent_of(line))));
      }
    }
    end_item();
    return list;
  }
}

// The page has headings of its own above these.
function draw_heading(line) {
  const found = /^ {0,3}(#{1,6})/.exec(line);
  const level = found[1].length;
  const text = line.slice(found[0].length).trim();
  const end = text.search(/(?:^|\s)#{1,40}$/);
  const out = element(`h${Math.min(6, level + 2)}`, `level-${level}`);
  append_inline(out, end < 0 ? text : text.slice(0, end));
  return out;
}

function draw_table(lines) {
  const alignments = alignments_of(lines[1]);
  const row = (line, name) => {
    const out = element("tr");
    const cells = cells_of(line);
    for (let i = 0; i < alignments.length; ++i) {
      const cell = element(name, alignments[i]);
      append_inline(cell, (cells[i] ?? "").replaceAll("\\|", "|"));
      out.append(cell);
    }
    return out;
  };
  const head = element("thead", "", row(lines[0], "th"));
  const body = element("tbody", "", ...lines.slice(2).map((line) => row(line, "td")));
  const out = element("div", "table", element("table", "", head, body));
  out.tabIndex = 0;
  out.setAttribute("role", "region");
  out.setAttribute("aria-label", "Table");
  return out;
}

// ---- a text that is being written ----

export class Markdown {
  #root;
  #pieces = [];
  #rest = "";   // a line that has no end yet
  #tail = [];   // nodes of the last block, which is not finished
  #blocks;

  constructor(root) {
    this.#root = root;
    this.#blocks = new Blocks((node) => root.append(node));
  }

  push(text) {
    this.#pieces.push(text);
  }

  // Shows all that was pushed.
  draw() {
    for (const node of this.#tail) node.remove();
    this.#tail.length = 0;
    if (this.#blocks.code !== null) this.#blocks.code.code.partial = "";
    const text = this.#rest + this.#pieces.join("");
    this.#pieces.length = 0;
    let from = 0;
    for (let end; (end = text.indexOf("\n", from)) >= 0; from = end + 1) {
      this.#whole_line(text.slice(from, text[end - 1] === "\r" ? end - 1 : end));
    }
    this.#rest = text.slice(from);
    this.#cut_long_rest();
    const code = this.#blocks.code;
    if (code === null) {
      this.#blocks.draw_with(this.#rest, (node) => {
        this.#tail.push(node);
        this.#root.append(node);
      });
    } else if (!closes_fence(code.fence, this.#rest)) {
      code.code.partial = this.#rest;
    }
  }

  end() {
    this.draw();
    for (const node of this.#tail) node.remove();
    this.#tail.length = 0;
    const code = this.#blocks.code;
    if (code !== null) code.code.partial = "";
    if (this.#rest !== "") this.#blocks.line(this.#rest);
    this.#rest = "";
    this.#blocks.close();
  }

  #whole_line(line) {
    if (this.#blocks.code !== null) return this.#blocks.line(line);
    for (let from = 0; from === 0 || from < line.length; from += kLongest) {
      this.#blocks.line(line.slice(from, from + kLongest));
    }
  }

  // A line without an end is not drawn again and again: it is taken in parts.
  #cut_long_rest() {
    while (this.#rest.length > kLongest) {
      let end = this.#rest.lastIndexOf(" ", kLongest);
      if (end <= 0) end = kLongest;
      const code = this.#blocks.code;
      if (code !== null) {
        code.code.append(this.#rest.slice(0, end));
      } else {
        this.#blocks.line(this.#rest.slice(0, end));
        this.#blocks.close();
      }
      this.#rest = this.#rest.slice(end);
    }
  }
}
