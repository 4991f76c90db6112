"""What the tests of real clients share: servers in processes of their own, and where they listen.

A test file is started as

    python FILE_test.py DROVER SCRIPTED_SERVER [unittest arguments]

and ends with `server.main()`. Servers choose a free port themselves, so tests may run side by side.
"""

import atexit
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import unittest

sys.dont_write_bytecode = True  # the source tree stays as it is

SMOLLM2 = pathlib.Path(".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
# Tests run side by side: threads that wait for each other on a busy machine are slower than one.
ONE_THREAD = ["--threads", "1"]
drover = scripted = ""  # the programs; main() sets them

# The variables that steer the programs and the clients are the tests' own: none reports to anybody,
# none goes through a proxy.
STEERING = re.compile(r"(DROVER|OPENAI|ANTHROPIC|LANGCHAIN|LANGSMITH)_|.*_PROXY$", re.IGNORECASE)
CLEAN = {key: value for key, value in os.environ.items() if not STEERING.match(key)}


class Server:
    """`drover serve MODEL`, or the program that `command` says, from ready to stopped."""

    started = staticmethod(lambda address: None)  # hears of every server

    def __init__(self, model, *flags, command=None):
        command = command or [drover, "serve"]
        self.process = subprocess.Popen(
            [*command, str(model), *map(str, flags)], stderr=subprocess.PIPE, text=True, env=CLEAN
        )
        self.lines = []  # of its log
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"listening on (\S+)", line):
                self.address = found[1]
            if line == "ready\n":
                break
        else:
            self.process.wait()
            self.process.stderr.close()
            raise RuntimeError("the server did not start: " + "".join(self.lines))
        self.rest = threading.Thread(target=lambda: self.lines.extend(self.process.stderr))
        self.rest.start()
        self.started(self.address)

    @property
    def base(self):
        return self.address + "/v1"

    def stop(self):
        """Ends it in order; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.rest.join()
        self.process.stderr.close()
        return code


def smol(*flags):
    """SmolLM2, which really answers."""
    if not SMOLLM2.exists():
        raise unittest.SkipTest("SmolLM2 is not there; script/fetch-smollm2 brings it")
    return Server(SMOLLM2, "--port", 0, "--alias", "smol", *ONE_THREAD, *flags)


@functools.cache
def tiny_model():
    """The file of a Llama 4 in miniature with eyes and random weights: it speaks nonsense."""
    folder = tempfile.mkdtemp(prefix="drover-clients-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = pathlib.Path(folder) / "tiny.gguf"
    make = [drover, "bench", "--make", "tiny-vision", str(path), "--type", "f32"]
    subprocess.run(make, check=True, capture_output=True, env=CLEAN)
    return path


def tiny(*flags):
    return Server(tiny_model(), "--port", 0, "--alias", "tiny", *ONE_THREAD, *flags)


def scripting():
    """A server whose model says what stands in its user's message (scripted_server.cpp)."""
    return Server(tiny_model(), command=[scripted])


def say(*parts):
    """A message that makes the scripted model say these, one in each of its turns."""
    return "Help me.\nSay:\n" + "\n---\n".join(parts)


def score(model, text):
    """What `drover score` says of a text."""
    done = subprocess.run(
        [drover, "score", str(model), "--text", "-", "--json", *ONE_THREAD],
        input=text.encode(),
        check=True,
        capture_output=True,
        env=CLEAN,
    )
    return json.loads(done.stdout)


class ServedTest(unittest.TestCase):
    """Tests of one server that all of a class share; `start` makes it."""

    start = None

    @classmethod
    def setUpClass(cls):
        cls.server = cls.start()
        cls.base = cls.server.base

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        if code != 0:
            raise AssertionError(
                f"the server ended with {code}: " + "".join(cls.server.lines[-20:])
            )


def main(watched=True):
    """Runs the tests of the program that calls; exits with 77, which counts as skipped, if none ran.
    watched: what clients are answered by httpx is as /openapi.json has it (schema.py)."""
    global drover, scripted
    drover, scripted = (str(pathlib.Path(sys.argv.pop(1)).resolve()) for _ in range(2))
    for key in os.environ.keys() - CLEAN.keys():
        del os.environ[key]
    if watched:
        import schema  # here, since not all who start servers have what it needs

        Server.started = staticmethod(schema.watch)
    # What clients warn of is their own.
    result = unittest.main(exit=False, warnings="ignore").result
    for test, reason in result.skipped:
        print(f"skipped: {test}: {reason}")
    # A class that is skipped as a whole is no test of the count.
    ran = result.testsRun - sum(isinstance(test, unittest.TestCase) for test, _ in result.skipped)
    sys.exit(1 if not result.wasSuccessful() else 77 if result.skipped and ran == 0 else 0)
