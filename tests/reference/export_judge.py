"""What Drover writes for Python, read by Python: model folders by transformers, adapters by PEFT.

    python export_judge.py EXPORT_PROBE      (requirements-export.txt)

* Every golden, written again as a folder in f32, gives its committed logits to 1e-4 of the largest
  when transformers loads it; with pictures too.
* An adapter that Drover writes, loaded by PEFT onto the golden in transformers, gives the logits of
  Drover with that adapter; so does one that PEFT makes and saves, of every map or of some, one after the
  other and two at once. The adapter moves logits by 1e-2 or more, or it proves nothing.

By hand: torch is large. `script/test` has the same checks between Drover's own parts.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

HERE = Path(__file__).resolve().parent
GOLDENS, VISION = HERE.parent / "data" / "goldens", HERE.parent / "data" / "vision"
TOLERANCE, MATTERS = 1e-4, 1e-2
PROBE = sys.argv[1]
worst = {}


def difference(a, b):
    return float(np.abs(a.astype(np.float64) - b).max() / np.abs(b).max())


def note(what, name, value, limit=TOLERANCE):
    worst[what] = max(worst.get(what, 0), value)
    if not value <= limit:
        sys.exit(f"{what}: {name}: {value:.2e} is more than {limit:.0e}")


def load(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    kind = getattr(transformers, config.architectures[0])
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def logits(model, tokens, pixels=None):
    state = {} if pixels is None else {"pixel_values": pixels}
    return model(input_ids=torch.tensor([tokens]), use_cache=False, **state).logits[0].numpy()


def tokens_of(folder):
    return json.loads((folder / "tokens.json").read_text())


def drover_logits(model, tokens, out, adapters=()):
    file = out / "logits.f32"
    ids = ",".join(map(str, tokens))
    subprocess.run([PROBE, "logits", str(model), str(file), ids, *map(str, adapters)], check=True)
    return np.fromfile(file, np.float32).reshape(len(tokens), -1)


def text_cases():
    return sorted(p.parent for p in GOLDENS.glob("*/config.json"))


def judge_folders(out):
    for case in text_cases():
        folder = out / case.name
        subprocess.run([PROBE, "folder", str(case), str(folder), "f32"], check=True)
        model = load(folder)
        model = getattr(model, "language_model", model)
        note("folders", case.name, difference(logits(model, tokens_of(case)), np.load(case / "logits.npy")))
    for case in sorted(p.parent for p in VISION.glob("*/config.json")):
        if json.loads((case / "config.json").read_text()).get("dtype") == "bfloat16":
            continue  # the golden is of f32 arithmetic on bf16 weights, as below, but pictures differ
        folder = out / ("vision_" + case.name)
        subprocess.run([PROBE, "folder", str(case), str(folder), "f32"], check=True)
        pixels = torch.from_numpy(np.load(case / "tiles.npy")).permute(0, 3, 1, 2).float()
        got = logits(load(folder), tokens_of(case), (pixels / 255 - 0.5) / 0.5)
        note("folders with eyes", case.name, difference(got, np.load(case / "logits.npy")))


def adapted(case, adapters):
    model = load(case)
    for i, adapter in enumerate(adapters):
        if i == 0:
            model = PeftModel.from_pretrained(model, adapter, adapter_name="a0")
        else:
            model.load_adapter(adapter, adapter_name=f"a{i}")
    if len(adapters) > 1:
        model.base_model.set_adapter([f"a{i}" for i in range(len(adapters))])
    return model.eval()


def judge_ours(out):
    for case in text_cases():
        folder, tokens = out / ("ours_" + case.name), tokens_of(case)
        subprocess.run([PROBE, "adapter", str(case), str(folder), "3"], check=True)
        # On the folder that we wrote: this transformers cannot run a configuration without chunks.
        theirs = logits(adapted(out / case.name, [folder]), tokens)
        ours = drover_logits(case, tokens, out, [folder])
        note("our adapters in PEFT", case.name, difference(ours, theirs))
        if difference(np.load(case / "logits.npy"), theirs) < MATTERS:
            sys.exit(f"{case.name}: the adapter changes nothing")


def peft_adapter(case, folder, seed, **choice):
    torch.manual_seed(seed)
    model = get_peft_model(load(case), LoraConfig(r=3, lora_alpha=5, **choice))
    for name, p in model.named_parameters():
        if "lora_" in name:
            scale = 0.3 if "lora_B" in name else 1 / np.sqrt(p.shape[1])
            p.data = torch.randn(p.shape) * scale
    model.save_pretrained(folder, save_embedding_layers=False)


def judge_theirs(out):
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    experts = ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]
    for name in ("scout", "maverick", "top_2", "tied", "multimodal", "llama", "llama_gqa_3_to_1"):
        case, dense = GOLDENS / name, name.startswith("llama")
        tokens, eyes = tokens_of(case), name == "multimodal"
        text = r".*language_model.*\.({})" if eyes else r".*\.({})"
        choices = {"all": dict(target_modules=text.format("|".join(linear)))}
        choices["attention"] = dict(target_modules=text.format("q_proj|v_proj"), use_rslora=True)
        if not dense:
            choices["all"]["target_parameters"] = experts
            choices["experts"] = dict(target_modules=[], target_parameters=experts)
            choices["down"] = dict(target_modules=[], target_parameters=experts[1:])
            choices["gate_up"] = dict(target_modules=[], target_parameters=experts[:1])
        if name == "scout":
            choices["head"] = dict(
                target_modules=["lm_head", "q_proj"], alpha_pattern={"lm_head": 2}, rank_pattern={"q_proj": 2}
            )
        made = []
        for seed, (what, choice) in enumerate(choices.items()):
            folder = out / f"theirs_{name}_{what}"
            peft_adapter(case, folder, seed, **choice)
            theirs = logits(adapted(case, [folder]), tokens)
            note("PEFT's adapters", f"{name} {what}", difference(drover_logits(case, tokens, out, [folder]), theirs))
            if difference(np.load(case / "logits.npy"), theirs) < MATTERS:
                sys.exit(f"{name} {what}: the adapter changes nothing")
            made.append(folder)
        # PEFT wants the same target_parameters of adapters that are on together.
        second = out / f"theirs_{name}_second"
        peft_adapter(case, second, 99, **choices["all"])
        both = [made[0], second]
        theirs = logits(adapted(case, both), tokens)
        note("two of PEFT's", name, difference(drover_logits(case, tokens, out, both), theirs))


def main():
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        judge_folders(out)
        judge_ours(out)
        judge_theirs(out)
    for what, value in worst.items():
        print(f"{what}: at most {value:.1e}")


if __name__ == "__main__":
    main()
