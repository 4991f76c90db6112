"""What the tests of the command line share: a small model made by hand, ways to run the program,
and the few file formats that the tests read for themselves."""

import array
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import tempfile
import termios
import time
import unittest

GOLDENS = pathlib.Path("tests/data/goldens")
SMOLLM2 = pathlib.Path(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
drover = os.environ.get("DROVER", "")  # the binary; cli_test.py sets it

# The variables that steer the program are the tests' own.
CLEAN = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith(("DROVER", "XDG_", "LC_")) and key not in ("NO_COLOR", "LANG")
}

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|spare|>"]
LETTERS = list("\n abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"-:;()<|>_")
TOKENS = (
    SPECIAL + LETTERS + ["\udcc3", "\udca9", "th", "the", " t"]
)  # by id; two are halves of U+00E9
ALPHABET = {"\n": "\u010a", " ": "\u0120", "\udcc3": "\u00c3", "\udca9": "\u00a9"}
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def token_bytes(ids):
    return b"".join(TOKENS[i].encode("utf-8", "surrogateescape") for i in ids)


def write_tokenizer(folder, special=SPECIAL):
    spelled = ["".join(ALPHABET.get(c, c) for c in token) for token in TOKENS]
    vocabulary = {text: i for i, text in enumerate(spelled) if i >= len(SPECIAL)}
    (folder / "tokenizer.json").write_text(
        json.dumps(
            {
                "added_tokens": [
                    {"id": i, "content": text, "special": True} for i, text in enumerate(special)
                ],
                "pre_tokenizer": {
                    "type": "ByteLevel",
                    "add_prefix_space": False,
                    "use_regex": True,
                },
                "model": {
                    "type": "BPE",
                    "vocab": vocabulary,
                    "merges": ["t h", "th e", "\u0120 t"],
                },
            }
        )
    )
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": special[2], "chat_template": TEMPLATE})
    )


def copy_golden(golden, folder, tokenizer=True, **changes):
    """A golden checkpoint under another name, with the tokenizer, and with fields of its
    configuration changed."""
    folder.mkdir(parents=True)
    for path in (GOLDENS / golden).iterdir():
        if path.suffix != ".npy" and path.name not in ("tokens.json", "config.older.json"):
            shutil.copy(path, folder / path.name)
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer:
        write_tokenizer(folder)
    return folder


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def text(self):
        return self.out.decode("utf-8", "surrogateescape")

    @property
    def json(self):
        return json.loads(self.out)


def run(*args, stdin=b"", env=None, **more):
    """Runs the program to its end. stdin: bytes, or what subprocess takes."""
    given = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    done = subprocess.run(
        [drover, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**CLEAN, **(env or {})},
        timeout=120,
        **given,
        **more,
    )
    return Result(done.returncode, done.stdout, done.stderr.decode("utf-8", "surrogateescape"))


class Terminal:
    """The program on a pseudo-terminal of its own, as a person has it."""

    # libedit never frees the name of an added key function; a build with sanitizers would call that
    # a leak of ours. Through pipes, leaks are looked for.
    ENVIRONMENT = {
        "TERM": "xterm",
        "ASAN_OPTIONS": CLEAN.get("ASAN_OPTIONS", "") + ":detect_leaks=0",
    }

    def __init__(self, *args, env=None, stdout=None, cwd=None):
        try:
            self.pid, self.fd = pty.fork()
        except OSError as error:
            raise unittest.SkipTest(f"this system gives no terminals: {error}") from error
        if self.pid == 0:
            try:
                if cwd:
                    os.chdir(cwd)
                if stdout is not None:
                    os.dup2(stdout, 1)
                os.execve(
                    drover, [drover, *map(str, args)], {**CLEAN, **self.ENVIRONMENT, **(env or {})}
                )
            finally:
                os._exit(127)
        self.seen = b""
        self.code = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)

    def _read(self, seconds):
        if select.select([self.fd], [], [], seconds)[0]:
            try:
                piece = os.read(self.fd, 65536)
            except OSError:  # the other side is closed
                piece = b""
            self.seen += piece
            return piece != b""
        return None

    def expect(self, pattern, seconds=60):
        """Waits for a regular expression; what comes up to its end is consumed and returned."""
        end = time.monotonic() + seconds
        while True:
            match = re.search(pattern.encode(), self.seen)
            if match:
                before, self.seen = self.seen[: match.end()], self.seen[match.end() :]
                return before.decode("utf-8", "replace")
            if time.monotonic() > end or self._read(1) is False:
                raise AssertionError(f"expected {pattern!r}, got {self.seen[-2000:]!r}")

    def type(self, text):
        os.write(self.fd, text.encode())

    def ready(self, prompt="> "):
        """Waits for the prompt, and then until keys are keys: for a moment after it is shown
        Ctrl-C and Ctrl-D still mean to the terminal what they mean to a shell."""
        self.expect(prompt)
        end = time.monotonic() + 60
        while termios.tcgetattr(self.fd)[3] & termios.ICANON:
            if time.monotonic() > end:
                raise AssertionError("expected a line to be edited")
            time.sleep(0.001)

    def leave(self):
        self.ready()
        self.type("\x04")

    def wait(self, seconds=60):
        """To the end of the program: its exit code, or minus the signal that ended it."""
        end = time.monotonic() + seconds
        while self._read(1) is not False:
            if time.monotonic() > end:
                raise AssertionError(f"expected the program to end, got {self.seen[-2000:]!r}")
        pid, status = os.waitpid(self.pid, 0)
        self.code = os.waitstatus_to_exitcode(status)
        return self.code

    @property
    def rest(self):
        return self.seen.decode("utf-8", "replace")


def safetensors_shapes(folder):
    """name -> shape, read from the headers of all weights of a folder."""
    out = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        (length,) = struct.unpack_from("<Q", data)
        for name, entry in json.loads(data[8 : 8 + length]).items():
            if name != "__metadata__":
                out[name] = entry["shape"]
    return out


def write_adapter(folder, tensors, **settings):
    """An adapter as PEFT writes it; tensors: name -> (shape, values), the names without what is the
    same in all."""
    folder.mkdir()
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        raw = array.array("f", values).tobytes()
        span = [len(data), len(data) + len(raw)]
        name = f"base_model.model.model.{name}.weight"
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": span}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    weights = struct.pack("<Q", len(text)) + text + data
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **settings}))
    return folder


def read_npy(path):
    """Rows of a float32 array of two dimensions."""
    data = path.read_bytes()
    assert data[:8] == b"\x93NUMPY\x01\x00", data[:8]
    (length,) = struct.unpack_from("<H", data, 8)
    assert (10 + length) % 64 == 0, "the data is not aligned"
    header = data[10 : 10 + length].decode()
    assert "'<f4'" in header and "'fortran_order': False" in header, header
    rows, cols = map(int, re.search(r"\((\d+), (\d+)\)", header).groups())
    values = array.array("f", data[10 + length :])
    assert len(values) == rows * cols, header
    return [values[i * cols : (i + 1) * cols] for i in range(rows)]


class CliTest(unittest.TestCase):
    """A test with a folder of its own, the models of all tests, and sentences to expect."""

    @classmethod
    def setUpClass(cls):
        cls._shared = tempfile.TemporaryDirectory(prefix="drover-cli-")
        shared = pathlib.Path(cls._shared.name)
        cls.scout = copy_golden("scout", shared / "scout")
        cls.llama = copy_golden("llama", shared / "llama")
        # Answers without an end in sight: a long context, and control tokens that are never the
        # best, since their rows of the output matrix are zero.
        cls.endless = copy_golden("scout", shared / "endless", max_position_embeddings=1 << 20)
        (cls.endless / "generation_config.json").write_text('{"do_sample": false}')
        with open(cls.endless / "model.safetensors", "r+b") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            begin, end = json.loads(file.read(length))["lm_head.weight"]["data_offsets"]
            file.seek(8 + length + begin)
            file.write(bytes(len(SPECIAL) * (end - begin) // 64))

    @classmethod
    def tearDownClass(cls):
        cls._shared.cleanup()

    def setUp(self):
        temporary = tempfile.TemporaryDirectory(prefix="drover-cli-")
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def good(self, *args, **more):
        result = run(*args, **more)
        self.assertEqual(result.code, 0, result.err)
        return result

    def bad(self, code, words, *args, **more):
        """The program refuses with this exit code and says these words; nothing is on standard
        output."""
        result = run(*args, **more)
        self.assertEqual(result.code, code, f"{args}: {result.err}")
        for word in [words] if isinstance(words, str) else words:
            self.assertIn(word, result.err)
        self.assertNotIn("terminate", result.err)
        return result
