"""A training of a few seconds: a tiny Llama 4 with experts, on text and conversations made here."""

import json
import random

import harness  # of tests/cli: its tokenizer

CONFIG = {
    "architectures": ["Llama4ForCausalLM"],
    "model_type": "llama4_text",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "intermediate_size_mlp": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 1,
    "attention_chunk_size": 16,
    "no_rope_layers": [1, 1, 0],
    "moe_layers": [1, 2],
    "layer_types": ["chunked_attention", "chunked_attention", "full_attention"],
    "use_qk_norm": True,
    "attn_temperature_tuning": True,
    "floor_scale": 32,
    "attn_scale": 0.1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 1024,
    "hidden_act": "silu",
}


def text():
    words = "the harbour was quiet that morning and three boats lay beside the wall".split()
    numbers = random.Random(1)
    return "".join(
        " ".join(numbers.choices(words, k=numbers.randint(4, 9))) + ".\n\n\n" for _ in range(300)
    )


def conversations():
    lines = []
    for a in range(10):
        for b in range(10):
            turns = [("user", f"what is {a} and {b}?"), ("assistant", f"{a + b}.")]
            lines.append({"messages": [{"role": r, "content": c} for r, c in turns]})
    return "".join(json.dumps(line) + "\n" for line in lines)


def write(folder, **changes):
    """The recipe's path. Fields of the recipe can be changed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    harness.write_tokenizer(folder)
    (folder / "harbour.txt").write_text(text())
    (folder / "sums.jsonl").write_text(conversations())
    ours = {"licence": "CC0-1.0", "origin": "made by the test", "held_out": 0.2}
    recipe = {
        "name": "small",
        "licence": "cc0-1.0",
        "out": "out",
        "seed": 1,
        "model": {"config": "config.json", "tokenizer": "tokenizer.json"},
        "initialization": {"embedding": 0.1},
        "optimizer": {"muon": {"rate": 0.02}, "adamw": {"rate": 0.005, "decay": 0}},
        "schedule": {"warmup": 5, "decay": 0.2},
        "experts": {"selection_bias": {"rate": 0.01, "until": 0.5}},
        "sources": {
            "harbour": {"kind": "text", "files": ["harbour.txt"], "split": "\n\n\n", **ours},
            "sums": {"kind": "chat", "files": ["sums.jsonl"], **ours},
        },
        "checkpoint": {"every": 6, "keep": 2},
        "evaluate": {"every": 15, "examples": 8},
        "stages": [
            {"steps": 20, "tokens": 256, "micro": 128, "length": 64, "mixture": {"harbour": 1}},
            {
                "steps": 20,
                "tokens": 512,
                "micro": 256,
                "length": 64,
                "mixture": {"harbour": 1, "sums": 2},
            },
        ],
    }
    recipe.update(changes)
    path = folder / "recipe.json"
    path.write_text(json.dumps(recipe))
    return path


def timeless(path):
    """The lines of a metrics.jsonl, without what a clock says."""
    out = []
    for line in path.read_text().splitlines():
        values = json.loads(line)
        values.pop("tokens_per_second", None)
        out.append(values)
    return out
