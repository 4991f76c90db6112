// Where a question is made: its text, and pictures by button, paste and drop.

import {element} from "./inline.js";
import {read_picture} from "./pictures.js";

export class Composer {
  #form = document.getElementById("composer");
  #text = document.getElementById("question");
  #list = document.getElementById("pictures");
  #file = document.getElementById("file");
  #drop = document.getElementById("drop");
  #pictures = [];
  #say;

  // send(question) is called with what was made, and says whether it took it. say(words) tells what
  // went wrong.
  constructor({send, say}) {
    this.#say = say;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      const question = {text: this.#text.value.trim(), pictures: [...this.#pictures]};
      if (question.text === "" && question.pictures.length === 0) return this.focus();
      if (send(question)) this.fill({text: "", pictures: []});
    });
    this.#text.addEventListener("input", () => this.#fit());
    this.#text.addEventListener("keydown", (event) => {
      // Enter that ends the writing of a character belongs to the input method.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#form.requestSubmit();
    });
    document.getElementById("add-picture").addEventListener("click", () => this.#file.click());
    this.#file.addEventListener("change", () => {
      this.#add(this.#file.files);
      this.#file.value = "";  // so that the same file can be chosen again
    });
    this.#text.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length === 0) return;
      event.preventDefault();
      this.#add(event.clipboardData.files);
    });
    this.#take_drops();
  }

  // With a question that was made before.
  fill({text, pictures}) {
    this.#text.value = text;
    this.#pictures = [...pictures];
    this.#show_pictures();
    this.#fit();
  }

  focus() {
    this.#text.focus();
  }

  get is_empty() {
    return this.#text.value === "" && this.#pictures.length === 0;
  }

  #take_drops() {
    const has_files = (event) => event.dataTransfer?.types.includes("Files");
    let depth = 0;  // each element on the way is entered and left
    const show = (change) => {
      depth = Math.max(0, depth + change);
      this.#drop.hidden = depth === 0;
    };
    window.addEventListener("dragenter", (event) => { if (has_files(event)) show(1); });
    window.addEventListener("dragleave", (event) => { if (has_files(event)) show(-1); });
    window.addEventListener("dragover", (event) => { if (has_files(event)) event.preventDefault(); });
    window.addEventListener("drop", (event) => {
      if (!has_files(event)) return;
      event.preventDefault();
      show(-depth);
      this.#add(event.dataTransfer.files);
      this.focus();
    });
  }

  async #add(files) {
    this.#say("");
    for (const file of [...files]) {
      try {
        this.#pictures.push(await read_picture(file));
      } catch (error) {
        this.#say(error.message);
      }
    }
    this.#show_pictures();
  }

  #show_pictures() {
    this.#list.hidden = this.#pictures.length === 0;
    this.#list.replaceChildren(...this.#pictures.map((picture) => this.#thumbnail(picture)));
  }

  #thumbnail(picture) {
    const remove = element("button", "remove", "\u00d7");
    remove.type = "button";
    remove.setAttribute("aria-label", `Remove ${picture.name}`);
    remove.addEventListener("click", () => {
      this.#pictures = this.#pictures.filter((other) => other !== picture);
      this.#show_pictures();
      (this.#list.querySelector("button") ?? this.#text).focus();
    });
    return element("li", "thumbnail", picture_node(picture), remove);
  }

  // As high as its text, up to what the style sheet allows.
  #fit() {
    this.#text.style.height = "auto";
    this.#text.style.height = `${this.#text.scrollHeight}px`;
  }
}

export function picture_node({name, url}) {
  const out = element("img");
  out.src = url;
  out.alt = name;
  return out;
}
