"""Training tokens/s of a decoder: Drover beside PyTorch, in turn, in one run: a Markdown report.

    python compare_training.py [CONFIG.json] [--documents N] [--length N] [--pairs N] [--json OUT]

script/compare-training finds a Python that has PyTorch and runs this. CONFIG.json is what
transformers reads (default: recipes/edge/config.json; of a model with eyes the decoder is taken).
Both begin with random weights and see the same number of random tokens in every step: documents of
one length. A step is forward, backward, clipping, AdamW, with all that belongs to them.

PyTorch runs transformers' Llama4ForCausalLM with its attention by scaled_dot_product_attention,
bf16 by autocast or f32, fused AdamW, memory that is not given back between steps, and compiled or
not, whichever is faster here. transformers computes every expert for every token (of zeros where the
expert was not chosen); `-grouped` is the same model with a mixture written here that computes the
chosen ones only, one after the other.

Every peer builds and warms up once, then takes turns with Drover. A ratio is the median over the
pairs of (peer's seconds / Drover's seconds).
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import compare

PEERS = "torch-bf16,torch-f32,torch-bf16-grouped,torch-f32-grouped"
# Memory of activations comes back every step: neither returned to the system nor in small pages.
MALLOC = "GLIBC_TUNABLES=" + ":".join(
    f"glibc.malloc.{setting}"
    for setting in ("hugetlb=1", "mmap_threshold=4294967296", "trim_threshold=17179869184")
)


# ---------------------------------------------------------------------------------------------------
# PyTorch's side.


def grouped_experts(moe, hidden_states):
    """Llama4TextMoe.forward, with each expert on the tokens that chose it."""
    import torch

    x = hidden_states.reshape(-1, moe.hidden_dim)
    logits = torch.nn.functional.linear(x, moe.router.weight)
    best, chosen = torch.topk(logits, moe.top_k, dim=1)
    scores = torch.sigmoid(best.float()).to(x.dtype)
    out = moe.shared_expert(x)
    for expert in range(moe.num_experts):
        rows, slots = torch.where(chosen == expert)
        taken = x[rows] * scores[rows, slots, None]
        gate, up = (taken @ moe.experts.gate_up_proj[expert]).chunk(2, dim=-1)
        made = (up * moe.experts.act_fn(gate)) @ moe.experts.down_proj[expert]
        out = out.index_add(0, rows, made.to(out.dtype))
    return out, logits


def serve_torch(config: Path, kind: str, args):
    import torch
    import transformers
    from transformers.models.llama4 import modeling_llama4

    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    torch.set_flush_denormal(True)
    dtype, _, grouped = kind.partition("-")
    if grouped:
        modeling_llama4.Llama4TextMoe.forward = grouped_experts
    fields = json.loads(config.read_text())
    shape = transformers.Llama4TextConfig(**fields.get("text_config", fields))
    shape._attn_implementation = "sdpa"
    shape.use_cache = False
    model = transformers.Llama4ForCausalLM(shape).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    tokens = torch.randint(0, shape.vocab_size, (args.documents, args.length))

    def step(function):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            loss = function(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        return time.perf_counter() - start

    functions = {"not compiled": model}
    if not args.no_compile:
        try:
            compiled = torch.compile(model)
            step(compiled)
            functions["compiled"] = compiled
        except Exception as error:  # no compiler, or none that it likes
            print(f"compare: PyTorch does not compile: {str(error).splitlines()[0]}", file=sys.stderr)
    times = {}
    for name, function in functions.items():
        step(function)
        times[name] = min(step(function) for _ in range(2))
    setting = min(times, key=times.get)
    print("ready", f"PyTorch {torch.__version__}, {setting}", flush=True)
    for _ in sys.stdin:
        print(f"{step(functions[setting]):.9g}", flush=True)


# ---------------------------------------------------------------------------------------------------


def pairs(args, precision: str, peer: str) -> dict:
    shape = ["--documents", args.documents, "--length", args.length, "--threads", args.threads]
    me = ["env", MALLOC, args.torch_python, __file__, args.config, *shape, "--serve", peer[6:]]
    theirs = compare.Worker(peer, me + (["--no-compile"] if args.no_compile else []))
    ours = None
    try:
        settings = theirs.line().removeprefix("ready ")
        command = [args.train_speed, args.config, *shape, "--precision", precision, "--step"]
        ours = compare.Worker("Drover", [*command, "--repeat", args.pairs])
        our_seconds, their_seconds = [], []
        for _ in range(args.pairs):
            ours.line()  # ready
            our_seconds.append(ours.turn())
            time.sleep(0.05)  # for threads that wait by spinning to go to sleep
            their_seconds.append(theirs.turn())
            time.sleep(0.05)
        facts = json.loads(ours.line())
    finally:
        theirs.end()
        if ours:
            ours.end()
    ratios = [b / a for a, b in zip(our_seconds, their_seconds)]
    ratio = statistics.median(ratios)
    tokens = args.documents * args.length
    return {
        "precision": precision,
        "peer": peer,
        "settings": settings,
        "drover": tokens / statistics.median(our_seconds),
        "theirs": tokens / statistics.median(their_seconds),
        "ratio": ratio,
        "spread": (max(ratios) - min(ratios)) / ratio,
        "drover_seconds": our_seconds,
        "their_seconds": their_seconds,
        "facts": facts,
    }


def report(args, rows: list, failed: list, about: dict):
    print("| Drover's products | peer | Drover, tokens/s | peer | ratio | spread | of the peak |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for r in rows:
        facts = r["facts"]
        print(
            f"| {r['precision']} | {r['peer']} ({r['settings']}) | {r['drover']:.0f} "
            f"| {r['theirs']:.0f} | {r['ratio']:.2f} | {r['spread']:.0%} "
            f"| {facts['fraction_of_peak']:.0%} of {facts['peak']} |"
        )
    for sentence in failed:
        print(f"\nNot measured: {sentence}")
    if rows:
        facts = rows[0]["facts"]
        total, active = (facts["parameters"][name] / 1e6 for name in ("total", "active"))
        print(f"\n{args.config}: {total:.1f}M parameters, {active:.1f}M active;")
        print(f"{facts['operations'] / 1e9:.1f} G operations a step by count.")
    print(f"{args.documents} documents of {args.length} tokens a step; {args.threads} threads;")
    print(f"medians of {args.pairs} pairs.")
    print(f"{about['processor']} ({about['family']}); {' '.join(about['flags'])}.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("config", type=Path, nargs="?", default=Path("recipes/edge/config.json"))
    parser.add_argument("--train-speed", type=Path, default=Path("build/release/bench/train_speed"))
    parser.add_argument("--precisions", default="bf16", help="of Drover's products: bf16,f32")
    parser.add_argument("--peers", default=PEERS)
    parser.add_argument("--documents", type=int, default=8, help="in a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of each")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-compile", action="store_true", help="do not try torch.compile")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--json", type=Path, help="also write every figure there")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        if not args.config.exists():
            raise compare.Failure(f"{args.config}: not there")
        if args.serve:
            serve_torch(args.config, args.serve, args)
            return 0
        rows, failed = [], []
        for precision in args.precisions.split(","):
            for peer in args.peers.split(","):
                if not peer.startswith("torch-"):
                    raise compare.Failure(f"peer {peer!r}: expected one of {PEERS}")
                print(f"compare: {precision} beside {peer}", file=sys.stderr)
                try:
                    rows.append(pairs(args, precision, peer))
                except compare.Failure as failure:
                    failed.append(f"{precision} beside {peer}: {failure}")
        about = compare.machine()
        report(args, rows, failed, about)
        if args.json:
            args.json.write_text(json.dumps({"machine": about, "results": rows}, indent=1) + "\n")
        return 1 if failed else 0
    except (compare.Failure, OSError) as failure:
        print(f"compare: {failure}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
