#!/usr/bin/env python3
"""Compares Drover's chat formats with the models' own Jinja templates, rendered as the
`transformers` package renders them. Run by hand: the templates belong to others and are not in this
repository.

    pip install transformers==5.24.0 jinja2==3.1.6 tokenizers==0.23.3 gguf==0.19.0
    pip download --no-deps ldp==0.43.0            # holds the Llama 3.1 template
    pip download --no-deps llama-cpp-python==0.3.36   # llama_chat_format.py holds Llama 3's
    python tests/reference/chat_reference.py PROBE --shared ../shared/data
        --llama3 llama_cpp/llama_chat_format.py
        --llama31 ldp/nn/chat_templates/llama3.1_chat_template_hf.jinja
        --smollm SmolLM2-135M-Instruct.gguf
        [--golden tests/data/text/chat_golden.json]

Llama 4's template comes with transformers. For each format, 2,000 seeded conversations: the text
that the tokens spell must be the template's; the tokens must be those of the whole text encoded at
once, unless a content holds the text of a special token (ours must stay text), or, for Llama 4,
begins with a line break (chat_format.h says why). --golden also writes a few conversations of our
own with their rendered text and tokens, for chat_format_test.
"""
import argparse
import ast
import json
import pathlib
import random
import re
import sys
import tempfile

import tokenizer_check as check
from transformers.models.llama4 import processing_llama4
from transformers.utils.chat_template_utils import _compile_jinja_template

# Our own template in the shape of those that bring a system message of their own.
OUR_CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou\\'re in a \"test\".<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")

CONVERSATIONS = [
    [],
    [("user", "Hello!")],
    [("system", "  Be brief.\n"), ("user", "  two  spaces "), ("assistant", "Yes.\n"),
     ("user", "\tWhy?\u00a0\n\n")],
    [("user", "What is the weather?"), ("assistant", "[weather(city=\"Rome\")]"),
     ("tool", "{\"sky\": \"blue\\n\"}\n\t\x01é"), ("assistant", "Blue.")],
    [("system", "\x1c\u2003 x\u3000\x1f\u0085"), ("user", "\x1d\u00a0y\u200b\u2029"), ("assistant", "")],
    [("user", ""), ("system", " late \n"), ("developer", "naïve 日本 12345")],
]


def named_constant(path, name):
    for node in ast.parse(pathlib.Path(path).read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise KeyError(name)


def render(template, messages, bos, prompt):
    messages = [{"role": role, "content": content} for role, content in messages]
    return _compile_jinja_template(template).render(
        messages=messages, bos_token=bos, add_generation_prompt=prompt, date_string="26 Jul 2024")


def conversation(rng):
    out = []
    for i in range(rng.randint(1, 4)):
        role = rng.choice(["system", "user", "assistant", "tool", "user"])
        content = check.random_string(rng) if rng.random() < 0.9 else ""
        content = rng.choice(["", "", " ", "\n", "\u3000\x1c"]) + content + rng.choice(["", " \n"])
        out.append((role, content.replace("\r", "\n") if rng.random() < 0.5 else content))
    return out


def compare(label, judge, template, bos, probe, texts_differ):
    rng = random.Random(check.SEED)
    talks = [conversation(rng) for _ in range(2000)]
    wrong = same_tokens = 0
    with tempfile.TemporaryDirectory() as folder:
        saved, config = pathlib.Path(folder) / "tokenizer.json", pathlib.Path(folder) / "config.json"
        judge.save(str(saved))
        config.write_text(json.dumps({"bos_token": bos, "chat_template": template}))
        for mode, prompt in ((b"c", False), (b"g", True)):
            got = check.drover(probe, ["json", saved, config], [json.dumps(t) for t in talks], mode)
            for talk, tokens in zip(talks, got):
                text = render(template, talk, bos, prompt)
                # Bytes, so that tokens which are parts of characters count.
                spelled = judge.decode(tokens, skip_special_tokens=False)
                expected = judge.encode(text, add_special_tokens=False).ids
                ok = spelled == judge.decode(expected, skip_special_tokens=False)
                if not any(texts_differ(content) for _, content in talk):
                    ok = ok and tokens == expected
                    same_tokens += 1
                if not ok:
                    wrong += 1
                    if wrong < 4:
                        print(f"  {talk}\n    expected {text!r}\n    got      {spelled!r}")
    print(f"{label}: {2 * len(talks)} conversations, {same_tokens} also by tokens, {wrong} "
          "differences")
    return wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("probe")
    parser.add_argument("--shared", default="../shared/data", type=pathlib.Path)
    parser.add_argument("--llama3", required=True)
    parser.add_argument("--llama31", required=True)
    parser.add_argument("--smollm", required=True)
    parser.add_argument("--golden", type=pathlib.Path)
    args = parser.parse_args()

    from gguf import GGUFReader
    smollm_template = GGUFReader(args.smollm).fields["tokenizer.chat_template"].contents()
    judges = {name: check.judge_from_tiktoken(name, args.shared / name / "tokenizer.model")
              for name in ("llama4", "llama3")}
    judges["smollm"] = check.judge_from_smollm(args.smollm)
    llama_bos, special = "<|begin_of_text|>", re.compile(r"<\|")
    formats = {  # judge, template, bos, contents whose tokens may differ
        "llama4": ("llama4", processing_llama4.chat_template, llama_bos,
                   lambda c: special.search(c) or re.match(r"\s*[\r\n]", c)),
        "llama3": ("llama3", named_constant(args.llama3, "LLAMA3_INSTRUCT_CHAT_TEMPLATE"),
                   llama_bos, special.search),
        "llama3.1": ("llama3", pathlib.Path(args.llama31).read_text(), llama_bos, special.search),
        "chatml": ("smollm", smollm_template, "<|im_start|>", special.search),
        "chatml, ours": ("smollm", OUR_CHATML, "<|im_start|>", special.search),
    }
    wrong, golden = 0, {}
    for label, (name, template, bos, texts_differ) in formats.items():
        wrong += compare(label, judges[name], template, bos, args.probe, texts_differ)
        if label == "chatml":
            continue  # its system message is not ours to commit
        rows = golden[label.split(",")[0]] = []
        for talk in CONVERSATIONS:
            for prompt in (False, True):
                if not talk and name != "smollm":
                    continue  # Llama's templates need a message; ours begins with BOS even without
                text = render(template, talk, bos, prompt)
                tokens = judges[name].encode(text, add_special_tokens=False).ids
                rows.append({"messages": talk, "prompt": prompt, "text": text,
                             "tokens": tokens if name != "smollm" else None})
    golden["our_chatml_template"] = OUR_CHATML
    if args.golden:
        args.golden.write_text(json.dumps(golden, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
