"""The speed of Drover and of llama.cpp on the same files, in turn, in one run: a Markdown report.

    python compare.py --drover BINARY [--models LIST] [--tests LIST] [--pairs N] [--json OUT]

script/compare-speed finds a Python that has llama.cpp and runs this.

A model is a GGUF file, or SHAPE.TYPE (edge-moe.q4_0), which `drover bench --make` writes into
--folder. A test is ppN (a prompt of N tokens) or tgN (N generated tokens), then xP for P sequences
at once and @D for a context of D tokens before: pp512, tg128, tg128x16, tg128@4096.

Both programs load the file once per test, map it, fill their caches to the depth and run the test
once to warm up; llama.cpp with 12,288 tokens where a prompt has more. Then they take turns: Drover,
llama.cpp, Drover, ... What slows the machine down meets both. A ratio is the median of the pairs'
ratios, its spread is (largest - smallest) / median.

llama.cpp has flash attention, batches as long as the prompt, and whatever of its settings is faster
for the model and the test: micro-batches of 512 or 2048 tokens, a full cache for chunked layers or
not; for prompts beyond 12,288 tokens, what is faster at so many. Its threads are as many as Drover's.
"""

import argparse
import ctypes
import datetime
import fnmatch
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

MODELS = (
    "edge-moe.q4_0,edge-moe.q4_k_m,edge-moe.q8_0,edge-moe.bf16,"
    "edge-dense.q4_0,edge-dense.q8_0,edge-dense.bf16"
)
TESTS = "pp512,pp2048,tg128"
FLAGS = "avx2 avx_vnni avx512f avx512_vnni avx512_bf16 amx_int8 amx_bf16".split()
SEED = 1
LONGEST_TRIAL = 12288


class Failure(Exception):
    """Something that stops the comparison, in a sentence."""


class Test:
    def __init__(self, text: str):
        match = re.fullmatch(r"(pp|tg)(\d+)(?:x(\d+))?(?:@(\d+))?", text)
        if not match:
            raise Failure(f"test {text!r}: expected ppN or tgN, then xP and @D as wanted")
        self.text, self.kind = text, match[1]
        self.tokens = int(match[2])
        self.parallel = int(match[3] or 1)
        self.depth = int(match[4] or 0)
        if self.tokens < 1 or self.parallel < 1 or (self.kind == "pp" and self.parallel > 1):
            raise Failure(f"test {text!r}: expected at least 1 token, and x only with tg")

    @property
    def total(self) -> int:
        return self.tokens * self.parallel


# ---------------------------------------------------------------------------------------------------
# llama.cpp's side, in a process of its own: it reads a test, says the seconds of a run per line.


class LlamaCpp:
    def __init__(self, model: str, threads: int):
        import llama_cpp

        self.api, self.threads, self.handle = llama_cpp, threads, None
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)  # kept: C calls it
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            model.encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise Failure(f"llama.cpp cannot load {model}")
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab = llama_cpp.llama_vocab_n_tokens(vocab)

    def token(self, sequence: int, position: int) -> int:
        """Any that differ will do; a small multiplicative hash."""
        return ((sequence * 7919 + position + SEED) * 2654435761 >> 7) % self.vocab

    def open(self, test: Test, micro_batch: int, full_cache: bool):
        """A context for the test, its caches filled to the depth."""
        self.close()
        params = self.api.llama_context_default_params()
        params.n_ctx = (test.depth + test.tokens + 256) * test.parallel
        params.n_seq_max = test.parallel
        params.n_batch = max(test.total, test.depth, micro_batch)
        params.n_ubatch = micro_batch
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = 1  # LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.swa_full = full_cache
        self.handle = self.api.llama_init_from_model(self.model, params)
        if not self.handle:
            raise Failure("llama.cpp cannot make a context")
        self.memory = self.api.llama_get_memory(self.handle)
        for sequence in range(test.parallel):
            self.prompt(sequence, 0, test.depth)
        self.api.llama_synchronize(self.handle)

    def close(self):
        if self.handle:
            self.api.llama_free(self.handle)
        self.handle = None

    def decode(self, batch):
        if self.api.llama_decode(self.handle, batch) != 0:
            raise Failure("llama_decode failed")

    def prompt(self, sequence: int, first: int, count: int):
        """Logits for the last token only."""
        if count == 0:
            return
        batch = self.filled(
            [(sequence, first + i, i == count - 1) for i in range(count)]
        )
        self.decode(batch)
        self.api.llama_batch_free(batch)

    def filled(self, entries):
        batch = self.api.llama_batch_init(len(entries), 0, 1)
        batch.n_tokens = len(entries)
        for i, (sequence, position, logits) in enumerate(entries):
            batch.token[i] = self.token(sequence, position)
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = logits
        return batch

    def seconds(self, test: Test) -> float:
        """One run. Batches are made before the clock starts, and the caches rewound."""
        for sequence in range(test.parallel):
            if not self.api.llama_memory_seq_rm(self.memory, sequence, test.depth, -1):
                self.api.llama_memory_seq_rm(self.memory, sequence, -1, -1)
                self.prompt(sequence, 0, test.depth)
        positions = range(test.depth, test.depth + test.tokens)
        if test.kind == "pp":
            last = positions[-1]
            batches = [self.filled([(0, p, p == last) for p in positions])]
        else:
            batches = [
                self.filled([(s, p, True) for s in range(test.parallel)]) for p in positions
            ]
        self.api.llama_synchronize(self.handle)
        start = time.perf_counter()
        for batch in batches:
            self.decode(batch)
        self.api.llama_synchronize(self.handle)
        seconds = time.perf_counter() - start
        for batch in batches:
            self.api.llama_batch_free(batch)
        return seconds

    def choose(self, test: Test) -> str:
        """Opens the context with whatever settings are faster, warm; says which."""
        longest = test.depth + test.tokens
        micro = (512, 2048) if test.kind == "pp" and test.tokens > 512 else (512,)
        # The caches of chunked layers differ only where the context is longer than a chunk.
        full = (True, False) if longest > 8192 else (True,)
        candidates = [(m, f) for m in micro for f in full]
        best = candidates[0]
        if len(candidates) > 1:
            # A prompt of many minutes is tried at a chunk and a half, which tells them apart.
            trial = Test(f"pp{LONGEST_TRIAL}") if test.tokens > LONGEST_TRIAL else test
            times = {}
            for candidate in candidates:
                self.open(trial, *candidate)
                if trial is test:
                    self.seconds(trial)
                times[candidate] = self.seconds(trial)
            best = min(times, key=times.get)
        self.open(test, *best)
        self.seconds(Test(f"pp{LONGEST_TRIAL}") if test.tokens > LONGEST_TRIAL else test)
        return f"micro-batch {best[0]}" + ("" if best[1] else ", small cache for chunked layers")


def serve(model: str, test: Test, threads: int):
    """ready SETTINGS, then for each line on standard input the seconds of a run."""
    peer = LlamaCpp(model, threads)
    print("ready", peer.choose(test), flush=True)
    for _ in sys.stdin:
        print(f"{peer.seconds(test):.9g}", flush=True)


# ---------------------------------------------------------------------------------------------------
# The pairs.


class Worker:
    """A process that takes turns: a line to it, a line from it."""

    def __init__(self, name: str, command: list):
        self.name = name
        self.process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        text = self.process.stdout.readline()
        if not text:
            raise Failure(f"{self.name} stopped with exit code {self.process.wait()}")
        return text.strip()

    def turn(self) -> float:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.line())

    def end(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.terminate()
        self.process.wait()


def drover_command(args, model: Path, test: Test) -> list:
    command = [args.drover, "bench", model, "--json", "--step", "--seed", SEED]
    command += ["--repeat", args.pairs, "--threads", args.threads]
    command += ["--depth", test.depth, "--parallel", test.parallel]
    if test.kind == "pp":
        command += ["--prompt", test.tokens, "--generate", 0]
        command += ["--batch", args.batch] if args.batch else []
    else:
        command += ["--prompt", 0, "--generate", test.tokens]
    return command


def pairs(args, model: Path, test: Test) -> dict:
    """One test of one model."""
    me = [sys.executable, __file__, "--serve", model, "--tests", test.text]
    theirs = Worker("llama.cpp", [*me, "--threads", args.threads])
    ours = None
    try:
        settings = theirs.line().removeprefix("ready ")
        ours = Worker("Drover", drover_command(args, model, test))
        our_rates, their_rates = [], []
        for _ in range(args.pairs):
            ours.line()  # ready
            our_rates.append(test.total / ours.turn())
            time.sleep(0.05)  # for threads that wait by spinning to go to sleep
            their_rates.append(test.total / theirs.turn())
            time.sleep(0.05)
        facts = json.loads(ours.line())
    finally:
        theirs.end()
        if ours:
            ours.end()
    ratios = [a / b for a, b in zip(our_rates, their_rates)]
    ratio = statistics.median(ratios)
    result = facts["results"][0]
    return {
        "model": model.stem if model.suffix == ".gguf" else model.name,
        "test": test.text,
        "drover": statistics.median(our_rates),
        "llama_cpp": statistics.median(their_rates),
        "ratio": ratio,
        "spread": (max(ratios) - min(ratios)) / ratio,
        "fraction_of_limit": result["fraction_of_limit"],
        "limit": result["limit"],
        "llama_cpp_settings": settings,
        "limits": facts["limits"][0],
        "isa": facts["isa"],
        "drover_rates": our_rates,
        "llama_cpp_rates": their_rates,
    }


def models(args) -> list:
    """The files, made where they are not there yet."""
    out = []
    for name in args.models.split(","):
        path = Path(name)
        if not path.exists():
            shape, dot, kind = name.rpartition(".")
            if not dot or "/" in name:
                raise Failure(f"model {name!r}: expected a file, or SHAPE.TYPE")
            path = args.folder / f"{name}.gguf"
        if not path.exists():
            args.folder.mkdir(parents=True, exist_ok=True)
            print(f"compare: making {path}", file=sys.stderr)
            made = [args.drover, "bench", "--make", shape, path, "--type", kind]
            if subprocess.run(list(map(str, made))).returncode != 0:
                raise Failure(f"drover bench --make {shape}: failed")
        out.append(path)
    return out


def machine() -> dict:
    info = Path("/proc/cpuinfo").read_text()
    field = lambda name: (re.search(rf"^{name}\s*: (.*)$", info, re.M) or [None, "unknown"])[1]
    flags = field("flags").split()
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        read = lambda name: (index / name).read_text().strip()
        if read("type") != "Instruction":
            caches[f"L{read('level')}"] = read("size")
    return {
        "processor": field("model name"),
        "family": f"family {field('cpu family')} model {field('model')}",
        "processors": info.count("\nprocessor") + info.startswith("processor"),
        "flags": [flag for flag in FLAGS if flag in flags],
        "caches": caches,
        "system": platform.platform(),
    }


def report(rows: list, about: dict, threads: int, failed: list):
    print("| model | test | Drover | llama.cpp | ratio | spread | of the limit |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- |")
    for r in rows:
        print(
            f"| {r['model']} | {r['test']} | {r['drover']:.1f} | {r['llama_cpp']:.1f} "
            f"| {r['ratio']:.2f} | {r['spread']:.0%} "
            f"| {r['fraction_of_limit']:.0%} of {r['limit']} |"
        )
    for sentence in failed:
        print(f"\nNot measured: {sentence}")
    caches = ", ".join(f"{name} {size}" for name, size in about["caches"].items())
    print(f"\nTokens/s, medians; {threads} threads; {datetime.date.today()}.")
    print(f"{about['processor']} ({about['family']}), {about['processors']} processors,")
    print(f"{' '.join(about['flags'])}; {caches}; {about['system']}.")
    if rows:
        limits = rows[-1]["limits"]
        print(
            f"Measured limits of {limits['threads']} threads ({rows[-1]['isa']}): "
            f"{limits['bytes_per_second'] * 1e-9:.1f} GB/s, "
            f"8-bit dot {limits['int8_operations_per_second'] * 1e-12:.2f} TOP/s, "
            f"f32 {limits['float_operations_per_second'] * 1e-12:.2f} TFLOP/s."
        )
    print(f"{about['drover']}; llama-cpp-python {about['llama_cpp']}, built natively.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--drover", type=Path, default=Path("build/release/drover"))
    parser.add_argument("--models", default=MODELS, help="files or SHAPE.TYPE, commas between")
    parser.add_argument("--tests", default=TESTS, help="pp512,tg128x16@4096 and the like")
    parser.add_argument("--only", default="*", help="glob on MODEL:TEST of what to run of them")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, help="Drover's --batch for prompts")
    parser.add_argument("--folder", type=Path, default=Path(".cache/bench"), help="of made models")
    parser.add_argument("--json", type=Path, help="also write every figure there")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        tests = [Test(text) for text in args.tests.split(",")]
        if args.serve:
            serve(args.serve, tests[0], args.threads)
            return 0
        import llama_cpp

        about = machine()
        about["llama_cpp"] = llama_cpp.__version__
        version = subprocess.run([args.drover, "--version"], capture_output=True, text=True)
        about["drover"] = "Drover " + version.stdout.strip()
        rows, failed = [], []
        for model in models(args):
            for test in tests:
                name = f"{model.stem}:{test.text}"
                if not fnmatch.fnmatch(name, args.only):
                    continue
                print(f"compare: {name}", file=sys.stderr)
                try:
                    rows.append(pairs(args, model, test))
                except Failure as failure:
                    failed.append(f"{name}: {failure}")
        report(rows, about, args.threads, failed)
        if args.json:
            args.json.write_text(json.dumps({"machine": about, "results": rows}, indent=1) + "\n")
        return 1 if failed else 0
    except (Failure, OSError) as failure:
        print(f"compare: {failure}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
