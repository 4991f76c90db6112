"""needle: the grid on a model here and on an endpoint, its files, and what run makes of its map."""

import http.server
import json
import re
import threading
import time

import harness
from harness import SMOLLM2, CliTest


class Endpoint(http.server.BaseHTTPRequestHandler):
    """Reads well, and misbehaves as its server's `mode` says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.requests.append((self.path, dict(self.headers), body))
        mode = server.modes.pop(0) if server.modes else "good"
        if isinstance(mode, int):
            return self.say(mode, {"error": {"message": f"status {mode} it is"}})
        if mode == "slow":
            time.sleep(3)
        if mode == "redirect":
            return self.say(302, {}, {"Location": "http://127.0.0.1:9/"})
        if mode == "nonsense":
            return self.say(200, ["no", "answer"])
        if mode == "endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b" " * 65536)
            except OSError:
                self.close_connection = True
                return None
        text, question = body["messages"][0]["content"].rsplit("\n\n", 1)
        place = re.search("pass number of (the .*)\\?", question)[1]
        found = re.search(f"pass number of {place} is ([0-9]+)", text)
        answer = f"It is {found[1]}." if found else "The text does not say."
        return self.say(
            200,
            {
                "choices": [{"message": {"role": "assistant", "content": answer}}],
                "usage": {"prompt_tokens": len(body["messages"][0]["content"]) // 5},
            },
        )

    def say(self, status, value, headers={}):
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:  # nobody waits any more
            self.close_connection = True


class Needle(CliTest):
    def setUp(self):
        super().setUp()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
        self.server.daemon_threads = True
        self.server.modes, self.server.requests = [], []
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        url = f"http://127.0.0.1:{self.server.server_port}/v1/"
        self.ask = ("needle", "some-model", "--endpoint", url)
        self.grid = ("--lengths", "512,1K", "--depths", 2, "--seeds", 1)

    def test_an_endpoint_that_reads_well_finds_every_needle_and_no_control(self):
        f = self.folder
        out = self.good(
            *self.ask,
            *self.grid,
            *("--api-key-env", "KEY", "--json", f / "n.json", "--csv", f / "n.csv"),
            *("--svg", f / "n.svg", "--png", f / "n.png", "--recall-map", f / "map.json"),
            *("--threshold", 1),
            env={"KEY": "s3cret"},
        )
        self.assertIn("| control | 0.0 % | 0.0 % |", out.text)
        self.assertIn("| single | 100.0 % | 100.0 % |", out.text)
        self.assertIn("The endpoint counted", out.text)
        self.assertNotIn("s3cret", out.text + out.err)
        told = json.loads((f / "n.json").read_text())
        self.assertTrue(told["reached"])
        self.assertEqual(len(told["cells"]), 2 * 2 * 2)
        self.assertEqual((f / "n.csv").read_text().count("\n"), 1 + 8)
        self.assertIn("<svg", (f / "n.svg").read_text())
        self.assertEqual((f / "n.png").read_bytes()[:4], b"\x89PNG")
        self.assertEqual(json.loads((f / "map.json").read_text())["vouched_length"], 1024)
        self.assertEqual(len(self.server.requests), 8)
        for path, headers, body in self.server.requests:
            self.assertEqual(path, "/v1/chat/completions")
            self.assertEqual(headers["Authorization"], "Bearer s3cret")
            self.assertEqual((body["model"], body["temperature"]), ("some-model", 0))
        # Four bytes a token, and room for the answer.
        longest = max(len(body["messages"][0]["content"]) for _, _, body in self.server.requests)
        self.assertLess(longest, 4096)
        self.assertGreater(longest, 4096 - 4 * 80)

    def test_lengths_are_counted_with_a_tokenizer_if_there_is_one(self):
        self.good(*self.ask, "--lengths", 1200, "--depths", 1, "--seeds", 1, "--tokenizer", self.scout)
        content = self.server.requests[-1][2]["messages"][0]["content"]
        tokens = json.loads(self.good("tokenize", self.scout, content, "--json").out)
        self.assertEqual(len(tokens), 1200 - self.server.requests[-1][2]["max_tokens"])

    def test_it_goes_on_where_it_stopped(self):
        state = self.folder / "state.jsonl"
        self.server.modes = ["good"] * 3 + [500]
        self.bad(74, "status 500 it is", *self.ask, *self.grid, "--state", state)
        self.assertEqual(len(self.server.requests), 4)
        self.good(*self.ask, *self.grid, "--state", state)
        self.assertEqual(len(self.server.requests), 4 + 5)
        self.good(*self.ask, *self.grid, "--state", state, "--threshold", 0.5)
        self.assertEqual(len(self.server.requests), 4 + 5)
        self.bad(2, "'seed' 1, got 2", *self.ask, *self.grid, "--state", state, "--seed", 2)

    def test_a_busy_endpoint_is_asked_again_and_a_bad_one_is_named(self):
        one = (*self.ask, "--lengths", 512, "--depths", 1, "--seeds", 1, "--kinds", "single")
        self.server.modes = [429, 503]
        self.good(*one)
        for code, words, mode in (
            (77, ["status 401", "--api-key-env"], 401),
            (66, "status 404", 404),
            (1, "status 400", 400),
            (74, "status 302", "redirect"),
            (65, "expected a JSON object", "nonsense"),
            (74, "longer than 16 MB", "endless"),
            (74, ["none", "--timeout"], "slow"),
        ):
            self.server.modes = [mode]
            self.bad(code, words, *one, "--timeout", 1 if mode == "slow" else 30)
        self.server.shutdown()
        self.server.server_close()
        self.bad(74, "is the endpoint running", *one)

    def test_a_model_here_that_finds_nothing_has_exit_code_3(self):
        flags = ("--lengths", "1K", "--depths", 2, "--seeds", 1, "--kinds", "single")
        map_file = self.folder / "map.json"
        result = harness.run(
            "needle", self.scout, *flags, "--threshold", 0.5, "--recall-map", map_file
        )
        self.assertEqual((result.code, result.err), (3, ""))
        self.assertIn("No length reaches 50 %", result.text)
        self.good("needle", self.scout, *flags)
        # run warns of what the map does not vouch for, and answers all the same.
        ask = ("run", self.scout, "hello", "-n", 2, "--recall-map", map_file)
        self.assertIn("recall map vouches for none", self.good(*ask).err)
        told = json.loads(map_file.read_text())
        told["lengths"][0]["recall"] = 1
        map_file.write_text(json.dumps(told))
        self.assertEqual(self.good(*ask).err, "")
        self.bad(65, "recall map", "run", self.scout, "hello", "--recall-map", self.scout / "config.json")

    def test_what_makes_no_sense_is_refused(self):
        for code, words, options in (
            (2, "tokens such as", ("--lengths", "long")),
            (2, "every length and kind once", ("--lengths", "1K,1024")),
            (2, "multi-key", ("--kinds", "double")),
            (2, "depths", ("--depths", 0)),
            (2, "threshold", ("--threshold", 2)),
            (2, "at least", ("--lengths", 80)),
            (2, "border", ("--lengths", "512", "--across-border", "--kinds", "single")),
            (2, "not set", ("--api-key-env", "NO_SUCH_KEY")),
            (73, "no folder", ("--svg", self.folder / "no" / "map.svg")),
        ):
            self.bad(code, words, *self.ask, *options)
        self.bad(2, "http", "needle", "m", "--endpoint", "ftp://x")
        self.bad(2, "endpoint", "needle", self.scout, "--tokenizer", self.scout)
        self.bad(1, "context", "needle", self.scout, "--lengths", "2K")
        self.assertEqual(self.server.requests, [])

    def test_smollm2_finds_one_number_in_a_short_text_and_none_that_is_not_there(self):
        if not SMOLLM2.exists():
            self.skipTest("SmolLM2 is not there; script/fetch-smollm2 brings it")
        flags = ("--lengths", 512, "--depths", 2, "--seeds", 2, "--threshold", 1)
        out = self.good("needle", SMOLLM2, *flags).text
        self.assertIn("| control | 0.0 % |", out)
        self.assertIn("| single | 100.0 % |", out)
