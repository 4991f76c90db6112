#include "cli/manual.h"

namespace drover {
namespace {

const std::vector<ManualText>& texts() {
  static const std::vector<ManualText> kTexts = {
      {"drover",
       "drover runs, serves, checks, measures and teaches models of the Llama 4 family, mixtures of experts "
       "that read text and pictures, and their dense relatives, on CPUs.\n\n"
       "MODEL is a GGUF file, a Hugging Face folder, or the name of a model in the local model "
       "folder.",
       {{"Ask a model something:", "drover run MODEL \"Why is the sky blue?\""},
        {"Serve it to applications:", "drover serve MODEL"},
        {"See whether it fits this machine:", "drover plan MODEL --context 1M"}}},
      {"run",
       "Reads a prompt, with pictures where the model has eyes, and writes the answer to standard "
       "output as it comes; a line about speed goes to standard error. The prompt is the text "
       "after "
       "MODEL, or what comes on standard input.\n\n"
       "With --save-context what was read is kept in a file, and --context-file goes on from there "
       "without reading it again.",
       {{"Ask about a picture:", "drover run MODEL \"What does the sign say?\" --image sign.jpg"},
        {"Read a book once, ask about it later:",
         "drover run MODEL - --save-context book.context < book.txt"},
        {"", "drover run MODEL \"Who did it?\" --context-file book.context"}}},
      {"chat",
       "Talks with a model, turn by turn. Lines are edited as in a shell; /help lists what can be "
       "typed besides words. Ctrl-C stops an answer, Ctrl-D ends the conversation.",
       {{"Talk:", "drover chat MODEL --system \"You answer in one sentence.\""}}},
      {"serve",
       "Answers the OpenAI API on one model over HTTP, by default on http://127.0.0.1:8080 for "
       "this "
       "machine alone. Requests of many clients are computed together, and none changes another's "
       "answer. GET /health gives 200 once the model is there, and 503 before that and while the "
       "server ends; GET /metrics is for Prometheus.\n\n"
       "SIGTERM and Ctrl-C drain: nothing new is taken, and what is in hand has --drain-seconds to "
       "end. A second signal ends at once. Under systemd the server says when it is ready.\n\n"
       "As a service it reads /etc/drover/drover.toml; see FILES.",
       {{"Serve this machine:", "drover serve MODEL"},
        {"Serve a network, with keys and TLS:",
         "drover serve MODEL --host 0.0.0.0 --api-key-file keys --tls-cert cert.pem --tls-key "
         "key.pem"},
        {"With settings from a file:", "drover serve --config drover.toml"}}},
      {"batch",
       "Answers a file of requests in the form of OpenAI's batch API, one JSON object a line, and "
       "writes each answer as it is done. Started again on the same files, it goes on with those "
       "that have no answer yet.",
       {{"Answer overnight:", "drover batch MODEL requests.jsonl answers.jsonl --parallel 16"}}},
      {"inspect",
       "Shows what is in a model file: its shape, types, tokenizer, chat format and licence. With "
       "--image it shows instead what a model sees of a picture: canvas, tiles and tokens.",
       {{"Look into a file:", "drover inspect MODEL"},
        {"See a picture as the model does:", "drover inspect --image sign.jpg --tiles tiles"}}},
      {"tokenize",
       "Shows the tokens of a text in the model's vocabulary.",
       {{"Count them:", "drover tokenize MODEL --count - < book.txt"}}},
      {"detokenize",
       "Shows the text of tokens, given as numbers.",
       {{"Back to text:", "drover detokenize MODEL 791 9180 382"}}},
      {"tokenizer",
       "Makes a vocabulary of one's own: `drover tokenizer train` counts the words of texts and "
       "joins "
       "what stands together most often, from bytes up, until there are as many tokens as asked "
       "for "
       "(byte-level BPE). The same texts give the same vocabulary on every machine. The file is "
       "read "
       "by Drover and by the tokenizers library of Hugging Face.",
       {{"4,096 tokens for a small model:",
         "drover tokenizer train books/*.txt --vocab 4096 --out tokenizer.json"},
        {"See what becomes of a text:", "drover tokenize tokenizer.json \"Hello there\" --json"}}},
      {"score",
       "Measures how well a model predicts a text, as perplexity; or writes the logits after given "
       "tokens; or finds out how much each input of its matrices matters, for drover-quantize(1).",
       {{"Perplexity:", "drover score MODEL --text book.txt"},
        {"Logits:", "drover score MODEL --tokens 1,2,3 --logits out.npy"}}},
      {"convert",
       "Writes a Hugging Face folder as one GGUF file, which is mapped and used where it lies.",
       {{"Convert, to 8 bits on the way:", "drover convert FOLDER out.gguf --type q8_0"}}},
      {"quantize",
       "Writes a model as one GGUF file with smaller weights.",
       {{"Four bits and a half a weight:", "drover quantize MODEL out.gguf --type q4_k_m"},
        {"With less loss:",
         "drover score MODEL --text sample.txt --importance sample.importance && drover quantize "
         "MODEL out.gguf --type q4_k_m --importance sample.importance"}}},
      {"bench",
       "Measures how fast a model reads prompts and writes answers on this machine, and how fast "
       "the machine's memory and arithmetic would allow.",
       {{"Measure:", "drover bench MODEL"},
        {"Compare two in alternating runs:", "drover bench --compare A.gguf B.gguf"}}},
      {"plan",
       "Tells what memory a model needs and how long prompts and answers take, before anything is "
       "loaded, and what to change if it does not fit. A config.json is enough.",
       {{"Ask before downloading:",
         "drover plan config.json --type q4_k_m --context 1M "
         "--memory 64G"}}},
      {"needle",
       "Hides facts in texts of given lengths, asks for them, and reports how many come back: how "
       "far a model's memory can be trusted. The recall map it writes lets drover-run(1) and "
       "drover-serve(1) warn of longer prompts.",
       {{"Draw a map:", "drover needle MODEL --lengths 8K,128K,1M --svg map.svg"},
        {"Ask a server instead:",
         "drover needle NAME --endpoint http://host:8000/v1 --lengths 8K,32K"}}},
      {"train",
       "Teaches a model by a recipe: from nothing, or from a model that is there. It says first what "
       "it teaches, then how it goes, and writes to the recipe's folder: metrics.jsonl with a line "
       "for every step, loss.svg, checkpoints, and at the end the model as a GGUF file and as a "
       "Hugging Face folder.\n\n"
       "Ctrl-C and SIGTERM stop it with a checkpoint; a second signal ends it at once. With --resume "
       "it goes on, and its losses are those of a training that was never stopped, to the bit.",
       {{"Teach:", "drover train recipe.json"},
        {"Go on after a stop, however it came:", "drover train recipe.json --resume"}}},
      {"tune",
       "Teaches a model that is there from conversations. What is learnt are the assistant's turns; "
       "a part of the conversations is held out, and asked about on the way.",
       {{"Teach a model your answers:", "drover tune MODEL conversations.jsonl --out tuned"},
        {"Leave most of it as it is:",
         "drover tune MODEL conversations.jsonl --out tuned --freeze 'token_embd*' --freeze "
         "'blk.[0-9].*'"}}},
      {"man",
       "Prints a manual page in roff: of the program, or of one of its commands.",
       {{"Read one that is not installed:", "drover man serve | man -l -"}}},
      {"completion",
       "Prints a script that teaches a shell to complete commands, flags and their values.",
       {{"In bash, for this session:", "source <(drover completion bash)"},
        {"In fish, for good:", "drover completion fish > ~/.config/fish/completions/drover.fish"}}},
  };
  return kTexts;
}

}  // namespace

const ManualText* manual_text(std::string_view name) {
  for (const ManualText& text : texts()) {
    if (text.name == name) return &text;
  }
  return nullptr;
}

}  // namespace drover
