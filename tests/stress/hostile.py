"""Requests that no server should fall for, of every kind, from a seed.

case(seed, number) is always the same request. Each says what may come back: an answer of 4xx, or a
closed connection where the request itself was cut short; after as many good answers as it has good
requests in front. Nothing here is valid by accident: what a server may answer with 200 is left out.
"""

import base64
import json
import random
import struct
import zlib
from dataclasses import dataclass, field


@dataclass
class Case:
    kind: str
    data: bytes
    good: int = 0  # good requests in front
    finish: bool = False  # then the client closes its side
    may_close: bool = False  # the server need not answer
    also: tuple = ()  # statuses beside 4xx
    cuts: list = field(default_factory=list)  # where the bytes are sent in pieces


# A good body for every address; what is wrong is put into it.
GOOD = {
    "/v1/chat/completions": {
        "model": "m",
        "messages": [{"role": "user", "content": "the sea"}],
        "max_tokens": 2,
    },
    "/v1/completions": {"model": "m", "prompt": "the sea", "max_tokens": 2},
    "/v1/embeddings": {"model": "m", "input": "the sea"},
    "/v1/responses": {"model": "m", "input": "the sea", "max_output_tokens": 2},
    "/v1/messages": {
        "model": "m",
        "messages": [{"role": "user", "content": "the sea"}],
        "max_tokens": 2,
    },
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "the sea"}]},
    "/tokenize": {"content": "the sea"},
    "/detokenize": {"tokens": [70, 71]},
}
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
# For what is wrong outside of the body: taken by mistake, it would be answered with 200.
BODY = b'{"prompt":"a","max_tokens":1}'
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

# fmt: off
# Values of another type than the field's, as they stand in the text.
WRONG = {
    "number": ['"1"', "true", "[]", "{}", "[1]", '""', "1e999", "-1e999"],
    "integer": [
        '"1"', "true", "[]", "{}", "[1]", "1.5", "1e30", "0.1", "1e999", str(2**63),
        str(-(2**63) - 1), "9" * 40,
    ],
    "boolean": ['"true"', "1", "0", "[]", "{}", '""', "-1"],
    "text": ["5", "true", "[]", "{}", "1.5", '["m"]'],
    "object": ["5", '"x"', "true", "[]", "[{}]"],
    "texts": ["5", "true", "{}", "[5]", "[null]", "[[]]", '["a",5]'],
    "integers": ["5", '"x"', "{}", '["1"]', "[1.5]", "[null]", "[[1]]"],
}
ANSWERS = {
    "model": "text", "temperature": "number", "top_p": "number", "min_p": "number",
    "presence_penalty": "number", "frequency_penalty": "number", "repeat_penalty": "number",
    "repetition_penalty": "number", "top_k": "integer", "seed": "integer", "n": "integer",
    "max_tokens": "integer", "max_completion_tokens": "integer", "priority": "integer",
    "stream": "boolean", "ignore_eos": "boolean", "skip_special_tokens": "boolean",
    "stream_options": "object", "logit_bias": "object", "stop": "texts",
    "stop_token_ids": "integers",
}
FIELDS = {
    CHAT: ANSWERS | {"logprobs": "boolean", "top_logprobs": "integer"},
    COMPLETION: ANSWERS | {"echo": "boolean", "logprobs": "integer"},
    "/v1/embeddings": {"model": "text", "dimensions": "integer", "encoding_format": "text"},
    "/v1/responses": {
        "model": "text", "temperature": "number", "top_p": "number", "instructions": "text",
        "max_output_tokens": "integer", "stream": "boolean", "top_logprobs": "integer",
        "truncation": "text", "text": "object", "metadata": "object",
        "parallel_tool_calls": "boolean", "seed": "integer",
    },
    "/v1/messages": {
        "model": "text", "temperature": "number", "top_p": "number", "top_k": "integer",
        "max_tokens": "integer", "stream": "boolean", "thinking": "object",
        "stop_sequences": "texts", "tool_choice": "object",
    },
    "/tokenize": {"content": "text", "add_special": "boolean", "parse_special": "boolean"},
    "/detokenize": {"tokens": "integers"},
}

# Of the right type, and out of its range.
ANSWERS_BEYOND = {
    "temperature": ["-0.1", "-1e300", "1e300"], "top_p": ["0", "-1", "1.0001", "1e300"],
    "min_p": ["-0.001", "1.1"], "repeat_penalty": ["0", "-1", "1e300"],
    "presence_penalty": ["1e300", "-1e300"], "frequency_penalty": ["1e300"],
    "n": ["0", "-1", "129", str(2**63 - 1), str(-(2**63))], "best_of": ["2", "-1", str(2**63 - 1)],
    "max_tokens": ["-1", str(-(2**63))], "max_completion_tokens": ["-2", str(-(2**63))],
    "priority": ["1001", "-1001", str(2**63 - 1)],
    "stop_token_ids": ["[-1]", "[1000000000]", f"[{2**63 - 1}]"],
    "logit_bias": [
        '{"1000000000":1}', '{"-1":1}', '{"a":1}', '{"":1}', '{"1":101}', '{"1":-100.5}',
        '{"1":"x"}', '{"1":null}', '{"01":1}', '{"1.0":1}', '{"99999999999999999999":1}',
        '{" 1":1}', "{" + ",".join(f'"{i}":1' for i in range(4097)) + "}",
    ],
    "stream_options": ['{"include_usage":1}', '{"include_usage":"yes"}'],
    "model": ['"another"', '"../../etc/passwd"', '"m\\u0000"', '"' + "m" * 5000 + '"'],
    "response_format": [
        '{"type":"json_object"}', '{"type":"json_schema"}', '{"type":5}', '"json"', "5",
    ],
    "modalities": ['["audio"]', '["text","audio"]', '"text"'], "audio": ['{"voice":"x"}'],
    "prediction": ['{"type":"content","content":"x"}'], "grammar": ['"root ::= x"'],
    "guided_json": ['{"type":"object"}', '{"$ref":"#"}'], "guided_regex": ['"(a+)+$"'],
    "structured_outputs": ['{"regex":"a"}'], "use_beam_search": ["true"],
}
BEYOND = {
    CHAT: ANSWERS_BEYOND
    | {
        "top_logprobs": ["1", "-1", "21", "1000"],
        "tools": [
            "5", '"x"', "{}", "[5]", "[{}]", '[{"type":"function"}]',
            '[{"type":"function","function":5}]', '[{"type":"function","function":{}}]',
            '[{"type":"function","function":{"name":5}}]',
            '[{"type":"function","function":{"name":""}}]',
            '[{"type":"function","function":{"name":"a b"}}]',
            '[{"type":"function","function":{"name":"' + "f" * 200 + '"}}]',
            '[{"type":"function","function":{"name":"f"}},{"type":"function","function":{"name":"f"}}]',
        ],
        "tool_choice": [
            '"always"', "5", "[]", '{"type":"function"}',
            '{"type":"function","function":{"name":"f"}}', '"required"',
        ],
        "functions": ['[{"name":"f"}]'],
        "messages": [
            "[]", "{}", '"hi"', "5", "null", "[5]", "[[]]", "[null]", "[{}]", '[{"role":"user"}]',
            '[{"content":"x"}]', '[{"role":"wizard","content":"x"}]',
            '[{"role":"","content":"x"}]', '[{"role":5,"content":"x"}]',
            '[{"role":"user","content":5}]', '[{"role":"user","content":{}}]',
            '[{"role":"user","content":[5]}]', '[{"role":"user","content":[{}]}]',
            '[{"role":"user","content":[{"type":"text"}]}]',
            '[{"role":"user","content":[{"type":"text","text":5}]}]',
            '[{"role":"user","content":[{"type":"input_audio","input_audio":{}}]}]',
            '[{"role":"user","content":[{"type":5}]}]', '[{"role":"user","content":[["text"]]}]',
            '[{"role":"assistant","tool_calls":5}]', '[{"role":"assistant","tool_calls":[5]}]',
            '[{"role":"assistant","tool_calls":[{}]}]',
            '[{"role":"assistant","tool_calls":[{"function":{"name":5}}]}]',
            '[{"role":"user","content":"x","tool_calls":[{"function":{"name":"f","arguments":"{}"}}]}]',
        ],
    },
    COMPLETION: ANSWERS_BEYOND
    | {
        "logprobs": ["-1", "21", "1000", str(2**63 - 1)],
        "suffix": ['"x"'],
        "prompt": [
            "5", "{}", "[]", "[[]]", "[true]", "[null]", '[1,"a"]', '["a",1]', "[-1]",
            "[1000000000]", "[1.5]", "[[1],[-1]]", "[[1.5]]", '[["a"]]', f"[{2**63}]",
            "[" + ",".join(['"a"'] * 2049) + "]",
        ],
        "tools": ['[{"type":"function","function":{"name":"f"}}]'],
    },
    "/v1/embeddings": {
        "dimensions": ["7", "-1", str(2**63 - 1)],
        "encoding_format": ['"int8"', '""'],
        "input": [
            "5", "{}", "[]", "[[]]", "[true]", "[null]", '[1,"a"]', "[-1]", "[1000000000]",
            '[["a"]]', "[[1.5]]", "[" + ",".join(['"a"'] * 2049) + "]",
        ],
        "model": ['"another"'],
    },
    "/v1/responses": {
        "input": ["5", "{}", "true", "[5]", "[{}]", '[{"role":"wizard","content":"x"}]'],
        "max_output_tokens": ["-1", str(-(2**63))],
        "temperature": ["-0.1", "1e300"], "top_p": ["0", "1.1"], "model": ['"another"'],
        "previous_response_id": ['"resp_1"'], "background": ["true"],
        "tools": ["5", "[5]", "[{}]", '[{"type":"web_search"}]'],
        "text": ['{"format":{"type":"json_schema"}}'], "truncation": ['"auto"', '"never"'],
    },
    "/v1/messages": {
        "messages": [
            "[]", "{}", "5", "null", "[5]", "[{}]", '[{"role":"wizard","content":"x"}]',
            '[{"role":"user"}]', '[{"role":"user","content":5}]',
            '[{"role":"user","content":[5]}]', '[{"role":"user","content":[{"type":"audio"}]}]',
        ],
        "max_tokens": ["-1", "null", str(-(2**63))], "model": ['"another"'],
        "temperature": ["-0.1", "1e300"], "top_p": ["0", "1.1"],
        "thinking": ['{"type":"enabled","budget_tokens":1024}'], "container": ['"x"'],
        "tools": ["5", "[5]", "[{}]", '[{"name":5,"input_schema":{}}]', '[{"name":"f"}]'],
        "tool_choice": ['{"type":"tool","name":"f"}', '{"type":"sometimes"}'],
    },
    "/v1/messages/count_tokens": {"messages": ["[]", "5", "[5]", "[{}]", "null"]},
    "/tokenize": {
        "content": ["{}", "[]", "5"],
        "messages": ["[]", "5", "{}", '[{"role":"wizard","content":"x"}]'],
    },
    "/detokenize": {"tokens": ["[-1]", "[1000000000]", f"[{2**63}]", "{}", '"70"', "null"]},
}


def body_with(path, name, raw):
    """The good body with one field's value in the place of its own."""
    rest = {k: v for k, v in GOOD[path].items() if k != name}
    text = json.dumps(rest)[:-1]
    return (text + ("," if rest else "") + json.dumps(name) + ":" + raw + "}").encode()


def post(path, body, head=b""):
    return (
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        % (path.encode(), len(body))
        + head
        + b"\r\n"
        + body
    )


# ---- what is wrong with the JSON ----


def wrong_type(r):
    path = r.choice(list(FIELDS))
    name = r.choice(list(FIELDS[path]))
    return Case(
        "wrong type", post(path, body_with(path, name, r.choice(WRONG[FIELDS[path][name]])))
    )


def out_of_range(r):
    path = r.choice(list(BEYOND))
    name = r.choice(list(BEYOND[path]))
    return Case("out of range", post(path, body_with(path, name, r.choice(BEYOND[path][name]))))


def broken_json(r):
    path = r.choice(list(GOOD))
    good = json.dumps(GOOD[path]).encode()
    inside = good.index(b"the sea") if b"the sea" in good else good.index(b"70")
    put = lambda junk: good[:inside] + junk + good[inside:]
    any_byte = bytes([r.randrange(0x80, 0x100)])
    body = r.choice(
        [
            lambda: good[: r.randrange(len(good))],  # cut
            lambda: good + r.choice([b"}", b"{}", b",", b"x", b"\0", good]),  # and more
            lambda: b"\xef\xbb\xbf" + good,
            lambda: good.decode().encode("utf-16"),
            lambda: good.replace(b'"', b"'"),
            lambda: good[:-1] + b",}",
            lambda: b"/* */" + good,
            lambda: (
                good[:-1]
                + b',"x":'
                + r.choice(
                    [
                        b"NaN", b"Infinity", b"-Infinity", b"nan", b"0x10", b"01", b"1.", b".5",
                        b"+1", b"--1", b"1e", b"tru", b"None", b"undefined",
                    ]
                )
                + b"}"
            ),
            lambda: (
                good[:-1]
                + b',"x":'
                + r.choice(
                    [
                        b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud800x"', b'"\\x41"', b'"\\u12"',
                        b'"\\u12g4"', b'"\n"', b'"\x01"', b'"', b'"\\"',
                    ]
                )
                + b"}"
            ),
            lambda: put(b"\xff"),
            lambda: put(
                r.choice(
                    [
                        b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\x80",
                        b"\xf8\x88\x80\x80\x80",
                    ]
                )
            ),
            lambda: put(any_byte),
            lambda: put(b"\0"),
            lambda: r.choice(
                [
                    b"", b" ", b"\n\n", b"[]", b'"x"', b"5", b"null", b"true",
                    b"{",
                    b"}",
                    b"[{}]", b"{5:1}", b"{null:1}",
                ]
            ),
            lambda: r.randbytes(r.randrange(1, 300)),
            lambda: zlib.compress(good),
        ]
    )()
    return Case("broken JSON", post(path, body))


def twice(r):
    path = r.choice(list(GOOD))
    name = r.choice(list(GOOD[path]))
    body = json.dumps(GOOD[path])[:-1] + f",{json.dumps(name)}:{json.dumps(GOOD[path][name])}}}"
    return Case("key twice", post(path, body.encode()))


def deep(r):
    path = r.choice(list(GOOD))
    depth = r.choice([65, 100, 1000, 10_000, 100_000])
    name = r.choice(["x", *GOOD[path]])
    left, right = r.choice([("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
    inner = left * depth + ("1" + right * depth if r.random() < 0.7 else "")
    return Case("depth", post(path, body_with(path, name, inner)))


def large(r):
    """Well-formed, and more than there is room for."""
    path, name, raw = r.choice(
        [
            (COMPLETION, "prompt", lambda: '"' + "a " * 50_000 + '"'),
            (COMPLETION, "prompt", lambda: "[" + ",".join(["70"] * 50_000) + "]"),
            (
                CHAT,
                "messages",
                lambda: "[" + ",".join(['{"role":"user","content":"a"}'] * 20_000) + "]",
            ),
            ("/v1/embeddings", "input", lambda: '"' + "sea " * 50_000 + '"'),
            (COMPLETION, "prompt", lambda: "[" + ",".join(["[]"] * 700_000) + "]"),
            (COMPLETION, "temperature", lambda: "1" * r.choice([400, 10_000, 1_000_000])),
            (COMPLETION, "n", lambda: "1" * r.choice([100, 10_000, 1_000_000])),
            (
                COMPLETION,
                "stop",
                lambda: "[" + ",".join(['"s"'] * r.choice([17, 1000, 20_000])) + "]",
            ),
            (CHAT, "stop", lambda: json.dumps([chr(97 + i % 26) * i for i in range(1, 200)])),
            (
                CHAT,
                "tools",
                lambda: json.dumps(
                    [
                        {
                            "type": "function",
                            "function": {"name": f"f{i}", "parameters": {"type": "object"}},
                        }
                        for i in range(20_000)
                    ]
                ),
            ),
        ]
    )
    return Case("too much", post(path, body_with(path, name, raw())))


# ---- pictures ----


def chunk(name, data, good=True):
    crc = zlib.crc32(name + data) ^ (0 if good else 1)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def png(width, height, depth=8, colour=2, rows=None, good=True):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = b"".join(b"\0" + bytes(width * 3) for _ in range(height)) if rows is None else rows
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header, good)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def picture(r):
    small = png(8, 8)
    jpeg = b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
    data = r.choice(
        [
            lambda: small[: r.randrange(1, len(small) - 24)],
            lambda: png(65535, 65535, rows=b"\0" * 300),
            lambda: png(1, 2**31 - 1, rows=b"\0" * 300),
            lambda: png(0, 8, rows=b""),
            lambda: png(2**31, 1, rows=b"\0"),
            lambda: png(8, 8, depth=7),
            lambda: png(8, 8, colour=5),
            lambda: png(8, 8, colour=3),
            lambda: png(8, 8, good=False),
            lambda: png(30_000, 30_000, rows=bytes(1000)),
            lambda: small[:8] + r.randbytes(200),
            lambda: jpeg + r.randbytes(r.randrange(300)),
            lambda: jpeg + b"\xff\xc0\0\x11\x08\xff\xff\xff\xff\3\1\x22\0\2\x11\1\3\x11\1",
            lambda: jpeg + b"\xff\xd9",
            lambda: b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WEBPVP8 " + r.randbytes(100),
            lambda: b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6 + bytes(6),
            lambda: b"GIF89a" + r.randbytes(100),
            lambda: b"BM" + r.randbytes(100),
            lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>',
            lambda: r.randbytes(r.randrange(1, 2000)),
            lambda: b"",
        ]
    )()
    text = base64.b64encode(data).decode()
    url = r.choice(
        [
            lambda: "data:image/png;base64," + text,
            lambda: "data:image/jpeg;base64," + text,
            lambda: "data:;base64," + text,
            lambda: "data:image/png," + text,
            lambda: "data:image/png;base64," + text[:-1] + "\u00e9",
            lambda: "data:image/png;base64,=" + text + "=====",
            lambda: "data:image/png;base64",
            lambda: "data:" * 1000,
            lambda: r.choice(
                [
                    "file:///etc/passwd", "ftp://x/a.png", "javascript:alert(1)", "/etc/passwd",
                    "", "gopher://127.0.0.1:1/", "http://127.0.0.1:1/a.png",
                    "http://169.254.169.254/latest/meta-data", "http://[::ffff:127.0.0.1]/a",
                ]
            ),
        ]
    )()
    part = {"type": "image_url", "image_url": {"url": url} if r.random() < 0.8 else url}
    content = [{"type": "text", "text": "look"}] * r.randrange(2) + [part]
    raw = json.dumps([{"role": "user", "content": content}])
    return Case("picture", post(CHAT, body_with(CHAT, "messages", raw)))


# ---- what is wrong with the message itself ----


def lengths(r):
    size = b"%d" % len(BODY)
    value = r.choice(
        [
            b"-1", b"-" + size, b"+" + size, b"0x%x" % len(BODY), size + b" " + size, size + b",",
            size + b", " + size, size + b", 15", b"", b"1e1", size + b".0", size + b";",
            b"'" + size + b"'", b"\xd9\xa1", size + b"\x0b", b"99999999999999999999999",
            b"%d" % (2**64 + len(BODY)), b"%d" % 2**63, b"1" * 1000, b"68719476736",
            b"100000000000",
        ]
    )
    return Case("Content-Length", POST + b"Content-Length: " + value + b"\r\n\r\n" + BODY)


def smuggle(r):
    inner = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    length = b"Content-Length: %d\r\n" % r.choice([len(BODY), len(chunked), 0, 4])
    coding = r.choice([b"chunked", b"Chunked", b"chunked ", b"\tchunked"])
    name = r.choice([b"Transfer-Encoding: ", b"transfer-encoding:", b"TRANSFER-ENCODING: "])
    transfer = name + coding + b"\r\n"
    fields = r.choice(
        [
            length + transfer, transfer + length, length + length,
            length + b"Content-Length: 5\r\n", transfer + transfer,
            b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: chunked, gzip\r\n",
            b"Transfer-Encoding: chunked, chunked\r\n", b"Transfer-Encoding: identity\r\n",
            b"Transfer-Encoding: xchunked\r\n", b"Transfer-Encoding: chunked;q=1\r\n",
            b"Transfer-Encoding: \x0bchunked\r\n", b"Transfer-Encoding : chunked\r\n",
            b"Transfer-Encoding:\r\n chunked\r\n", b"Content-Length : %d\r\n" % len(BODY),
            b"Host: other\r\n" + length,
        ]
    )
    # RFC 9112, 6.1, asks for 501 where the coding is not known.
    rest = r.choice([BODY, chunked]) + r.choice([b"", inner])
    return Case("smuggling", POST + fields + b"\r\n" + rest, also=(501,))


def chunks(r):
    n, end = b"%x" % len(BODY), b"\r\n0\r\n\r\n"
    body = r.choice(
        [
            b"g\r\n", b"-1\r\n", b"\r\n", b"\0\r\n", b"1" * 40 + b"\r\n",
            b"0x" + n + b"\r\n" + BODY + end, b" " + n + b"\r\n" + BODY + end,
            b"+" + n + b"\r\n" + BODY + end, n + b"\n" + BODY + b"\n0\n\n",
            n + b"\r\n" + BODY + b"x" + end, n + b"\r\n" + BODY + b"0\r\n\r\n",
            b"ffffffffffffffff\r\n", b"fffffffffffffffff\r\n", b"7fffffffffffffff\r\n",
            n + b";" + b"x" * 30_000, n + b" " * 30_000,
            n + b"\r\n" + BODY + b"\r\n0\r\nBad\r\n\r\n",
            n + b"\r\n" + BODY + b"\r\n0\r\nx: " + b"y" * 30_000,
            n + b"\r\n" + BODY + b"\r\n0\r\n" + b"x: y\r\n" * 20_000,
        ]
    )
    return Case("chunks", POST + b"Transfer-Encoding: chunked\r\n\r\n" + body)


def header(r):
    get = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
    line = r.choice(
        [
            b"no colon\r\n", b": x\r\n", b"a b: x\r\n", b"a : x\r\n", b"a\0b: x\r\n",
            b"a: x\0y\r\n", b"a: x\x01\r\n", b"a: x\x7f\r\n", b"a: x\r\n folded\r\n", b" a: x\r\n",
            b"\ta: x\r\n", b"a: x\n", b"a: x\rb: y\r\n", b"(a): x\r\n", b"a@: x\r\n",
            b"\xc3\xa9: x\r\n", b"a: " + b"x" * r.choice([17_000, 60_000]) + b"\r\n",
            b"".join(b"h%d: x\r\n" % i for i in range(r.choice([101, 500]))),
            b"a" * 17_000 + b": x\r\n", b"Host: localhost\r\n", b"Host: evil.example\r\n",
            b"Expect: a miracle\r\n", b"Expect: 100-continue, x\r\n",
            b"Authorization: a\r\nAuthorization: b\r\n",
        ]
    )
    return Case("header", get + line + b"\r\n")


def host(r):
    line = r.choice(
        [
            b"", b"Host: evil.example\r\n", b"Host:\r\n", b"Host: localhost.evil.example\r\n",
            b"Host: 127.0.0.1.evil.example:80\r\n", b"Host: localhost@evil.example\r\n",
            b"Host: evil.example:127.0.0.1\r\n",
        ]
    )
    return Case("Host", b"GET /v1/models HTTP/1.1\r\n" + line + b"\r\n")


def request_line(r):
    line = r.choice(
        [
            b"GET\r\n", b"GET /v1/models\r\n", b" GET /v1/models HTTP/1.1\r\n",
            b"GET  /v1/models HTTP/1.1\r\n", b"GET /v1/models  HTTP/1.1\r\n",
            b"GET\t/v1/models\tHTTP/1.1\r\n", b"GET /v1/mo dels HTTP/1.1\r\n",
            b"G\0T /v1/models HTTP/1.1\r\n", b"get /v1/models HTTP/1.1\r\n",
            b"DELETE /v1/models HTTP/1.1\r\n", b"TRACE / HTTP/1.1\r\n",
            b"CONNECT localhost:443 HTTP/1.1\r\n", b"OPTIONS * HTTP/1.1\r\n",
            b"PRI * HTTP/2.0\r\n", b"A" * r.choice([33, 5000]) + b" / HTTP/1.1\r\n",
            b"G@T / HTTP/1.1\r\n", b"(GET) / HTTP/1.1\r\n", b"GET /v1/models HTTP/0.9\r\n",
            b"GET /v1/models HTTP/2.0\r\n", b"GET /v1/models HTTP/1.2\r\n",
            b"GET /v1/models HTTP/1.1x\r\n", b"GET /v1/models http/1.1\r\n",
            b"GET /v1/models HTTP/11\r\n", b"GET /v1/models HTTP/1.\r\n",
            b"GET /v1/models HTTP/1.1\n", b"GET /v1/models HTTP/1.1\r",
            b"GET http://localhost/v1/models HTTP/1.1\r\n",
            b"GET //localhost/v1/models HTTP/1.1\r\n", b"GET v1/models HTTP/1.1\r\n",
            b"GET * HTTP/1.1\r\n", b"GET /v1/models#x HTTP/1.1\r\n", b"GET /%zz HTTP/1.1\r\n",
            b"GET /% HTTP/1.1\r\n", b"GET /%00 HTTP/1.1\r\n", b"GET /%0d%0aX:%20y HTTP/1.1\r\n",
            b"GET /%c0%af HTTP/1.1\r\n", b"GET /\xff HTTP/1.1\r\n",
            b"GET /v1/models?x=%zz HTTP/1.1\r\n", b"GET /v1/models?%00 HTTP/1.1\r\n",
            b"GET /v1/models/../../etc/passwd HTTP/1.1\r\n",
            b"GET /v1/models/%2e%2e%2fsecret HTTP/1.1\r\n", b"GET /etc/passwd HTTP/1.1\r\n",
            b"GET /" + b"a" * r.choice([9000, 40_000]) + b" HTTP/1.1\r\n",
            b"GET /?" + b"a" * 9000 + b" HTTP/1.1\r\n", b"PUT /v1/completions HTTP/1.1\r\n",
            b"GET /v1/completions HTTP/1.1\r\n", b"POST /v1/models HTTP/1.1\r\n",
            b"PATCH /health HTTP/1.1\r\n",
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + r.randbytes(64) + b"\r\n", b"\r\n\r\n",
            b"\n", b"\0" * 64 + b"\r\n",
        ]
    )
    return Case("request line", line + b"Host: localhost\r\n\r\n")


def type_of_body(r):
    path = r.choice(list(GOOD))
    kind = r.choice(
        [
            b"text/plain", b"application/x-www-form-urlencoded",
            b"multipart/form-data; boundary=x", b"application/octet-stream", b"*/*", b"image/png",
            b"",
        ]
    )
    body = json.dumps(GOOD[path]).encode()
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return Case("type of body", head % (path.encode(), kind, len(body)) + body)


def no_body(r):
    path = r.choice(list(GOOD)).encode()
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\n" % path
    return Case(
        "no body",
        head
        + r.choice([b"", b"Content-Length: 0\r\n", b"Content-Type: application/json\r\n"])
        + b"\r\n",
    )


def cut(r):
    path = r.choice(list(GOOD))
    body = json.dumps(GOOD[path]).encode()
    whole = post(path, body)
    if r.random() < 0.3:
        whole = whole.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
        whole = whole[: -len(body)] + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return Case("cut short", whole[: r.randrange(1, len(whole))], finish=True, may_close=True)


def garbage(r):
    data = r.randbytes(r.randrange(1, 2000))
    if r.random() < 0.5:
        data = bytes(32 + b % 95 for b in data)
    return Case("garbage", data + b"\r\n\r\n", finish=True, may_close=True)


def pipelined(r):
    good = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    count = r.randrange(1, 4)
    bad = r.choice([request_line, header, lengths, broken_json, smuggle])(r)
    return Case("pipelined " + bad.kind, good * count + bad.data, good=count, also=bad.also)


KINDS = [
    (wrong_type, 20), (out_of_range, 20), (broken_json, 15), (twice, 2), (deep, 3), (large, 2), (picture, 8),
    (lengths, 4), (smuggle, 6), (chunks, 4), (header, 6), (host, 2), (request_line, 8), (type_of_body, 2), (no_body, 1),
    (cut, 5), (garbage, 2), (pipelined, 4),
]


def case(seed, number):
    r = random.Random(f"{seed}:{number}")
    out = r.choices([make for make, _ in KINDS], [weight for _, weight in KINDS])[0](r)
    if r.random() < 0.3:
        out.cuts = sorted(r.randrange(1, max(2, len(out.data))) for _ in range(r.randrange(1, 5)))
    return out
