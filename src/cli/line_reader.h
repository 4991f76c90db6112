// Lines that a person types, with editing and a history that outlives the program; plain lines
// where standard input and output are not both a terminal.
//
// While a line is edited, Ctrl-C drops the line and not the program. One per program; it owns the
// terminal's settings while read() runs.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

namespace drover {

class LineReader {
 public:
  // `history` is the file to keep lines in, readable by its owner alone; empty: none is kept.
  explicit LineReader(std::filesystem::path history);
  ~LineReader();  // writes the history
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  enum class Result {
    kLine,     // `line` is the next line, without its end
    kDropped,  // Ctrl-C: what was typed is gone
    kEnd,      // Ctrl-D, or the end of the input
  };
  Result read(const char* prompt, std::string& line);

  bool terminal() const { return editor_ != nullptr; }

 private:
  struct Editor;
  std::unique_ptr<Editor> editor_;  // none without a terminal
};

// $XDG_STATE_HOME/drover/history, else ~/.local/state/drover/history; empty without either.
std::filesystem::path history_file();

}  // namespace drover
