"""SmolLM2-135M-Instruct, the same GGUF file, by llama.cpp and by Drover.

    python compare_llama_cpp.py judge MODEL FOLDER             llama.cpp's side, kept in FOLDER
    python compare_llama_cpp.py report MODEL FOLDER DROVER     runs Drover, prints a Markdown report

script/compare-llama-cpp runs both in an environment of its own.

The comparison is exact, not statistical. llama.cpp answers 20 prompts greedily; Drover is then led
along llama.cpp's own tokens (`score`, one call per prompt), so one early difference cannot hide the
rest, and at every step the two best tokens are compared.

Both programs round activations to 8 bits on the way, so two tokens that are nearly equal may swap.
How near is not left to taste: a third judge computes the same rows from the same weights, unpacked,
in float32 (llama4_numpy). Let s be the standard deviation, over the vocabulary, of llama.cpp's error
against it at a step: the difference of two logits of one program is then off by 1.4 s, and two
programs' differences part by 2 s. A divergence is explained if llama.cpp's gap between the two tokens
is within three of those, 6 s. To keep that from excusing a sloppy Drover, Drover's own error over all
steps may be at most 1.5 times llama.cpp's.

Exit status of `report`: 0 when every divergence is explained, the error is in bounds, and the
perplexity of the fixed text is within 0.5 % of llama.cpp's; 1 when not; 2 when something could not
be run.
"""

import argparse
import ctypes
import datetime
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
TEXT = HERE / "harbour.txt"
NEW_TOKENS = 64
PERPLEXITY_TOLERANCE = 0.005
ERROR_RATIO = 1.5
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

PROMPTS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Explain in simple words why the sky is blue.",
    "List three uses for an empty jar.",
    "What is 17 + 25?",
    "Write a Python function that returns the largest number in a list.",
    "Who wrote Pride and Prejudice?",
    "Translate to French: The cat sleeps on the chair.",
    "Give me a recipe for pancakes.",
    "Tell me a short story about a lighthouse keeper and a gull.",
    "What is the difference between a list and a tuple in Python?",
    "Rewrite politely: Send me the report now.",
    "Name the planets of the solar system in order.",
    "How many legs do three spiders have together?",
    "Summarise: A river rose in the hills, crossed the plain, and reached the sea after ninety miles.",
    "Finish the poem:\nRoses are red,\nviolets are blue,",
    'What does this JSON describe? {"name": "Ada", "born": 1815, "field": "mathematics"}',
    "¿Cómo se dice «good morning» en español?",
    "Why do cats purr? 🐱 Answer in two sentences.",
    "I have a job interview tomorrow and I am nervous. What should I do tonight?",
]


def chat(prompt: str) -> str:
    """The model's own ChatML template, with its default system message."""
    return (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    )


# ---------------------------------------------------------------------------------------------------
# The two judges.


class LlamaCpp:
    """llama.cpp through its C interface: tokens in, float32 logits out."""

    def __init__(self, model: Path, context: int):
        import llama_cpp

        self.api, self.context = llama_cpp, context
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)  # kept: C calls it
        llama_cpp.llama_log_set(self.quiet, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            str(model).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
        params.n_threads = params.n_threads_batch = 2
        self.handle = llama_cpp.llama_init_from_model(self.model, params)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.used = 0

    def tokenize(self, text: str, special: bool) -> list[int]:
        raw = text.encode()
        ids = (self.api.llama_token * (len(raw) + 8))()
        n = self.api.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), False, special)
        return list(ids[:n])

    def forget(self):
        self.api.llama_memory_clear(self.api.llama_get_memory(self.handle), True)
        self.used = 0

    def read(self, tokens) -> np.ndarray:
        """Appends at most 512 tokens to the conversation. Returns their logits [tokens, vocab]."""
        assert len(tokens) <= 512 and self.used + len(tokens) <= self.context
        for i, token in enumerate(tokens):
            self.batch.token[i] = token
            self.batch.pos[i] = self.used + i
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = 0
            self.batch.logits[i] = True
        self.batch.n_tokens = len(tokens)
        if self.api.llama_decode(self.handle, self.batch) != 0:
            raise RuntimeError("llama_decode failed")
        self.used += len(tokens)
        rows = ctypes.cast(self.api.llama_get_logits(self.handle), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(rows, shape=(len(tokens), self.size)).copy()

    def greedy(self, prompt: list[int]) -> tuple[list[int], np.ndarray]:
        """Up to NEW_TOKENS tokens, the end-of-generation token included, and the row of each."""
        self.forget()
        answer, rows = [], [self.read(prompt)[-1]]
        while True:
            answer.append(int(rows[-1].argmax()))
            ended = self.api.llama_vocab_is_eog(self.vocab, answer[-1])
            if ended or len(answer) == NEW_TOKENS:
                return answer, np.stack(rows)
            rows.append(self.read(answer[-1:])[0])


def exact_model(path: Path):
    """The file's weights unpacked to float32, in llama4_numpy: the arithmetic without shortcuts."""
    import gguf

    import llama4_numpy

    names = {
        "token_embd.weight": "embed_tokens.weight",
        "output_norm.weight": "norm.weight",
        "output.weight": "lm_head.weight",
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "feed_forward.gate_proj",
        "ffn_up": "feed_forward.up_proj",
        "ffn_down": "feed_forward.down_proj",
    }
    reader = gguf.GGUFReader(path)
    key = lambda name: reader.fields[f"llama.{name}"].contents()
    weights = {}
    for tensor in reader.tensors:
        name = names.get(tensor.name)
        if name is None:
            _, layer, part, suffix = tensor.name.split(".")
            name = f"layers.{layer}.{names[part]}.{suffix}"
        weights[name] = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    layers = key("block_count")
    config = llama4_numpy.Config(
        heads=key("attention.head_count"),
        kv_heads=key("attention.head_count_kv"),
        head_dim=key("rope.dimension_count"),
        eps=key("attention.layer_norm_rms_epsilon"),
        rope_theta=key("rope.freq_base"),
        rope_scaling=None,
        half_split=False,  # GGUF holds the rows of Wq and Wk of a `llama` in pair order
        rope=[True] * layers,
        chunked=[False] * layers,
        moe=[False] * layers,
        chunk=None,
        qk_norm=False,
        temperature=False,
        floor_scale=1,
        attn_scale=0,
        top_k=1,
    )
    return llama4_numpy.Model(config, weights)


def log_likelihoods(rows: np.ndarray, targets) -> np.ndarray:
    """Natural logarithm of the probability that each row gives its target, in float64."""
    rows = rows.astype(np.float64)
    top = rows.max(axis=1)
    total = np.log(np.exp(rows - top[:, None]).sum(axis=1)) + top
    return rows[np.arange(len(targets)), targets] - total


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def judge(model: Path, folder: Path):
    import llama_cpp

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judge.json").unlink(missing_ok=True)
    theirs = LlamaCpp(model, context=8192)
    exact = exact_model(model)
    answers = []
    for i, prompt in enumerate(PROMPTS):
        tokens = theirs.tokenize(chat(prompt), special=True)
        answer, rows = theirs.greedy(tokens)
        np.save(folder / f"llama_cpp_{i:02}.npy", rows)
        truth = exact.logits(tokens + answer[:-1])[len(tokens) - 1 :]
        np.save(folder / f"exact_{i:02}.npy", truth.astype(np.float32))
        theirs.forget()
        together = theirs.read(tokens + answer[:-1])[len(tokens) - 1 :]
        best = np.sort(rows, axis=1)
        answers.append(
            {
                "prompt": prompt,
                "tokens": tokens,
                "answer": answer,
                "gaps": [round(float(g), 4) for g in best[:, -1] - best[:, -2]],
                "noise": [round(float(n), 4) for n in (rows - truth).std(axis=1)],
                "exact_differs": int((truth.argmax(axis=1) != answer).sum()),
                "together_differs": int((together.argmax(axis=1) != answer).sum()),
            }
        )
        print(f"{i + 1}/{len(PROMPTS)}: {len(tokens)} + {len(answer)} tokens", file=sys.stderr)

    text = theirs.tokenize(TEXT.read_text(), special=False)
    theirs.forget()
    likelihoods = []
    for start in range(0, len(text), 512):
        piece = text[start : start + 512]
        rows = theirs.read(piece)
        targets = text[start + 1 : start + len(piece) + 1]
        likelihoods.append(log_likelihoods(rows[: len(targets)], targets))
    exact_rows = exact.logits(text)[:-1]
    pieces = range(0, len(exact_rows), 512)
    exact_likelihoods = [
        log_likelihoods(exact_rows[s : s + 512], text[s + 1 : s + 513]) for s in pieces
    ]
    result = {
        "llama_cpp_python": llama_cpp.__version__,
        "system_info": theirs.api.llama_print_system_info().decode().strip(" |"),
        "model_sha256": sha256(model),
        "answers": answers,
        "text": {
            "tokens": text,
            "perplexity": float(np.exp(-np.concatenate(likelihoods).mean())),
            "exact_perplexity": float(np.exp(-np.concatenate(exact_likelihoods).mean())),
        },
    }
    (folder / "judge.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")


# ---------------------------------------------------------------------------------------------------
# Drover's side and the report.


class Failure(Exception):
    """Drover could not be run or said something unreadable."""


def drover(binary: Path, *arguments) -> str:
    command = [str(binary), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        shown = " ".join(command[:4])
        raise Failure(f"`{shown} ...` exits {done.returncode}: {done.stderr.strip()[-400:]}")
    return done.stdout


def drover_json(binary: Path, *arguments) -> dict:
    out = drover(binary, *arguments)
    try:
        return json.loads(out)
    except json.JSONDecodeError as error:
        raise Failure(f"`drover {arguments[0]} --json`: {error}; got {out[:200]!r}") from error


def drover_logits(binary: Path, model: Path, tokens: list[int], vocab: int) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "logits.npy"
        drover(binary, "score", model, "--tokens", ",".join(map(str, tokens)), "--logits", path)
        rows = np.load(path)
    if rows.dtype != np.float32 or rows.shape != (len(tokens), vocab):
        raise Failure(f"`score --logits`: {rows.dtype} {rows.shape}, not {(len(tokens), vocab)}")
    return rows


def machine() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


def code(piece: str) -> str:
    return "`" + json.dumps(piece, ensure_ascii=False).replace("|", "\\|") + "`"


def compare_steps(folder: Path, binary: Path, model: Path, judged: dict):
    """Per prompt: steps, agreements, divergences; and the errors of both against the exact rows."""
    prompts, errors = [], {"Drover": [], "llama.cpp": [], "Drover against llama.cpp": []}
    for i, answer in enumerate(judged["answers"]):
        theirs = np.load(folder / f"llama_cpp_{i:02}.npy")
        exact = np.load(folder / f"exact_{i:02}.npy")
        given, chosen = answer["tokens"], answer["answer"]
        rows = drover_logits(binary, model, given + chosen[:-1], theirs.shape[1])[len(given) - 1 :]
        errors["Drover"].append(rows - exact)
        errors["llama.cpp"].append(theirs - exact)
        errors["Drover against llama.cpp"].append(rows - theirs)
        divergences = []
        for step, token in enumerate(chosen):
            ours = int(rows[step].argmax())
            if ours == token:
                continue
            gap = float(theirs[step, token] - theirs[step, ours])
            noise = 6 * float((theirs[step] - exact[step]).std())
            divergences.append(
                {
                    "step": step,
                    "theirs": token,
                    "ours": ours,
                    "exact": int(exact[step].argmax()),
                    "their_gap": gap,
                    "our_gap": float(rows[step, ours] - rows[step, token]),
                    "noise": noise,
                    "explained": gap <= noise,
                }
            )
        prompts.append(
            {"prompt": answer["prompt"], "steps": len(chosen), "divergences": divergences}
        )
    return prompts, errors


def free_run(binary: Path, model: Path, judged: dict, texts: list[str]) -> list[tuple[str, str]]:
    """Drover answers by itself, own template and tokenizer. Returns (llama.cpp's text, Drover's)."""
    pairs = []
    for answer in judged["answers"]:
        options = ["--temp", 0, "--max-tokens", NEW_TOKENS, "--json"]
        said = drover_json(binary, "run", model, answer["prompt"], "--system", SYSTEM, *options)
        if not isinstance(said.get("text"), str):
            raise Failure(f"`run --json` has no text: {list(said)}")
        pairs.append((decode(answer["answer"], texts), said["text"]))
    return pairs


def decode(ids: list[int], raw_tokens: list[str]) -> str:
    """Text of the ids: GPT-2's byte letters back to bytes; control tokens left out."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(b): b for b in plain}
    letters.update({chr(256 + n): b for n, b in enumerate(sorted(set(range(256)) - set(plain)))})
    data = bytearray()
    for i in ids:
        if not (raw_tokens[i].startswith("<|") and raw_tokens[i].endswith("|>")):
            data += bytes(letters[c] for c in raw_tokens[i])
    return data.decode(errors="replace")


def report(model: Path, folder: Path, binary: Path) -> int:
    import gguf

    judged = json.loads((folder / "judge.json").read_text())
    if judged["model_sha256"] != sha256(model):
        raise Failure(f"{folder}/judge.json is about another model file; run `judge` again")
    raw_tokens = gguf.GGUFReader(model).fields["tokenizer.ggml.tokens"].contents()
    shown = lambda i: code(decode([i], raw_tokens) or raw_tokens[i])

    prompts, errors = compare_steps(folder, binary, model, judged)
    pairs = free_run(binary, model, judged, raw_tokens)
    scored = drover_json(binary, "score", model, "--text", TEXT, "--json")
    ours, theirs = scored["perplexity"], judged["text"]["perplexity"]
    exact = judged["text"]["exact_perplexity"]
    off = ours / theirs - 1

    steps = sum(p["steps"] for p in prompts)
    diverged = [(n, d) for n, p in enumerate(prompts, 1) for d in p["divergences"]]
    unexplained = sum(not d["explained"] for _, d in diverged)
    texts_equal = sum(a == b for a, b in pairs)
    spread = {
        name: np.concatenate([e.std(axis=1) for e in parts]) for name, parts in errors.items()
    }
    ratio = spread["Drover"].mean() / spread["llama.cpp"].mean()
    passed = unexplained == 0 and abs(off) <= PERPLEXITY_TOLERANCE and ratio <= ERROR_RATIO

    version = drover(binary, "--version").strip()
    print("# SmolLM2-135M-Instruct: Drover against llama.cpp\n")
    print(f"{'Passed' if passed else 'FAILED'}. {datetime.date.today()}, {machine()}.")
    print(f"{version}; llama-cpp-python {judged['llama_cpp_python']} built from source")
    print(f"({judged['system_info']}).")
    print(f"Model file SHA-256 `{judged['model_sha256']}`.")
    print("Made by `script/compare-llama-cpp`; what the words mean stands at the head of")
    print("`tests/reference/compare_llama_cpp.py`.\n")

    print("## Greedy tokens\n")
    print(
        f"{len(prompts)} prompts, {steps} steps along llama.cpp's own answers: the best token is the"
    )
    print(
        f"same at {steps - len(diverged)}; of {len(diverged)} divergences {unexplained} are unexplained."
    )
    print(f"Left to itself, Drover gives the same text for {texts_equal} of {len(pairs)} prompts.")
    exact_differs = sum(a["exact_differs"] for a in judged["answers"])
    together_differs = sum(a["together_differs"] for a in judged["answers"])
    print(
        f"For scale: exact arithmetic would choose otherwise at {exact_differs} steps, and llama.cpp"
    )
    print(f"itself at {together_differs} when it reads prompt and answer in one piece.\n")
    print("| # | prompt | steps | divergences | own answer |\n| --- | --- | --- | --- | --- |")
    for n, (p, (a, b)) in enumerate(zip(prompts, pairs), 1):
        same = next((k for k in range(min(len(a), len(b))) if a[k] != b[k]), min(len(a), len(b)))
        own = "equal" if a == b else f"equal for {same} characters"
        print(f"| {n} | {code(p['prompt'])} | {p['steps']} | {len(p['divergences'])} | {own} |")
    if diverged:
        print(
            "\nEvery divergence. Gap: by how much each program prefers its own token to the other's;"
        )
        print("noise: six standard deviations of llama.cpp's error at that step; exact: what the")
        print("unpacked weights in float32 prefer.\n")
        print("| # | step | llama.cpp | gap | Drover | gap | exact | noise | verdict |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for n, d in diverged:
            verdict = "explained" if d["explained"] else "UNEXPLAINED"
            print(
                f"| {n} | {d['step']} | {shown(d['theirs'])} | {d['their_gap']:.4f} "
                f"| {shown(d['ours'])} | {d['our_gap']:.4f} | {shown(d['exact'])} "
                f"| {d['noise']:.4f} | {verdict} |"
            )

    print("\n## Logits\n")
    print(
        "Differences over all steps and the whole vocabulary. Exact is the same weights, unpacked,"
    )
    print("in float32.\n")
    print(
        "Spread: the standard deviation over the vocabulary, which a common shift does not enter.\n"
    )
    print("| pair | mean spread | largest spread | largest difference |")
    print("| --- | --- | --- | --- |")
    for name, parts in errors.items():
        label = name if " against " in name else f"{name} against exact"
        largest = max(np.abs(e).max() for e in parts)
        print(f"| {label} | {spread[name].mean():.4f} | {spread[name].max():.4f} | {largest:.4f} |")
    print(f"\nDrover's mean spread is {ratio:.2f} times llama.cpp's (allowed: {ERROR_RATIO}).")

    print("\n## Perplexity\n")
    print(
        f"`tests/reference/{TEXT.name}`, {len(judged['text']['tokens'])} tokens in one context, no BOS,"
    )
    print("every token after the first scored.\n")
    print("| program | perplexity | against llama.cpp |\n| --- | --- | --- |")
    print(f"| llama.cpp | {theirs:.4f} | |")
    print(f"| Drover ({scored.get('tokens')} tokens) | {ours:.4f} | {off:+.3%} |")
    print(f"| exact | {exact:.4f} | {exact / theirs - 1:+.3%} |")
    return 0 if passed else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("judge", "report"):
        command = commands.add_parser(name)
        command.add_argument("model", type=Path)
        command.add_argument("folder", type=Path)
        if name == "report":
            command.add_argument("drover", type=Path)
    args = parser.parse_args()
    if args.command == "judge":
        judge(args.model, args.folder)
        return 0
    try:
        return report(args.model, args.folder, args.drover.resolve())
    except (Failure, OSError) as error:
        print(f"compare_llama_cpp: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
