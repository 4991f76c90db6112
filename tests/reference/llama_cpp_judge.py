"""llama.cpp's side of the comparison on SmolLM2-135M-Instruct, kept for compare_llama_cpp.py.

    python llama_cpp_judge.py MODEL FOLDER

Writes to FOLDER, for each of 20 prompts, llama.cpp's greedy answer and the logits behind every token
of it (llama_cpp_NN.npy, float32 [steps, vocab]); the same rows by llama4_numpy from the same weights,
unpacked, in float32 (exact_NN.npy): the arithmetic without shortcuts; and in judge.json the tokens,
what llama.cpp itself says on a second way (prompt and answer in one piece), and the perplexity of a
fixed text by both. Takes minutes and 400 MB.
"""

import argparse
import ctypes
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

import llama4_numpy

TEXT = Path(__file__).resolve().parent / "harbour.txt"  # written for this purpose
NEW_TOKENS = 64
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

    def __init__(self, model: Path, context: int, f32_cache: bool = False):
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
        if f32_cache:  # f16 is its default
            params.type_k = params.type_v = 0
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    judge(args.model, args.folder)


if __name__ == "__main__":
    main()
