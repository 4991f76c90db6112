#include "cli/line_reader.h"

#include <histedit.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <iostream>

#include "cli/command.h"

namespace drover {

namespace fs = std::filesystem;

// libedit's editor and history with their settings.
struct LineReader::Editor {
  explicit Editor(fs::path file)
      : editor(el_init("drover", stdin, stdout, stderr)),
        history(history_init()),
        history_path(std::move(file)) {
    HistEvent event;
    ::history(history, &event, H_SETSIZE, 1000);
    ::history(history, &event, H_SETUNIQUE, 1);
    if (!history_path.empty()) ::history(history, &event, H_LOAD, history_path.c_str());
    el_set(editor, EL_CLIENTDATA, this);
    el_set(editor, EL_PROMPT, &Editor::give_prompt);
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_SIGNAL, 1);  // a signal that ends us finds the terminal as it was
    el_set(editor, EL_HIST, ::history, history);
    // Ctrl-C comes as a key, not as a signal, so that it can drop the line alone.
    el_set(editor, EL_SETTY, "-d", "-isig", nullptr);
    el_set(editor, EL_ADDFN, "drop-line", "Drops the line", &Editor::drop_line);
    el_set(editor, EL_BIND, "^C", "drop-line", nullptr);
  }
  ~Editor() {
    el_end(editor);
    if (!history_path.empty()) {
      std::error_code ignored;  // a history that cannot be kept is no reason to fail
      fs::create_directories(history_path.parent_path(), ignored);
      const mode_t before = ::umask(077);
      HistEvent event;
      ::history(history, &event, H_SAVE, history_path.c_str());
      ::umask(before);
      ::chmod(history_path.c_str(), 0600);  // one that an older program made
    }
    history_end(history);
  }
  Editor(const Editor&) = delete;
  Editor& operator=(const Editor&) = delete;

  static Editor& of(EditLine* editor) {
    void* data = nullptr;
    el_get(editor, EL_CLIENTDATA, &data);
    return *static_cast<Editor*>(data);
  }
  static char* give_prompt(EditLine* editor) { return const_cast<char*>(of(editor).prompt); }
  static unsigned char drop_line(EditLine* editor, int) {
    of(editor).dropped = true;
    return CC_NEWLINE;
  }

  EditLine* editor;
  History* history;
  fs::path history_path;
  const char* prompt = "";
  bool dropped = false;
};

LineReader::LineReader(fs::path history) {
  if (::isatty(STDIN_FILENO) == 1 && ::isatty(STDOUT_FILENO) == 1) {
    editor_ = std::make_unique<Editor>(std::move(history));
  }
}

LineReader::~LineReader() = default;

LineReader::Result LineReader::read(const char* prompt, std::string& line) {
  if (!editor_) return std::getline(std::cin, line) ? Result::kLine : Result::kEnd;
  editor_->prompt = prompt;
  editor_->dropped = false;
  int length = 0;
  const char* text = el_gets(editor_->editor, &length);
  if (editor_->dropped) {
    print_out("^C\n");
    return Result::kDropped;
  }
  if (text == nullptr || length <= 0) {
    print_out("\n");
    return Result::kEnd;
  }
  line.assign(text, static_cast<size_t>(length));
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
  if (!line.empty()) {
    HistEvent event;
    history(editor_->history, &event, H_ENTER, line.c_str());
  }
  return Result::kLine;
}

fs::path history_file() {
  const char* state = std::getenv("XDG_STATE_HOME");
  if (state != nullptr && *state != '\0') return fs::path(state) / "drover" / "history";
  const char* home = std::getenv("HOME");
  if (home == nullptr || *home == '\0') return {};
  return fs::path(home) / ".local" / "state" / "drover" / "history";
}

}  // namespace drover
