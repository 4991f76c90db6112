"""Seconds per tile of a vision encoder: Drover beside PyTorch and llama.cpp, in turn, in one run: a
Markdown report.

    python compare_vision.py --drover BINARY [--types LIST] [--tiles N] [--pairs N] [--json OUT]

script/compare-vision finds the Pythons and runs this. The encoder has the released dimensions and
random weights (`drover bench --make vision`), so that only its speed means something. Drover and
llama.cpp read the same file. PyTorch runs spec section 5 as written below, in bf16 and in f32, each
with whatever of its settings is faster here: tiles one by one or together, compiled or not.

Every peer loads and warms up once, then takes turns with Drover. A ratio is the median over the
pairs of (peer's seconds / Drover's seconds).
"""

import argparse
import ctypes
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import compare

# The released encoder (spec section 5).
TILE, PATCH, HIDDEN, HEADS, WIDTH, LAYERS, ADAPTER, EMBEDDING = 336, 14, 1408, 16, 5632, 34, 4096, 5120


# ---------------------------------------------------------------------------------------------------
# PyTorch's side.


def torch_encoder(dtype):
    import torch
    import torch.nn.functional as F

    side = TILE // PATCH
    head = HIDDEN // HEADS
    torch.manual_seed(1)

    def weight(rows, cols):
        return (torch.randn(rows, cols) / math.sqrt(cols)).to(dtype)

    def vector(n, value=0.0):
        return torch.full((n,), value, dtype=dtype)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name in ("q", "k", "v", "o"):
                setattr(self, name, torch.nn.Parameter(weight(HIDDEN, HIDDEN), False))
                setattr(self, name + "_bias", torch.nn.Parameter(vector(HIDDEN), False))
            self.up = torch.nn.Parameter(weight(WIDTH, HIDDEN), False)
            self.up_bias = torch.nn.Parameter(vector(WIDTH), False)
            self.down = torch.nn.Parameter(weight(HIDDEN, WIDTH), False)
            self.down_bias = torch.nn.Parameter(vector(HIDDEN), False)
            for name in ("norm1", "norm2"):
                setattr(self, name, torch.nn.Parameter(vector(HIDDEN, 1.0), False))
                setattr(self, name + "_bias", torch.nn.Parameter(vector(HIDDEN), False))

        def forward(self, h, cosine, sine):
            tiles, rows, _ = h.shape

            def heads(x):
                return x.view(tiles, rows, HEADS, head).transpose(1, 2)

            def rotated(x):
                pairs = x.float().reshape(*x.shape[:-1], head // 2, 2)
                re, im = pairs[..., 0], pairs[..., 1]
                both = torch.stack((re * cosine - im * sine, re * sine + im * cosine), -1)
                return both.flatten(-2).to(x.dtype)

            a = F.layer_norm(h, (HIDDEN,), self.norm1, self.norm1_bias, 1e-5)
            q = rotated(heads(F.linear(a, self.q, self.q_bias)))
            k = rotated(heads(F.linear(a, self.k, self.k_bias)))
            v = heads(F.linear(a, self.v, self.v_bias))
            mixed = F.scaled_dot_product_attention(q, k, v)
            h = h + F.linear(mixed.transpose(1, 2).reshape(tiles, rows, HIDDEN), self.o, self.o_bias)
            m = F.layer_norm(h, (HIDDEN,), self.norm2, self.norm2_bias, 1e-5)
            return h + F.linear(F.gelu(F.linear(m, self.up, self.up_bias)), self.down, self.down_bias)

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = torch.nn.Parameter(weight(HIDDEN, 3 * PATCH * PATCH), False)
            self.position = torch.nn.Parameter(weight(side * side + 1, HIDDEN), False)
            self.of_class = torch.nn.Parameter(vector(HIDDEN, 1.0), False)
            self.norms = torch.nn.ParameterList(
                [torch.nn.Parameter(vector(HIDDEN, 1.0), False) for _ in range(2)]
            )
            self.layers = torch.nn.ModuleList([Layer() for _ in range(LAYERS)])
            self.fc1 = torch.nn.Parameter(weight(ADAPTER, 4 * HIDDEN), False)
            self.fc2 = torch.nn.Parameter(weight(ADAPTER, ADAPTER), False)
            self.projector = torch.nn.Parameter(weight(EMBEDDING, ADAPTER), False)
            n = torch.arange(side * side)
            theta = 10000.0 ** (-torch.arange(0, head // 2, 2).float() / (head // 2))
            angles = torch.cat(
                ((n % side + 1)[:, None] * theta, (n // side + 1)[:, None] * theta), 1
            )
            angles = torch.cat((angles, torch.zeros(1, head // 2)))
            self.register_buffer("cosine", angles.cos(), False)
            self.register_buffer("sine", angles.sin(), False)

        def forward(self, tiles):  # uint8 [n, TILE, TILE, 3]
            n = tiles.shape[0]
            x = ((tiles.float() / 255 - 0.5) / 0.5).to(self.patch.dtype)
            x = x.view(n, side, PATCH, side, PATCH, 3).permute(0, 1, 3, 5, 2, 4)
            h = F.linear(x.reshape(n, side * side, -1), self.patch)
            h = torch.cat((h, self.of_class.expand(n, 1, -1)), 1) + self.position
            h = F.layer_norm(h, (HIDDEN,), self.norms[0], None, 1e-5)
            for layer in self.layers:
                h = layer(h, self.cosine, self.sine)
            h = F.layer_norm(h, (HIDDEN,), self.norms[1], None, 1e-5)[:, :-1]
            h = h.view(n, side // 2, 2, side // 2, 2, HIDDEN).permute(0, 1, 3, 2, 4, 5)
            h = F.gelu(F.linear(h.reshape(n, side * side // 4, -1), self.fc1))
            return F.linear(F.gelu(F.linear(h, self.fc2)), self.projector)

    return Encoder().eval()


def serve_torch(kind: str, tiles: int, threads: int):
    import torch

    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    pixels = torch.randint(0, 256, (tiles, TILE, TILE, 3), dtype=torch.uint8)
    encoder = torch_encoder(dtype)

    def run(function, together):
        start = time.perf_counter()
        with torch.inference_mode():
            for piece in [pixels] if together else pixels.split(1):
                function(piece)
        return time.perf_counter() - start

    functions = {"": encoder}
    try:
        compiled = torch.compile(encoder)
        run(compiled, True)
        functions["compiled, "] = compiled
    except Exception as error:  # no compiler, or none that it likes
        print(f"compare: PyTorch does not compile: {str(error).splitlines()[0]}", file=sys.stderr)
    times = {}
    for name, function in functions.items():
        for together in {True, tiles == 1}:
            run(function, together)
            times[name + ("together" if together else "one by one"), together] = min(
                run(function, together) for _ in range(2)
            )
    (setting, together) = min(times, key=times.get)
    function = functions["compiled, " if setting.startswith("compiled") else ""]
    print("ready", f"PyTorch {torch.__version__}, {setting}", flush=True)
    for _ in sys.stdin:
        print(f"{run(function, together):.9g}", flush=True)


# ---------------------------------------------------------------------------------------------------
# llama.cpp's side.


def serve_llama_cpp(mmproj: str, text_model: str, tiles: int, threads: int):
    import llama_cpp
    from llama_cpp import mtmd_cpp as mtmd

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    for name in ("mtmd_log_set", "mtmd_helper_log_set"):
        if hasattr(mtmd, name):
            getattr(mtmd, name)(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(text_model.encode(), params)
    options = mtmd.mtmd_context_params_default()
    options.use_gpu = False
    options.n_threads = threads
    options.print_timings = False
    options.flash_attn_type = 1
    context = mtmd.mtmd_init_from_file(mmproj.encode(), model, options)
    if not context:
        raise compare.Failure(f"llama.cpp cannot load {mmproj}")
    marker = mtmd.mtmd_default_marker()
    data = (ctypes.c_uint8 * (TILE * TILE * 3))(*(i * 37 % 251 for i in range(TILE * TILE * 3)))
    bitmap = mtmd.mtmd_bitmap_init(TILE, TILE, data)
    chunks = mtmd.mtmd_input_chunks_init()
    text = mtmd.mtmd_input_text(marker, len(marker), False, True)
    bitmaps = (ctypes.c_void_p * 1)(bitmap)
    if mtmd.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1) != 0:
        raise compare.Failure("llama.cpp cannot take a picture")
    images = []
    for i in range(mtmd.mtmd_input_chunks_size(chunks)):
        chunk = mtmd.mtmd_input_chunks_get(chunks, i)
        if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
            images.append(chunk)
    tokens = sum(mtmd.mtmd_input_chunk_get_n_tokens(chunk) for chunk in images)
    if len(images) != 1 or tokens != 144:
        raise compare.Failure(f"llama.cpp makes {tokens} tokens of one tile, expected 144")

    def run():
        start = time.perf_counter()
        for _ in range(tiles):
            if mtmd.mtmd_encode_chunk(context, images[0]) != 0:
                raise compare.Failure("llama.cpp cannot encode")
        return time.perf_counter() - start

    run()
    print("ready", f"llama-cpp-python {llama_cpp.__version__}, one by one", flush=True)
    for _ in sys.stdin:
        print(f"{run():.9g}", flush=True)


# ---------------------------------------------------------------------------------------------------


def pairs(args, file: Path, peer: str, command: list) -> dict:
    theirs = compare.Worker(peer, command)
    ours = None
    try:
        settings = theirs.line().removeprefix("ready ")
        drover = [args.drover, "bench", file, "--tiles", args.tiles, "--json", "--step"]
        ours = compare.Worker("Drover", [*drover, "--repeat", args.pairs, "--threads", args.threads])
        our_seconds, their_seconds = [], []
        for _ in range(args.pairs):
            ours.line()  # ready
            our_seconds.append(ours.turn() / args.tiles)
            time.sleep(0.05)
            their_seconds.append(theirs.turn() / args.tiles)
            time.sleep(0.05)
        facts = json.loads(ours.line())
    finally:
        theirs.end()
        if ours:
            ours.end()
    ratios = [b / a for a, b in zip(our_seconds, their_seconds)]
    ratio = statistics.median(ratios)
    return {
        "file": file.name,
        "peer": peer,
        "settings": settings,
        "drover": statistics.median(our_seconds),
        "theirs": statistics.median(their_seconds),
        "ratio": ratio,
        "spread": (max(ratios) - min(ratios)) / ratio,
        "fraction_of_limit": facts["results"][0]["fraction_of_limit"],
        "limits": facts["limits"][0],
        "isa": facts["isa"],
    }


def made(args, shape: str, kind: str) -> Path:
    path = args.folder / f"{shape}.{kind}.gguf"
    if not path.exists():
        args.folder.mkdir(parents=True, exist_ok=True)
        print(f"compare: making {path}", file=sys.stderr)
        subprocess.run(
            list(map(str, [args.drover, "bench", "--make", shape, path, "--type", kind])), check=True
        )
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--drover", type=Path, default=Path("build/release/drover"))
    parser.add_argument("--types", default="bf16,q8_0", help="of Drover's weights")
    parser.add_argument("--peers", default="torch-bf16,torch-f32,llama.cpp")
    parser.add_argument("--tiles", type=int, default=4, help="at once")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path(".cache/bench"), help="of made models")
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--llama-cpp-python", default=sys.executable)
    parser.add_argument("--json", type=Path, help="also write every figure there")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        if args.serve:
            if args.serve[0] == "torch":
                serve_torch(args.serve[1], args.tiles, args.threads)
            else:
                serve_llama_cpp(args.serve[1], args.serve[2], args.tiles, args.threads)
            return 0
        rows, failed = [], []
        for kind in args.types.split(","):
            file = made(args, "vision", kind)
            for peer in args.peers.split(","):
                print(f"compare: {file.name} beside {peer}", file=sys.stderr)
                if peer.startswith("torch-"):
                    what = [args.torch_python, __file__, "--serve", "torch", peer[6:]]
                else:
                    text = made(args, "scout-4l", "q4_k_m")
                    what = [args.llama_cpp_python, __file__, "--serve", "llama.cpp", file, text]
                try:
                    more = ["--tiles", args.tiles, "--threads", args.threads]
                    rows.append(pairs(args, file, peer, [*what, *more]))
                except compare.Failure as failure:
                    failed.append(f"{file.name} beside {peer}: {failure}")
        print("| weights | peer | Drover, s per tile | peer | ratio | spread | of the limit |")
        print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
        for r in rows:
            print(
                f"| {r['file']} | {r['peer']} ({r['settings']}) | {r['drover']:.3f} "
                f"| {r['theirs']:.3f} | {r['ratio']:.2f} | {r['spread']:.0%} "
                f"| {r['fraction_of_limit']:.0%} |"
            )
        for sentence in failed:
            print(f"\nNot measured: {sentence}")
        about = compare.machine()
        print(f"\n{args.tiles} tiles at once; {args.threads} threads; medians of {args.pairs} pairs.")
        print(f"{about['processor']} ({about['family']}); {' '.join(about['flags'])}.")
        if args.json:
            args.json.write_text(json.dumps({"machine": about, "results": rows}, indent=1) + "\n")
        return 1 if failed else 0
    except (compare.Failure, OSError, subprocess.CalledProcessError) as failure:
        print(f"compare: {failure}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
