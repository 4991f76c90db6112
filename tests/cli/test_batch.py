"""drover batch: a file of requests, answered line by line, and on where a killed run stopped."""

import json
import os
import signal
import subprocess
import time

import harness
from harness import CliTest


def request(name, text="the ship", url="/v1/completions", **body):
    body = {"prompt": text, "max_tokens": 8, "temperature": 1.5, "top_p": 1, **body}
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


class Batch(CliTest):
    def files(self, requests):
        folder = self.folder / self.id().rsplit(".", 1)[1]
        folder.mkdir()
        lines = [r if isinstance(r, str) else json.dumps(r) for r in requests]
        (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
        return folder / "in.jsonl", folder / "out.jsonl"

    def answers(self, path):
        return {line["custom_id"]: line["response"] for line in map(json.loads, path.open())}

    def test_every_line_gets_its_answer_the_same_as_alone(self):
        chat = request("chat", url="/v1/chat/completions", seed=3)
        chat["body"]["messages"] = [{"role": "user", "content": "where is the ship?"}]
        del chat["body"]["prompt"]
        requests = [request(f"r{i}", f"the ship {i % 7}", seed=i, n=1 + i % 2) for i in range(20)]
        source, out = self.files(requests + ["", chat])
        report = self.good("batch", self.scout, source, out, "--json", "--parallel", 6).json
        self.assertEqual(report["requests"], 21)
        self.assertEqual(report["answered"], 21)
        self.assertEqual(report["failed"], 0)
        answers = self.answers(out)
        self.assertEqual(len(answers), 21)
        for name, answer in answers.items():
            self.assertEqual(answer["status_code"], 200, name)
        alone = self.good(
            "run", self.scout, "where is the ship?", "--seed", 3, "-n", 8, "--temp", 1.5, "--top-p", 1
        )
        message = answers["chat"]["body"]["choices"][0]["message"]
        self.assertEqual(message["role"], "assistant")
        self.assertEqual(message["content"] + "\n", alone.text)
        # Answer number i to one prompt is that of seed + i.
        choices = answers["r5"]["body"]["choices"]
        self.assertEqual(len(choices), 2)
        for i, choice in enumerate(choices):
            ask = ["run", self.scout, "the ship 5", "--raw", "--seed", 5 + i]
            alone = self.good(*ask, "-n", 8, "--temp", 1.5, "--top-p", 1)
            self.assertEqual(choice["text"] + "\n", alone.text)

    def test_a_bad_request_is_answered_with_its_error_and_the_others_go_on(self):
        source, out = self.files(
            [
                request("good"),
                request("tools", tools=[{"type": "function"}]),
                request("long", "the ship " * 2000),
                request("elsewhere", url="/v1/audio/speech"),
                request("stream", stream=True),
                request("hot", temperature=-1),
            ]
        )
        report = self.good("batch", self.scout, source, out, "--json").json
        self.assertEqual((report["answered"], report["failed"]), (6, 5))
        answers = self.answers(out)
        self.assertEqual(answers["good"]["status_code"], 200)
        named = {"tools": "tools", "elsewhere": "url", "hot": "temperature", "stream": "stream"}
        for name, param in named.items():
            self.assertEqual(answers[name]["status_code"], 400)
            self.assertEqual(answers[name]["body"]["error"]["param"], param)
        self.assertEqual(answers["long"]["body"]["error"]["code"], "context_length_exceeded")

    def test_embeddings_logprobs_and_several_prompts(self):
        embed = request("embed", url="/v1/embeddings", input=["the ship", "at noon"])
        source, out = self.files(
            [
                embed,
                request("echo", ["the ship", "at noon"], echo=True, logprobs=1, max_tokens=0),
                request("ban", logit_bias={str(i): -100 for i in range(64) if i != 6}),
            ]
        )
        report = self.good("batch", self.scout, source, out, "--json").json
        self.assertEqual((report["answered"], report["failed"]), (3, 0))
        answers = {name: answer["body"] for name, answer in self.answers(out).items()}
        for i, one in enumerate(answers["embed"]["data"]):
            self.assertEqual(one["index"], i)
            self.assertAlmostEqual(sum(x * x for x in one["embedding"]), 1, places=5)
        self.assertEqual([c["text"] for c in answers["echo"]["choices"]], ["the ship", "at noon"])
        for choice in answers["echo"]["choices"]:
            lists = choice["logprobs"]
            self.assertEqual("".join(lists["tokens"]), choice["text"])
            self.assertIsNone(lists["token_logprobs"][0])
            self.assertLess(sum(lists["token_logprobs"][1:]), 0)
        self.assertEqual(answers["ban"]["choices"][0]["text"], "a" * 8)

    def test_a_killed_run_goes_on_and_nothing_is_answered_twice(self):
        requests = [request(f"r{i}", f"the ship {i}", seed=i, max_tokens=60) for i in range(60)]
        source, whole = self.files(requests)
        self.good("batch", self.scout, source, whole)
        out = whole.with_name("killed.jsonl")
        command = ["batch", self.scout, source, out, "--parallel", 4]
        for _ in range(3):
            before = out.stat().st_size if out.exists() else 0
            process = subprocess.Popen(
                [harness.drover, *map(str, command)], env=harness.CLEAN, stderr=subprocess.DEVNULL
            )
            until = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < until:
                if out.exists() and out.stat().st_size > before:
                    break
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            process.wait()
        with out.open("ab") as file:
            file.write(b'{"id": "torn')  # as a kill in the middle of a write would leave it
        report = self.good(*command, "--json").json
        self.assertEqual(report["answered"], 60)
        self.assertEqual(len(out.read_text().splitlines()), 60)

        def texts(path):
            return {
                name: answer["body"]["choices"][0]["text"]
                for name, answer in self.answers(path).items()
            }

        self.assertEqual(texts(out), texts(whole))
        self.assertEqual(self.good(*command, "--json").json["answer_tokens"], 0)

    def test_an_interrupted_run_says_how_far_it_came(self):
        requests = [request(f"r{i}", f"the ship {i}", max_tokens=900) for i in range(200)]
        source, out = self.files(requests)
        process = subprocess.Popen(
            [harness.drover, "batch", str(self.scout), str(source), str(out), "--parallel", "2"],
            env=harness.CLEAN,
            stderr=subprocess.PIPE,
        )
        until = time.monotonic() + 60
        while time.monotonic() < until and not (out.exists() and out.stat().st_size):
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=60)[1].decode()
        self.assertEqual(process.returncode, 130)
        count = len(out.read_text().splitlines())
        self.assertIn(f"stopped; {count} of 200 requests are answered", err)
        self.assertIn("goes on", err)

    def test_what_does_not_fit_together_is_refused(self):
        source, out = self.files([request("a"), request("a")])
        self.bad(65, "stands there twice", "batch", self.scout, source, out)
        source.write_text(json.dumps(request("a")) + "\n{]\n")
        self.bad(65, "line 2", "batch", self.scout, source, out)
        source.write_text(json.dumps(request("a")) + "\n")
        out.write_text(json.dumps({"custom_id": "other"}) + "\n")
        self.bad(2, "got 1 to others", "batch", self.scout, source, out)
        self.bad(66, "No such file", "batch", self.scout, source.with_name("none"), out)
        if os.geteuid() != 0:
            out.chmod(0o400)
            self.bad(77, "denied", "batch", self.scout, source, out)
