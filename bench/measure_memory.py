"""How Drover reads long contexts, keeps them and goes on from them: a Markdown report.

    python measure_memory.py --drover BINARY --text FILE [--lengths LIST] [--models LIST] ...

script/measure-memory brings a text and runs this. For every model (SHAPE.TYPE, which
`drover bench --make` writes into --folder) and type of cache, every length is read in a process of
its own: seconds of reading, the largest resident memory, and the speed of the answer that follows.
At the last length the context is saved and restored: seconds until it is ready, and whether the
answer that follows has the same tokens.
"""

import argparse
import datetime
import json
import os
import platform
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--drover", type=Path, default=Path("build/release/drover"))
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--folder", type=Path, default=Path(".cache/bench"))
    parser.add_argument("--lengths", default="1M,2M,5M,10M,10485760")
    parser.add_argument("--models", default="memory.bf16,memory-8k.bf16")
    parser.add_argument("--cache-types", default="bf16,int8")
    parser.add_argument("--answer", type=int, default=64, help="tokens after each length")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-restore", action="store_true")
    options = parser.parse_args()
    lengths = [count(n) for n in options.lengths.split(",")]
    drover = Drover(options.drover, options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)

    version = subprocess.run([options.drover, "--version"], capture_output=True, text=True).stdout
    print("# Reading, keeping and restoring long contexts\n")
    print(f"{datetime.date.today()}, {machine()}, {options.threads} threads; {version.strip()}.")
    print("Made by `script/measure-memory`; what is measured stands at the head of")
    print("`bench/measure_memory.py`. All attention is exact.\n")
    for name in options.models.split(","):
        shape, kind = name.rsplit(".", 1)
        model = options.folder / f"{name}.gguf"
        if not model.exists():
            subprocess.run(
                [options.drover, "bench", "--make", shape, model, "--type", kind], check=True
            )
        for cache in options.cache_types.split(","):
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
                        f" {'the same' if same else 'DIFFERENT'}; peak {again['peak'] / 1e9:.2f} GB."
                    )
            print(flush=True)


if __name__ == "__main__":
    main()
