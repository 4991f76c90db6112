"""Writes the gradient goldens: tiny random models, what they read, and PyTorch's gradients.

    python make_gradients.py [--out tests/data/gradients] [--only NAME]

Each case becomes a folder with

    config.json         the model, as transformers writes it
    golden.json         documents, losses, steps and figures (see `make`)
    tensors.safetensors f32, names and shapes of GGUF: value/NAME, gradient/NAME, and for some
                        auxiliary/NAME, the gradient with the losses of the experts

The loss is the sum of weight times cross entropy over the sum of weights. Documents run one at a
time, so nothing here knows of packing. What stops this script:

* transformers' other attention (sdpa) has other gradients, by more than 2e-5 of a tensor's largest;
* a router's gradient is not what the formula says, sigmoid'(l) (input . gradient of the gated input);
* a tensor has next to no gradient, so that a test of it would test nothing;
* an expert is chosen by a hair, at first or in any of the 20 steps.

Weights, documents and weights of tokens come from numpy's generator and a fixed seed per case; byte i
of tile t is that of released_width in README.md.
"""

import argparse
import json
import shutil
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.numpy import save_file
from transformers import (
    Llama4Config,
    Llama4ForCausalLM,
    Llama4ForConditionalGeneration,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.llama4.modeling_llama4 import Llama4Router, Llama4TextExperts

from gguf_names import gguf_tensors
from gradient_cases import CASES, LLAMA4
from make_vision_goldens import normalised, picture_tokens, tiles_of
from vision_cases import IMAGE_END, IMAGE_START, PATCH_TOKEN, X_SEPARATOR, mix

AGREEMENT = 2e-5  # float32 against float32 in another order
LEAST_GRADIENT = 1e-4
LEAST_MARGIN = 0.02  # of router logits at first: bf16 products move them by half a percent
LEAST_MARGIN_OF_STEPS = 2e-4  # there float32 alone is compared
DOCUMENTS_TRIED = 200
STEPS = 20

# ---------------------------------------------------------------------------------------------------
# Models and documents.


def build(case):
    if case["model"] == "llama":
        return LlamaForCausalLM(LlamaConfig(**case["config"]))
    text = {**LLAMA4, **case["config"]}
    if case["model"] == "llama4":
        return Llama4ForCausalLM(Llama4TextConfig(**text))
    config = Llama4Config(
        text_config=text,
        vision_config=case["vision"],
        boi_token_index=IMAGE_START,
        eoi_token_index=IMAGE_END,
        image_token_index=PATCH_TOKEN,
    )
    return Llama4ForConditionalGeneration(config)


@torch.no_grad()
def fill(model, rng):
    """Random weights large enough that every mechanism bends what comes out."""
    tied = model.config.get_text_config().tie_word_embeddings
    for name, p in model.named_parameters():
        shape = tuple(p.shape)
        if name.endswith(("embed_tokens.weight", "class_embedding", "positional_embedding_vlm")):
            value = rng.standard_normal(shape) * (0.4 if tied else 1)
        elif len(shape) == 1:  # norms and biases
            value = (0.0 if name.endswith("bias") else 1.0) + 0.3 * rng.standard_normal(shape)
        else:
            fan_in = shape[-2] if "experts." in name and "shared" not in name else shape[-1]
            gain = 2.0 if "router" in name or "patch_embedding" in name else 1.0
            value = rng.standard_normal(shape) * gain / np.sqrt(fan_in)
        p.copy_(torch.from_numpy(value.astype(np.float32)))
    model.tie_weights()


def some_tiles(case, model):
    """Pixels of every tile of the case, by a formula; none without eyes."""
    if case["model"] != "vision":
        return None
    size = model.config.vision_config.image_size
    count = sum(tiles_of(part) for d in case["documents"] for part in d if type(part) is tuple)
    rows = [mix(tile, size * size * 3) >> np.uint64(56) for tile in range(count)]
    return np.stack(rows).astype(np.uint8).reshape(count, size, size, 3)


def draw(case, rng, model):
    """Documents: ids, weights of targets (each token's own, the first one's unused), pictures."""
    out, words = [], X_SEPARATOR if case["model"] == "vision" else case_vocab(model)
    for document in case["documents"]:
        tokens, weights, pictures = [], [], []
        for part in [document] if isinstance(document, int) else document:
            if isinstance(part, int):
                tokens += [int(t) for t in rng.integers(4, words, part)]
                weights += [float(w) for w in rng.choice([0, 0.25, 1, 1, 2], part)]
            else:
                side = model.config.vision_config.image_size // model.config.vision_config.patch_size
                of_picture = picture_tokens(part, side * side // 4)
                tokens += of_picture
                weights += [0.0] * len(of_picture)
                pictures.append(list(part))
        out.append(dict(tokens=tokens, weights=weights, pictures=pictures))
    return out


def case_vocab(model):
    return model.config.get_text_config().vocab_size


# ---------------------------------------------------------------------------------------------------
# Losses.


@contextmanager
def routers(model):
    """The inputs and logits of every router while it lasts: [layer][document]."""
    seen = [[] for m in model.modules() if isinstance(m, Llama4Router)]
    hooks = [
        m.register_forward_hook(lambda m, args, out, mine=mine: mine.append((args[0], out[1])))
        for m, mine in zip((m for m in model.modules() if isinstance(m, Llama4Router)), seen)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def token_losses(model, document, tiles):
    """[tokens - 1], of tokens 1, 2 ... in nats."""
    tokens = torch.tensor([document["tokens"]])
    more = {"pixel_values": normalised(tiles)} if document["pictures"] else {}
    logits = model(input_ids=tokens, use_cache=False, **more).logits[0]
    return F.cross_entropy(logits[:-1], tokens[0, 1:], reduction="none")


def all_losses(model, documents, tiles):
    out, first = [], 0
    for document in documents:
        count = sum(tiles_of(p) for p in document["pictures"])
        mine = None if tiles is None else tiles[first : first + count]
        out.append(token_losses(model, document, mine) if len(document["tokens"]) > 1 else None)
        if out[-1] is None:  # nothing to predict, but routers see the token
            model(input_ids=torch.tensor([document["tokens"]]), use_cache=False)
            out[-1] = torch.zeros(0)
        first += count
    return out


def mean_loss(losses, documents):
    weights = [torch.tensor(d["weights"][1:]) for d in documents]
    return sum((l * w).sum() for l, w in zip(losses, weights)) / sum(w.sum() for w in weights)


def learnt_losses(losses, documents):
    """Lists of what all_losses() gave, 0 where the weight is 0."""
    return [
        [float(x) if w else 0.0 for x, w in zip(l.detach(), d["weights"][1:])]
        for l, d in zip(losses, documents)
    ]


def of_experts(seen, top_k):
    """For each MoE layer E sum f P, the mean square of the log-sum, and tokens of each expert."""
    balance, z, counts = [], [], []
    for layer in seen:
        logits = torch.cat([l for _, l in layer])
        experts = logits.shape[1]
        chosen = logits.topk(top_k, dim=1).indices
        count = torch.bincount(chosen.flatten(), minlength=experts)
        share = count / chosen.numel()
        balance.append(experts * (share * logits.softmax(dim=1).mean(dim=0)).sum())
        z.append(logits.logsumexp(dim=1).square().mean())
        counts.append(count.tolist())
    return balance, z, counts


def margin(seen, top_k):
    """The least lead of a chosen expert over one passed over."""
    least = np.inf
    for layer in seen:
        best = torch.cat([l for _, l in layer]).topk(top_k + 1, dim=1).values
        least = min(least, float((best[:, -2] - best[:, -1]).min()))
    return least


def gguf_of(case, model, tensors):
    return gguf_tensors(tensors, model.config.head_dim if case["model"] == "llama" else None)


def gradients(case, model):
    return gguf_of(case, model, [(n, p.grad) for n, p in model.named_parameters()])


# ---------------------------------------------------------------------------------------------------
# Adapters: y += alpha / rank * B A x, for each expert its own.


def add_adapters(model, rng, rank, alpha):
    """Freezes the model and gives its adapters by module: A [E, rank, in], B [E, out, rank]."""
    scale, out = alpha / rank, {}

    def pair(name, experts, inputs, outputs):
        a = rng.standard_normal((experts, rank, inputs)) / np.sqrt(inputs)
        b = rng.standard_normal((experts, outputs, rank)) / np.sqrt(rank) / 2
        out[name] = [torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in (a, b)]
        return out[name]

    def adapt_linear(module, name):
        a, b = pair(name, 1, module.in_features, module.out_features)
        module.register_forward_hook(lambda m, args, y: y + scale * (args[0] @ a[0].T) @ b[0].T)

    def adapt_experts(experts, name):
        many, hidden, width = experts.gate_up_proj.shape
        a_in, b_in = pair(f"{name}.gate_up_proj", many, hidden, width)
        a_out, b_out = pair(f"{name}.down_proj", many, width // 2, hidden)

        def forward(x):
            x = x.view(many, -1, hidden)
            both = x @ experts.gate_up_proj + scale * x @ a_in.mT @ b_in.mT
            gate, up = both.chunk(2, dim=-1)
            inner = up * F.silu(gate)
            y = inner @ experts.down_proj + scale * inner @ a_out.mT @ b_out.mT
            return y.view(-1, hidden)

        experts.forward = forward

    model.requires_grad_(False)
    for name, module in list(model.named_modules()):
        name = name.removeprefix("model.")
        if isinstance(module, Llama4TextExperts):
            adapt_experts(module, name)
        elif isinstance(module, torch.nn.Linear) and "_proj" in name:
            adapt_linear(module, name)
    return out


# ---------------------------------------------------------------------------------------------------


def check_routers(model, documents, tiles):
    """The gradient of every router is that of a gate on the expert's input."""
    gated, hooks = [], []

    def keep(module, args):
        args[0].retain_grad()
        gated.append(args[0])

    for module in model.modules():
        if isinstance(module, Llama4TextExperts):
            hooks.append(module.register_forward_pre_hook(keep))
    model.zero_grad()
    with routers(model) as seen:
        mean_loss(all_losses(model, documents, tiles), documents).backward()
    for hook in hooks:
        hook.remove()
    modules = [m for m in model.modules() if isinstance(m, Llama4Router)]
    for i, module in enumerate(modules):
        expected = torch.zeros_like(module.weight)
        for d in range(len(documents)):
            x, logits = seen[i][d]
            dgated = gated[d * len(modules) + i].grad
            if dgated is None:  # a document of one token has no loss
                continue
            dgated = dgated.view(module.num_experts, *x.shape)
            s = logits.sigmoid()
            chosen = torch.zeros_like(s).scatter_(1, logits.topk(module.top_k, dim=1).indices, 1)
            dlogits = chosen * s * (1 - s) * (dgated * x).sum(dim=-1).T
            expected += dlogits.T @ x
        difference = (module.weight.grad - expected).abs().max() / expected.abs().max()
        assert difference < AGREEMENT, ("router", i, float(difference))


def take_steps(case, model, documents, tiles, top_k):
    """Losses before each of 20 steps and after the last; decay spares vectors."""
    how = case["steps"]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": how["decay"]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        groups, lr=how["rate"], betas=how["betas"], eps=how["epsilon"], foreach=False
    )
    losses, norms, least = [], [], np.inf
    for step in range(STEPS + 1):
        adamw.zero_grad()
        with routers(model) as seen:
            loss = mean_loss(all_losses(model, documents, tiles), documents)
        losses.append(float(loss.detach()))
        if step == STEPS:
            break
        if top_k:
            least = min(least, margin(seen, top_k))
            balance, z, _ = of_experts(seen, top_k)
            loss = loss + case["auxiliary"]["balance"] * sum(balance)
            loss = loss + case["auxiliary"]["router_z"] * sum(z)
        loss.backward()
        limit = how["clip"] or np.inf
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), limit)))
        adamw.step()
    assert least > LEAST_MARGIN_OF_STEPS, ("an expert is chosen by a hair", least)
    assert losses[-1] < losses[0] - 0.1, ("nothing is learnt", losses)
    return {**how, "losses": losses, "norms": norms}


def relative_to_largest(a, b):
    """The worst tensor, and how far its worst element is off."""
    worst = {n: np.abs(a[n] - b[n]).max() / np.abs(b[n]).max() for n in b}
    name = max(worst, key=worst.get)
    return float(f"{worst[name]:.1e}"), name


def with_bias(model, bias):
    """Chooses experts by logits plus bias; what they say stays without."""

    def forward(self, x):
        logits = F.linear(x, self.weight)
        chosen = (logits + torch.tensor(bias)).topk(self.top_k, dim=1).indices
        scores = torch.zeros_like(logits).scatter(1, chosen, logits.sigmoid().gather(1, chosen))
        return scores, logits

    for module in model.modules():
        if isinstance(module, Llama4Router):
            module.forward = forward.__get__(module)


def choose_documents(case, rng, model, tiles, top_k):
    best, best_margin = None, -1.0
    for _ in range(DOCUMENTS_TRIED if top_k else 1):
        documents = draw(case, rng, model)
        with torch.no_grad(), routers(model) as seen:
            all_losses(model, documents, tiles)
        lead = margin(seen, top_k) if top_k else np.inf
        if lead > best_margin:
            best, best_margin = documents, lead
    assert best_margin > LEAST_MARGIN, ("an expert is chosen by a hair", best_margin)
    return best, best_margin


def make(name, case, out: Path):
    rng = np.random.default_rng(zlib.crc32(f"gradients {name}".encode()))
    model = build(case).eval()
    model.config._attn_implementation = "eager"
    model.set_attn_implementation("eager")
    fill(model, rng)
    adapters = add_adapters(model, rng, **case["lora"]) if "lora" in case else {}
    tiles = some_tiles(case, model)
    text = model.config.get_text_config()
    top_k = text.num_experts_per_tok if getattr(text, "moe_layers", None) else 0
    documents, lead = choose_documents(case, rng, model, tiles, top_k)

    def taught():
        """Gradients by name of GGUF after backward()."""
        if not adapters:
            return gradients(case, model)
        return {f"{n}.lora_{k}": p.grad.numpy() for n, ab in adapters.items() for k, p in zip("AB", ab)}

    def run(coefficients=None):
        model.zero_grad()
        for ab in adapters.values():
            for p in ab:
                p.grad = None
        with routers(model) as seen:
            losses = all_losses(model, documents, tiles)
        loss = total = mean_loss(losses, documents)
        experts = of_experts(seen, top_k) if top_k else None
        if coefficients:
            total = total + coefficients["balance"] * sum(experts[0])
            total = total + coefficients["router_z"] * sum(experts[1])
        total.backward()
        return losses, loss, total, experts, {n: x.copy() for n, x in taught().items()}

    losses, loss, _, experts, gradient = run()
    tensors = {f"value/{n}": x for n, x in gguf_of(case, model, model.named_parameters()).items()}
    for n, ab in adapters.items():
        for k, p in zip("AB", ab):
            tensors[f"value/{n}.lora_{k}"] = p.detach().numpy()
    tensors |= {f"gradient/{n}": x for n, x in gradient.items()}
    for n, x in gradient.items():
        assert np.abs(x).max() > LEAST_GRADIENT, (name, n, np.abs(x).max())

    golden = {
        "what": case["what"],
        "documents": documents,
        "losses": learnt_losses(losses, documents),
        "loss": float(loss.detach()),
        "parameters": sum(x.size for n, x in tensors.items() if n.startswith("gradient/")),
    }
    if top_k:
        golden["router_margin"] = float(f"{lead:.2g}")
        golden["expert_tokens"] = experts[2]
        golden["balance"] = float(sum(experts[0]).detach()) / len(experts[0])
    if "lora" in case:
        golden["lora"] = case["lora"]
    if "auxiliary" in case:
        *_, total, _, with_them = run(case["auxiliary"])
        tensors |= {f"auxiliary/{n}": x for n, x in with_them.items()}
        golden["auxiliary"] = {**case["auxiliary"], "total": float(total.detach())}
        moved = {n: np.abs(with_them[n] - g).max() / np.abs(g).max() for n, g in gradient.items()}
        assert min(x for n, x in moved.items() if "gate_inp" in n) > 0.1, (name, moved)
    if "biased" in case:
        golden["biased"] = {"bias": case["biased"]}

    model.set_attn_implementation("sdpa")
    other = run()
    difference, worst = relative_to_largest(other[4], gradient)
    golden["sdpa_difference"] = difference
    assert difference < AGREEMENT, (name, "sdpa", worst, difference)
    model.set_attn_implementation("eager")
    if top_k and not adapters:
        check_routers(model, documents, tiles)

    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    save_file({n: np.ascontiguousarray(x) for n, x in tensors.items()}, folder / "tensors.safetensors")
    if "steps" in case:
        golden["steps"] = take_steps(case, model, documents, tiles, top_k)
    if "biased" in case:
        with_bias(model, case["biased"])
        with torch.no_grad():
            changed = all_losses(model, documents, tiles)
        golden["biased"]["losses"] = learnt_losses(changed, documents)
        assert abs(float(mean_loss(changed, documents)) - golden["loss"]) > 1e-2, "bias changes nothing"
    (folder / "golden.json").write_text(json.dumps(golden) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)
    size = sum(p.stat().st_size for p in folder.iterdir())
    print(
        f"{name:8} loss {golden['loss']:.4f}  sdpa {difference:.0e} ({worst})  margin {lead:.3f}  "
        f"{golden['parameters']} gradients  {size // 1024} KB",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    root = Path(__file__).resolve().parents[2]
    parser.add_argument("--out", type=Path, default=root / "tests" / "data" / "gradients")
    parser.add_argument("--only", help="make one case")
    args = parser.parse_args()

    torch.set_num_threads(1)  # one order of summation, so the files come out the same everywhere
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    for name, case in CASES.items():
        if args.only in (None, name):
            make(name, case, args.out)


if __name__ == "__main__":
    main()
