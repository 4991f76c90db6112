"""SmolLM2-135M-Instruct, the same GGUF file, by llama.cpp and by Drover: the report.

    python compare_llama_cpp.py MODEL FOLDER DROVER     runs Drover, prints Markdown

FOLDER is what llama_cpp_judge.py left; script/compare-llama-cpp runs both.

The comparison is exact, not statistical. llama.cpp answers 20 prompts greedily; Drover is then led
along llama.cpp's own tokens (`score`, one call per prompt), so one early difference cannot hide the
rest, and at every step the two best tokens are compared.

Both programs round activations to 8 bits on the way, so two tokens that are nearly equal may swap.
How near is not left to taste: a third judge computes the same rows from the same weights, unpacked,
in float32 (llama4_numpy). Let s be the standard deviation, over the vocabulary, of llama.cpp's error
against it at a step: the difference of two logits of one program is then off by 1.4 s, and two
programs' differences part by 2 s. A divergence is explained if llama.cpp's gap between the two tokens
is within four of those, 8 s; three would cry wolf about once in a thousand steps. To keep that from
excusing a sloppy Drover, Drover's own error over all steps may be at most 1.5 times llama.cpp's.

Exit status: 0 when every divergence is explained, the error is in bounds, and the perplexity of the
fixed text is within 0.5 % of llama.cpp's; 1 when not; 2 when something could not be run.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from llama_cpp_judge import NEW_TOKENS, SYSTEM, TEXT, sha256

PERPLEXITY_TOLERANCE = 0.005
ERROR_RATIO = 1.5


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
            noise = 8 * float((theirs[step] - exact[step]).std())
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
        raise Failure(f"{folder}/judge.json is about another model file; judge again")
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
        print("noise: eight standard deviations of llama.cpp's error at that step; exact: what the")
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
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("drover", type=Path)
    args = parser.parse_args()
    try:
        return report(args.model, args.folder, args.drover.resolve())
    except (Failure, OSError) as error:
        print(f"compare_llama_cpp: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
