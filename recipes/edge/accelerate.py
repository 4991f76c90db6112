#!/usr/bin/env python3
"""Teaches a model of Edge's shape by a recipe of one stage, as `drover train` does, with PyTorch: for
machines with an accelerator, which Drover does not use yet. The same examples (bench/recipe_batches.cpp),
losses and optimizers; `drover train` is the reference, and recipes/edge/check-accelerate compares the two.

    script/build release recipe_batches
    recipes/edge/accelerate.py RECIPE.json START OUT [--workers N] [--minutes M]

START, the model to begin from, and OUT are folders in the form of Hugging Face. Metrics go to
metrics.jsonl in OUT. There are no checkpoints. Needs torch, safetensors and numpy.
"""

import argparse
import json
import math
import queue
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file


class Config:
    def __init__(self, folder: Path):
        config = json.loads((folder / "config.json").read_text())
        text, eyes = config["text_config"], config["vision_config"]
        self.hidden, self.layers = text["hidden_size"], text["num_hidden_layers"]
        self.heads, self.kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
        self.head_dim, self.eps = text["head_dim"], text["rms_norm_eps"]
        self.chunk, self.theta = text["attention_chunk_size"], text["rope_parameters"]["rope_theta"]
        self.rope = text["no_rope_layers"]  # 1 where a layer has positions, in spite of its name
        self.experts, self.width = text["num_local_experts"], text["intermediate_size"]
        self.side = eyes["image_size"] // eyes["patch_size"]
        self.tile, self.patch = eyes["image_size"], eyes["patch_size"]
        self.eye_hidden, self.eye_heads = eyes["hidden_size"], eyes["num_attention_heads"]
        self.eye_layers, self.eye_eps = eyes["num_hidden_layers"], eyes["norm_eps"]
        self.eye_theta = eyes["rope_parameters"]["rope_theta"]
        known = (
            text["num_experts_per_tok"] == 1 and text["use_qk_norm"] and config["tie_word_embeddings"]
            and text["moe_layers"] == list(range(self.layers)) and eyes["pixel_shuffle_ratio"] == 0.5
        )
        if not known:
            sys.exit(f"{folder}: not of Edge's shape")


# What is learnt: matrices [out, in], of experts [expert, out, in], under the names of Hugging Face.


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    out = {}
    for name, value in load_file(folder / "model.safetensors").items():
        value = value.float()
        if name.endswith("experts.gate_up_proj"):
            gate, up = value.transpose(1, 2).chunk(2, dim=1)
            out[name.replace("gate_up", "gate")] = gate.contiguous()
            out[name.replace("gate_up", "up")] = up.contiguous()
        elif name.endswith("experts.down_proj"):
            out[name] = value.transpose(1, 2).contiguous()
        else:
            out[name] = value
    return out


def write_weights(weights: dict[str, torch.Tensor], start: Path, folder: Path, licence: str):
    out = {}
    for name, value in weights.items():
        value = value.detach().to(torch.bfloat16).cpu()
        if name.endswith("experts.up_proj"):
            continue
        if name.endswith("experts.gate_proj"):
            up = weights[name.replace("gate", "up")].detach().to(torch.bfloat16).cpu()
            out[name.replace("gate", "gate_up")] = torch.cat([value, up], 1).transpose(1, 2).contiguous()
        elif name.endswith("experts.down_proj"):
            out[name] = value.transpose(1, 2).contiguous()
        else:
            out[name] = value
    folder.mkdir(parents=True, exist_ok=True)
    for file in start.iterdir():
        if file.name not in ("model.safetensors", "README.md"):
            shutil.copy(file, folder)
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n\n# {folder.name}\n")
    save_file(out, folder / "model.safetensors", metadata={"format": "pt"})


def optimizer_of(name: str, value: torch.Tensor) -> str:
    """As src/train/parameters.cpp tells kinds of tensors."""
    embedding = name.endswith(("embed_tokens.weight", "positional_embedding_vlm"))
    router = name.endswith("router.weight")
    return "adamw" if embedding or router or value.dim() == 1 else "muon"


# Batches.


class Batch:
    """Several runs of rows, [runs, rows]; of those that pictures fill, and of tiles, all together."""

    def __init__(self, runs: list[dict], device):
        def rows(name):
            return torch.from_numpy(np.stack([run[name] for run in runs])).to(device, non_blocking=True)

        self.tokens, self.targets = rows("tokens").long(), rows("targets").long()
        self.documents, self.positions = rows("documents"), rows("positions")
        self.sources = rows("sources").long()
        self.weights, self.key_bias, self.temperature = rows("weights"), rows("bias"), rows("temperature")
        length = runs[0]["tokens"].shape[0]
        seen = np.concatenate([run["seen"].astype(np.int64) + i * length for i, run in enumerate(runs)])
        self.seen = torch.from_numpy(seen).to(device, non_blocking=True)
        tiles = np.concatenate([run["tiles"] for run in runs])
        self.tiles = torch.from_numpy(tiles).to(device, non_blocking=True)
        self.learnt = torch.from_numpy(
            np.concatenate([np.flatnonzero(run["weights"]) + i * length for i, run in enumerate(runs)])
        ).to(device, non_blocking=True)
        self.rows = sum(run["rows"] for run in runs)


def read_run(stream, length: int, tile: int) -> dict:
    def take(dtype, count):
        data = stream.read(4 * count if dtype != np.uint8 else count)
        return np.frombuffer(data, dtype, count)

    rows, seen, tiles = struct.unpack("<3i", stream.read(12))
    run = {"rows": rows}
    for name in ("tokens", "targets", "documents", "positions", "sources"):
        run[name] = take(np.int32, length)
    for name in ("weights", "bias", "temperature"):
        run[name] = take(np.float32, length)
    run["seen"] = take(np.int32, seen)
    run["tiles"] = take(np.uint8, tiles * tile * tile * 3).reshape(tiles, tile, tile, 3)
    return run


class Batches:
    """Batches of `runs` runs, from processes that make them, one after the other."""

    def __init__(self, command: list[str], workers: int, runs: int, length: int, tile: int, device):
        self.ready = queue.Queue(maxsize=4)
        self.processes, queues = [], []
        for worker in range(workers):
            first = ["--first", str(worker << 40)]
            self.processes.append(subprocess.Popen(command + first, stdout=subprocess.PIPE, bufsize=1 << 22))
            queues.append(queue.Queue(maxsize=2 * (runs // workers + 1)))

        def read(process, into):
            try:
                while True:
                    into.put(read_run(process.stdout, length, tile))
            except (struct.error, ValueError):
                into.put(None)

        def gather():
            at = 0
            while True:
                together = []
                for _ in range(runs):
                    together.append(queues[at % workers].get())
                    at += 1
                if None in together:
                    self.ready.put(None)
                    return
                self.ready.put(Batch(together, device))

        for process, into in zip(self.processes, queues):
            threading.Thread(target=read, args=(process, into), daemon=True).start()
        threading.Thread(target=gather, daemon=True).start()

    def next(self) -> Batch:
        batch = self.ready.get()
        if batch is None:
            sys.exit("accelerate: recipe_batches has ended")
        return batch

    def close(self):
        for process in self.processes:
            process.kill()


# The model. Sums that layers add to are float32, products what autocast makes of them.


class Model:
    def __init__(self, config: Config, weights: dict[str, torch.Tensor], device, flex: bool):
        self.config, self.device, self.flex = config, device, flex
        self.weights = {name: value.to(device).requires_grad_() for name, value in weights.items()}
        side, dim = config.side, config.eye_hidden // config.eye_heads
        n = torch.arange(side * side)
        frequencies = config.eye_theta ** -(torch.arange(0, dim // 2, 2) / (dim // 2))
        angles = torch.cat([(n % side + 1)[:, None] * frequencies, (n // side + 1)[:, None] * frequencies], 1)
        angles = torch.cat([angles, torch.zeros(1, dim // 2)])  # the class token
        self.eye_rope = torch.polar(torch.ones_like(angles), angles).to(device)
        frequencies = config.theta ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        angles = torch.arange(config.chunk)[:, None] * frequencies
        self.rope = torch.polar(torch.ones_like(angles), angles).to(device)
        self.attend_blocks = torch.compile(attend_blocks) if flex else None

    def see(self, tiles: torch.Tensor) -> torch.Tensor:
        """[tiles, side, side, 3] bytes -> [16 tiles, hidden]."""
        c, n = self.config, tiles.shape[0]
        eyes = {k[len("vision_model."):]: v for k, v in self.weights.items() if k.startswith("vision_model.")}
        x = (tiles.float() / 255 - 0.5) / 0.5
        x = x.view(n, c.side, c.patch, c.side, c.patch, 3).permute(0, 1, 3, 5, 2, 4)
        with torch.autocast(self.device.type, enabled=False):
            h = x.reshape(n, c.side * c.side, -1) @ eyes["patch_embedding.linear.weight"].T
        h = torch.cat([h, eyes["class_embedding"].expand(n, 1, -1)], 1) + eyes["positional_embedding_vlm"]

        def norm(x, name):
            return F.layer_norm(x, x.shape[-1:], eyes[name + ".weight"], eyes[name + ".bias"], c.eye_eps)

        h = norm(h, "layernorm_pre")
        for layer in range(c.eye_layers):
            at = f"model.layers.{layer}."

            def linear(x, name):
                return F.linear(x, eyes[at + name + ".weight"], eyes[at + name + ".bias"])

            f = norm(h, at + "input_layernorm")
            q, k, v = (
                linear(f, f"self_attn.{p}_proj").view(n, -1, c.eye_heads, c.eye_hidden // c.eye_heads)
                for p in "qkv"
            )
            q, k = turned(q, self.eye_rope), turned(k, self.eye_rope)
            mixed = F.scaled_dot_product_attention(*(x.transpose(1, 2).to(v.dtype) for x in (q, k, v)))
            h = h + linear(mixed.transpose(1, 2).reshape(n, -1, c.eye_hidden), "self_attn.o_proj")
            f = norm(h, at + "post_attention_layernorm")
            h = h + linear(F.gelu(linear(f, "mlp.fc1")), "mlp.fc2")
        h = norm(h, "layernorm_post")[:, :-1]
        half = c.side // 2
        x = h.reshape(n, half, 2, half, 2, c.eye_hidden).transpose(2, 3).reshape(n * half * half, -1)
        x = F.gelu(F.linear(x, eyes["vision_adapter.mlp.fc1.weight"]))
        x = F.gelu(F.linear(x, eyes["vision_adapter.mlp.fc2.weight"]))
        return F.linear(x, self.weights["multi_modal_projector.linear_1.weight"])

    def forward(self, batch: Batch):
        """The logits' rows that are learnt, and the sum of all layers' auxiliary losses, of which the first
        is the balance and the second the routers' z."""
        c, w = self.config, self.weights
        B, L = batch.tokens.shape
        h = F.embedding(batch.tokens, w["language_model.model.embed_tokens.weight"])
        if batch.seen.numel() > 0:
            h = h.reshape(B * L, -1).index_copy(0, batch.seen, self.see(batch.tiles).float()).view(B, L, -1)
        turn = self.rope[batch.positions % c.chunk]
        local, everything = self.masks(batch)
        there = (batch.documents >= 0).view(-1, 1)
        every, balance, z = torch.arange(c.experts, device=self.device), 0, 0
        for layer in range(c.layers):
            at = f"language_model.model.layers.{layer}."

            def linear(x, name):
                return F.linear(x, w[at + name + ".weight"])

            f = F.rms_norm(h, (c.hidden,), w[at + "input_layernorm.weight"], c.eps)
            q, k, v = (linear(f, f"self_attn.{p}_proj").view(B, L, -1, c.head_dim) for p in "qkv")
            if c.rope[layer]:
                q, k = turned(q, turn), turned(k, turn)
                q, k = (F.rms_norm(x, (c.head_dim,), eps=c.eps) for x in (q, k))
            else:
                q = q * batch.temperature[:, :, None, None]
            q, k, v = (x.transpose(1, 2).to(v.dtype) for x in (q, k, v))
            mixed = self.attend(q, k, v, batch, local if c.rope[layer] else everything, c.rope[layer])
            h = h + linear(mixed.transpose(1, 2).reshape(B, L, -1), "self_attn.o_proj")

            f = F.rms_norm(h, (c.hidden,), w[at + "post_attention_layernorm.weight"], c.eps).view(B * L, -1)
            with torch.autocast(self.device.type, enabled=False):
                scores = f.float() @ w[at + "feed_forward.router.weight"].T
            best, chosen = scores.max(-1)
            one = chosen[:, None] == every
            share = (one * there).sum(0) / there.sum()
            mean = (scores.softmax(-1) * there).sum(0) / there.sum()
            balance = balance + c.experts * (share * mean).sum()
            z = z + (scores.logsumexp(-1)[:, None].square() * there).sum() / there.sum()
            out = swiglu(f, *(w[at + f"feed_forward.shared_expert.{p}_proj.weight"] for p in ("gate", "up", "down")))
            out = out + self.experts(best.sigmoid()[:, None] * f, one, at + "feed_forward.experts.")
            h = h + out.view(B, L, -1)
        h = h.reshape(B * L, -1)[batch.learnt]
        h = F.rms_norm(h, (c.hidden,), w["language_model.model.norm.weight"], c.eps)
        return F.linear(h, w["language_model.model.embed_tokens.weight"]), balance, z

    def experts(self, x, one, at):
        """All experts' products of all rows, and of these each row's own: on an accelerator that costs less
        than to sort rows of a model as small as this."""
        gate, up, down = (self.weights[f"{at}{p}_proj"] for p in ("gate", "up", "down"))
        experts, width, hidden = gate.shape
        inner = F.silu(F.linear(x, gate.view(-1, hidden))) * F.linear(x, up.view(-1, hidden))
        inner = inner.view(-1, experts, width) * one[:, :, None].to(inner.dtype)
        return F.linear(inner.view(-1, experts * width), down.transpose(0, 1).reshape(hidden, -1))

    def masks(self, batch: Batch):
        """What rows see on layers with chunks, and on those without."""
        documents, chunks = batch.documents, batch.positions // self.config.chunk
        B, L = documents.shape
        if self.flex:
            from torch.nn.attention.flex_attention import create_block_mask

            def everything(b, h, q, k):
                return (documents[b, q] == documents[b, k]) & (q >= k)

            def local(b, h, q, k):
                return everything(b, h, q, k) & (chunks[b, q] == chunks[b, k])

            return [create_block_mask(m, B, None, L, L, device=self.device) for m in (local, everything)]
        row = torch.arange(L, device=self.device)
        everything = (documents[:, :, None] == documents[:, None]) & (row[:, None] >= row)
        local = everything & (chunks[:, :, None] == chunks[:, None])
        bias = batch.key_bias[:, None].expand(B, L, L)
        hidden = torch.full((), -math.inf, device=self.device)
        return [torch.where(local, 0.0, hidden)[:, None], torch.where(everything, bias, hidden)[:, None]]

    def attend(self, q, k, v, batch, mask, is_local):
        if self.flex:
            bias = torch.zeros_like(batch.key_bias) if is_local else batch.key_bias
            return self.attend_blocks(q, k, v, mask, bias)
        k, v = (x.repeat_interleave(self.config.heads // self.config.kv_heads, 1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))


def attend_blocks(q, k, v, mask, bias):
    from torch.nn.attention.flex_attention import flex_attention

    def biased(score, b, h, i, j):
        return score + bias[b, j]

    return flex_attention(q, k, v, score_mod=biased, block_mask=mask, enable_gqa=True)


def turned(x, turn):
    """Pairs that stand side by side, as complex numbers. x: [.., rows, heads, dim], turn: [.., rows, dim / 2]."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2).contiguous())
    return torch.view_as_real(pairs * turn[..., None, :]).flatten(-2)


def swiglu(x, gate, up, down):
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


class Optimizer:
    """Muon for matrices and AdamW for the rest, as src/train/optimizer.cpp."""

    def __init__(self, weights: dict[str, torch.Tensor], settings: dict, kind: torch.dtype):
        self.kind = kind  # of orthogonalization's products
        self.muon, self.clip = settings["muon"], settings.get("clip", 1.0)
        self.all = list(weights.values())
        rest, shapes = [], {}
        for name, value in weights.items():
            if optimizer_of(name, value) == "adamw":
                rest.append(value)
            else:
                shapes.setdefault(value.shape[-2:], []).append(value)
        adamw = settings["adamw"]
        self.rate = adamw["rate"]
        assert adamw.get("decay", 0) == 0
        self.adamw = torch.optim.AdamW(rest, lr=self.rate, betas=adamw["betas"], eps=1e-8, weight_decay=0)
        self.groups = [
            (shape, values, [torch.zeros_like(v) for v in values]) for shape, values in shapes.items()
        ]

    @torch.no_grad()
    def step(self, scale: float) -> torch.Tensor:
        gradients = [p.grad for p in self.all]
        norm = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (self.clip / norm).clamp(max=1) if self.clip > 0 else 1.0)
        for group in self.adamw.param_groups:
            group["lr"] = self.rate * scale
        self.adamw.step()
        rate, momentum = self.muon["rate"] * scale, self.muon["momentum"]
        for (rows, cols), values, averages in self.groups:
            own = [v.grad for v in values]
            torch._foreach_mul_(averages, momentum)
            torch._foreach_add_(averages, own)
            moves = torch._foreach_add(own, averages, alpha=momentum)
            moves = orthogonal(torch.cat([m.view(-1, rows, cols) for m in moves]), self.kind)
            step = rate * math.sqrt(max(1.0, rows / cols))
            torch._foreach_mul_(values, 1 - rate * self.muon["decay"])
            at = 0
            for value in values:
                count = value.numel() // (rows * cols)
                value.sub_(moves[at : at + count].view_as(value), alpha=step)
                at += count
        for p in self.all:
            p.grad = None
        return norm


def orthogonal(x: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """Newton and Schulz, as src/train/orthogonalizer.cpp. x: [matrices, rows, cols]."""
    turned = x.shape[1] > x.shape[2]
    if turned:
        x = x.mT
    x = (x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)).to(kind)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    x = x.float()
    return x.mT if turned else x


def rate_scale(step: int, warmup: int, gone: float, decay: float) -> float:
    """gone: the part of the plan that is over."""
    scale = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
    return min(scale, (1 - gone) / decay) if gone > 1 - decay else scale


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("start", type=Path, help="the recipe's model, as a folder of Hugging Face")
    parser.add_argument("out", type=Path)
    parser.add_argument("--batches", default="build/release/bench/recipe_batches")
    parser.add_argument("--rows", type=int, help="of a run, if not the recipe's 'micro'")
    parser.add_argument("--minutes", type=float, help="be done after so long, instead of the recipe's steps")
    parser.add_argument("--workers", type=int, default=1, help="processes that make examples")
    parser.add_argument("--dense", action="store_true", help="attention with whole masks")
    parser.add_argument("--f32", action="store_true")
    args = parser.parse_args()
    since = started = time.monotonic()

    recipe = json.loads(args.recipe.read_text())
    (stage,) = recipe["stages"]
    schedule = recipe["schedule"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    length = args.rows or stage["micro"]
    torch.set_float32_matmul_precision("high")
    config = Config(args.start)
    model = Model(config, read_weights(args.start), device, flex=device.type == "cuda" and not args.dense)
    optimizer = Optimizer(model.weights, recipe["optimizer"], torch.float32 if args.f32 else torch.bfloat16)
    command = [args.batches, str(args.recipe), "--rows", str(length)]
    batches = Batches(command, args.workers, stage["tokens"] // length, length, config.tile, device)
    balance_weight = recipe.get("experts", {}).get("balance", 0)
    z_weight = recipe.get("experts", {}).get("router_z", 0)
    # As recipe_batches counts them: of a shared file those that are used, else all.
    names = list(recipe["sources"])
    if isinstance(recipe["sources"], str):
        shared = json.loads((args.recipe.parent / recipe["sources"]).read_text())
        names = [name for name in shared if name in stage["mixture"]]
    sums = torch.zeros(2, len(names), device=device)  # weights of what was right, and of all

    args.out.mkdir(parents=True, exist_ok=True)
    metrics = open(args.out / "metrics.jsonl", "w", buffering=1)
    step = tokens = 0
    while True:
        batch = batches.next()
        minutes = (time.monotonic() - started) / 60
        gone = minutes / args.minutes if args.minutes else step / stage["steps"]
        if gone >= 1:
            break
        targets, weights = batch.targets.view(-1)[batch.learnt], batch.weights.view(-1)[batch.learnt]

        def losses():
            with torch.autocast(device.type, torch.bfloat16, enabled=not args.f32):
                logits, balance, z = model.forward(batch)
            each = F.cross_entropy(logits.float(), targets, reduction="none")
            return (each * weights).sum() / weights.sum(), balance, z, logits

        if step == 0 and model.flex:
            model.flex = False
            with torch.no_grad():
                whole = losses()[0].item()
            try:
                model.flex = True
                loss = losses()[0]
                loss.backward()
                print(f"loss of the first batch with whole masks {whole:.5f}, with blocks {loss.item():.5f}", flush=True)
            except Exception as error:  # whatever compilers throw
                print(f"no attention in blocks: {error}", flush=True)
                model.flex = False
            for p in optimizer.all:
                p.grad = None
        loss, balance, z, logits = losses()
        (loss + balance_weight * balance + z_weight * z).backward()
        scale = rate_scale(step, schedule.get("warmup", 0), gone, schedule.get("decay", 0))
        norm = optimizer.step(scale)
        with torch.no_grad():
            sources = batch.sources.view(-1)[batch.learnt]
            right = (logits.argmax(-1) == targets) * weights
            sums[0].index_add_(0, sources, right)
            sums[1].index_add_(0, sources, weights)
        step += 1
        tokens += batch.rows
        if step % 50 == 0 or step <= 3:
            if not math.isfinite(loss.item()):
                sys.exit(f"accelerate: step {step}: the loss is {loss.item()}")
            right = (sums[0] / sums[1].clamp(min=1e-9)).tolist()
            now = time.monotonic()
            line = {
                "step": step, "loss": loss.item(), "balance": balance.item() / config.layers,
                "gradient_norm": norm.item(), "rate": scale, "tokens": tokens, "seconds": now - started,
                "tokens_per_second": (tokens - (0 if step <= 2 else counted)) / (now - since),
                "sources": dict(zip(names, right)),
            }
            print(json.dumps(line), file=metrics)
            print(
                f"step {step}: loss {line['loss']:.4f}, norm {line['gradient_norm']:.3f}, "
                f"{line['tokens_per_second']:,.0f} tokens/s, {minutes:.1f} min", flush=True
            )
            since, counted = now, tokens
            sums.zero_()
    batches.close()
    write_weights(model.weights, args.start, args.out, recipe["licence"])
    print(f"{step} steps, {tokens:,} tokens; wrote {args.out}")


if __name__ == "__main__":
    main()
