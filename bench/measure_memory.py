"""How Drover reads long contexts, keeps them and goes on from them: a Markdown report.

    python measure_memory.py --drover BINARY --text FILE [--sections LIST] [--lengths LIST] ...

script/measure-memory brings a text and runs this. The sections:

lengths        For every model (SHAPE.TYPE, which `drover bench --make` writes into --folder) and type
               of cache, every length is read in a process of its own: seconds of reading, the largest
               resident memory, and the speed of the answer that follows. At the last length the
               context is saved and restored: seconds until it is ready, and whether the answer that
               follows has the same tokens.
conversations  What engine_bench prints: many short conversations beside a long prompt.
cap            Mixes of requests that want twice the memory that --cache-memory allows, each in a
               process of its own: how far the largest resident memory goes beyond that of the same
               process without them, as a fraction of the cap.
shortcuts      What long_context_test prints of 65,536 tokens, all types of weights.
kills          What context_file_crash_test prints of 1,000 kills while a file is written.
"""

import argparse
import datetime
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def count(text: str) -> int:
    """64K is 65,536 tokens, 10M ten million."""
    match = re.fullmatch(r"(\d+)([KM]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected a number of tokens, got {text!r}")
    return int(match[1]) * {"": 1, "K": 1024, "M": 1_000_000}[match[2]]


class Drover:
    def __init__(self, binary: Path, threads: int):
        self.binary, self.threads = binary, threads

    def run(self, *args, stdin=None):
        """What `drover run --json` says; with the process's wall seconds and peak memory."""
        command = [self.binary, "run", "--raw", "--json", "--temp", "0", "-t", self.threads, *args]
        start = time.monotonic()
        process = subprocess.Popen(
            [str(a) for a in command], stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out = process.stdout.read()
        error = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"drover failed: {error.decode(errors='replace')}")
        answer = json.loads(out)
        answer["wall"] = time.monotonic() - start
        answer["peak"] = usage.ru_maxrss * 1024
        return answer


def machine() -> str:
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def lengths(options, drover: Drover):
    lengths = [count(n) for n in options.lengths.split(",")]
    for name in options.models.split(","):
        model = made(options, name)
        for cache in options.cache_types.split(","):
            read_lengths(options, drover, name, model, cache, lengths)


def made(options, name: str) -> Path:
    shape, kind = name.rsplit(".", 1)
    model = options.folder / f"{name}.gguf"
    if not model.exists():
        make = [options.drover, "bench", "--make", shape, model, "--type", kind]
        subprocess.run(make, check=True)
    return model


def read_lengths(options, drover: Drover, name: str, model: Path, cache: str, lengths: list):
    print(f"## {name}, {cache} cache\n")
    print("| tokens | read, s | tokens/s | peak memory, GB | answer, tokens/s |")
    print("| ---: | ---: | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        context = Path(folder) / "context"
        for length in lengths:
            last = length == lengths[-1] and not options.no_restore
            asked = ["--cache-type", cache, "-c", min(length + 4096, 10485760)]
            more = ["--save-context", context] if last else []
            tokens = min(length, 10485760 - options.answer)
            asked += ["--max-tokens", options.answer, "--prompt-tokens", tokens]
            with options.text.open("rb") as text:
                fresh = drover.run(model, "-p", "-", *asked, *more, stdin=text)
            read = fresh["prompt_seconds"]
            rate = (fresh["answer_tokens"] - 1) / fresh["answer_seconds"]
            print(
                f"| {tokens:,} | {read:.1f} | {tokens / read:,.0f} |"
                f" {fresh['peak'] / 1e9:.2f} | {rate:.1f} |",
                flush=True,
            )
        if not options.no_restore:
            again = drover.run(model, "-p", "", "--context-file", context, *asked)
            same = again["tokens"] == fresh["tokens"]
            print(
                f"\nRestored {again['cached_tokens']:,} of {tokens:,} tokens from"
                f" {context.stat().st_size / 1e9:.2f} GB in {again['context_seconds']:.2f} s"
                f" (verified whole), first token after {again['prompt_seconds']:.2f} s more;"
                f" {len(again['tokens'])} tokens"
                f" {'the same' if same else 'DIFFERENT'}; peak {again['peak'] / 1e9:.2f} GB.\n",
                flush=True,
            )


def output_of(command: list, **environment) -> str:
    done = subprocess.run(
        [str(a) for a in command],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed: {done.stdout}{done.stderr}")
    return done.stdout


def lines_with(text: str, pattern: str) -> str:
    return "\n".join(line for line in text.splitlines() if re.search(pattern, line))


def conversations(options, drover: Drover):
    bench = options.drover.parent / "src/engine/engine_bench"
    print("## Many conversations\n")
    print("32 conversations of 64 tokens and 256 answered ones (`engine_bench`).\n")
    print(output_of([bench, made(options, "memory.bf16"), "--threads", options.threads]))


BATCH_REQUEST = {"temperature": 0, "max_tokens": 32}


def batch_peak(options, drover: Drover, model: Path, prompts: list, cap: int) -> int:
    """The largest resident memory of a process that answers these prompts under a cap, in bytes."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        asked, answers = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        with asked.open("w") as out:
            for i, prompt in enumerate(prompts):
                body = {"prompt": prompt, **BATCH_REQUEST}
                request = {"custom_id": str(i), "method": "POST", "url": "/v1/completions"}
                out.write(json.dumps({**request, "body": body}) + "\n")
        command = [drover.binary, "batch", model, asked, answers, "-t", drover.threads]
        command += ["--cache-memory", cap]
        process = subprocess.Popen([str(a) for a in command], stderr=subprocess.PIPE)
        error = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        lines = [json.loads(line) for line in answers.open()]
        whole = [line for line in lines if line["response"]["status_code"] == 200]
        if status != 0 or len(whole) != len(prompts):
            sys.exit(f"drover batch failed: {error.decode(errors='replace')}")
        return usage.ru_maxrss * 1024


def cap(options, drover: Drover):
    fetch = Path(__file__).parent.parent / "script/fetch-smollm2"
    model = Path(output_of([fetch]).strip())
    layers, kv_heads, head_dim, page_tokens = 30, 3, 64, 256
    page = page_tokens * 2 * kv_heads * head_dim * 2  # bytes of one layer: keys and values, bf16
    pages_of = lambda tokens: layers * -(-tokens // page_tokens)
    rng = random.Random(1)
    text = lambda n: [rng.randrange(17, 49000) for _ in range(n)]
    # As many tokens as are computed together, and as many answers as are written together.
    lengths = [2048] + [64] * 63
    pages = sum(pages_of(n + BATCH_REQUEST["max_tokens"]) for n in lengths)
    alone = batch_peak(options, drover, model, [text(n) for n in lengths], 1 << 30) - pages * page
    beyond = []
    for _ in range(options.mixes):
        cap = rng.randrange(64, 193) << 20
        tokens = cap // page // layers * page_tokens  # as many fit
        parts = [rng.random() + 0.1 for _ in range(rng.randrange(2, 65))]
        lengths = [max(1, min(tokens // 2, int(2 * tokens * p / sum(parts)))) for p in parts]
        peak = batch_peak(options, drover, model, [text(n) for n in lengths], cap)
        beyond.append((peak - alone) / cap)
    print("## Under a cap\n")
    print(
        f"{options.mixes} mixes of 2 to 64 prompts for SmolLM2 under `--cache-memory` of 64 to 192"
        f" MB, which want up to twice as much; all were answered. Without pages the process has"
        f" {alone / 1e6:.0f} MB; with them the largest resident memory was that and"
        f" {min(beyond):.1%} to {max(beyond):.1%} of the cap.\n",
        flush=True,
    )


def shortcuts(options, drover: Drover):
    test = options.drover.parent / "tests/long_context_test"
    print("## The shortcuts\n")
    print(f"`DROVER_LONG=1 {test.name}` (65,536 tokens):\n\n```")
    print(lines_with(output_of([test], DROVER_LONG="1"), r"OK \]|modulo") + "\n```\n", flush=True)


def kills(options, drover: Drover):
    test = options.drover.parent / "src/cache/context_file_crash_test"
    print("## Kills while a context file is written\n")
    print(f"`DROVER_KILLS=1000 {test.name} --gtest_filter=*Killed*`:\n\n```")
    out = output_of([test, "--gtest_filter=*Killed*"], DROVER_KILLS="1000")
    print(lines_with(out, r"OK \]|kills") + "\n```\n", flush=True)


SECTIONS = [lengths, conversations, cap, shortcuts, kills]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--drover", type=Path, default=Path("build/release/drover"))
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path(".cache/bench"))
    parser.add_argument("--sections", default=",".join(s.__name__ for s in SECTIONS))
    parser.add_argument("--lengths", default="1M,2M,5M,10M,10485760")
    parser.add_argument("--models", default="memory.bf16,memory-8k.bf16")
    parser.add_argument("--cache-types", default="bf16,int8")
    parser.add_argument("--answer", type=int, default=64, help="tokens after each length")
    parser.add_argument("--mixes", type=int, default=50, help="under a cap")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-restore", action="store_true")
    options = parser.parse_args()
    named = {s.__name__: s for s in SECTIONS}
    for name in options.sections.split(","):
        if name not in named:
            parser.error(f"section {name!r}: expected one of {', '.join(named)}")
    options.folder.mkdir(parents=True, exist_ok=True)

    version = subprocess.run([options.drover, "--version"], capture_output=True, text=True).stdout
    print("# Reading, keeping and restoring long contexts\n")
    print(f"{datetime.date.today()}, {machine()}, {options.threads} threads; {version.strip()}.")
    print("Made by `script/measure-memory`; what is measured stands at the head of")
    print("`bench/measure_memory.py`. All attention is exact.\n", flush=True)
    for name in options.sections.split(","):
        named[name](options, Drover(options.drover, options.threads))


if __name__ == "__main__":
    main()
