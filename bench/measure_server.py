"""How fast `drover serve` answers many at once: a Markdown report.

    python measure_server.py --drover BINARY --load BINARY --model FILE [--peer BINARY] ...

script/measure-server builds what this needs and runs it. The same chats, all of them different, are
asked in turn of

batch   `drover batch`: the engine alone, without any network;
drover  `drover serve`;
peer    llama.cpp's server with the same file and as many threads, where there is one;

each with as many requests in hand as there are streams, and started anew for every measurement, so
that nothing is known from before. Every answer has the same number of tokens. Figures are medians
over the rounds; tokens per second are those of answers, from the first request to the last answer
(the batch's clock stands while its model is loaded).
"""

import argparse
import json
import pathlib
import platform
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "stress"))
from served import Load, Server, allow_many_sockets  # noqa: E402

WORDS = (
    "harbour lantern winter engine quiet river number morning letter window paper garden silver "
    "market bridge doctor island forest weather captain mountain teacher machine summer station"
).split()


def chats(options, streams):
    """Bodies of requests that differ from the first word of the question on."""
    r = random.Random(options.seed + streams)
    out = []
    for _ in range(options.turns * streams):
        words = " ".join(r.choice(WORDS) for _ in range(options.words))
        out.append(
            {
                "model": "m",
                "messages": [
                    {"role": "user", "content": f"Tell a story with these words: {words}"}
                ],
                "max_tokens": options.tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
    return out


class Peer:
    """llama.cpp's server, with a slot and the context of one conversation for each stream."""

    def __init__(self, options, streams):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            options.peer,
            "--model",
            options.model,
            "--port",
            self.port,
            "--parallel",
            streams,
        ]
        command += ["--threads", options.threads, "--ctx-size", options.context * streams]
        self.process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 120
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit("the peer did not start")
            time.sleep(0.1)

    def ready(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as one:
                one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return one.recv(100).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def served(options, server, streams):
    with server:
        load = Load(
            options.load, server.port, chats(options, streams), options.folder,
            clients=streams, requests=options.turns * streams, path="/v1/chat/completions",
            # llama.cpp's server promises to keep a connection and closes it after a stream.
            reconnect="true",
        )  # fmt: skip
        report = load.report()
    if set(report["ends"]) != {"done"}:
        sys.exit(f"not all were answered: {report['ends']}")
    wanted = options.tokens * options.turns * streams
    if report["answer_tokens"] != wanted:
        sys.exit(f"expected {wanted} tokens, got {report['answer_tokens']}")
    return {
        "tokens/s": report["answer_tokens"] / report["seconds"],
        "first p50": report["first_ms"]["p50"],
        "first p95": report["first_ms"]["p95"],
        "between p50": report["between_ms"]["p50"],
    }


def ask_drover(options, streams):
    flags = ["--threads", options.threads, "--parallel", streams, "--context", options.context]
    return served(options, Server(options.drover, options.model, *flags), streams)


def ask_peer(options, streams):
    return served(options, Peer(options, streams), streams)


def ask_batch(options, streams):
    questions = pathlib.Path(options.folder) / "questions"
    answers = pathlib.Path(options.folder) / "answers"
    with questions.open("w") as out:
        for i, body in enumerate(chats(options, streams)):
            body = {k: v for k, v in body.items() if not k.startswith("stream")}
            line = {"custom_id": str(i), "url": "/v1/chat/completions", "body": body}
            out.write(json.dumps(line) + "\n")
    answers.unlink(missing_ok=True)
    command = [options.drover, "batch", options.model, questions, answers, "--json"]
    command += ["--threads", options.threads, "--parallel", streams, "--context", options.context]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, check=True)
    report = json.loads(done.stdout)
    return {"tokens/s": report["answer_tokens"] / report["seconds"]}


def machine():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.*)", text)
    return name[1] if name else platform.machine()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--drover", required=True)
    parser.add_argument("--load", required=True, help="server_load")
    parser.add_argument("--model", required=True)
    parser.add_argument("--peer", help="llama-server; without it Drover alone is measured")
    parser.add_argument("--streams", default="16,64", help="how many at a time, a list")
    parser.add_argument(
        "--turns", type=int, default=4, help="requests of each stream, one after the other"
    )
    parser.add_argument("--words", type=int, default=60, help="of a question")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="all measurements")
    options = parser.parse_args()
    allow_many_sockets()
    ways = {"batch": ask_batch, "drover": ask_drover} | ({"peer": ask_peer} if options.peer else {})
    print(f"{pathlib.Path(options.model).name}, {options.threads} threads, {machine()}.")
    print(
        f"{options.turns} chats of {options.words} words in each stream, {options.tokens} tokens of "
        f"answer, {options.rounds} rounds; milliseconds.\n"
    )
    print("| streams | who | tokens/s | first token p50 | p95 | between tokens p50 |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    everything, relations = {}, []
    with tempfile.TemporaryDirectory() as options.folder:
        for streams in map(int, options.streams.split(",")):
            found = {name: [] for name in ways}
            for turn in range(options.rounds):
                # In turn, and each first as often as the others.
                names = list(ways)
                for name in names[turn % len(names) :] + names[: turn % len(names)]:
                    found[name].append(ways[name](options, streams))
            middle = {
                name: {key: statistics.median(one[key] for one in all) for key in all[0]}
                for name, all in found.items()
            }
            for name, of in middle.items():
                cell = lambda key: f"{of[key]:.0f}" if key in of else ""
                print(
                    f"| {streams} | {name} | {of['tokens/s']:.1f} | {cell('first p50')} | {cell('first p95')} | {cell('between p50')} |",
                    flush=True,
                )
            everything[streams] = found
            ratio = middle["drover"]["tokens/s"] / middle["batch"]["tokens/s"]
            relations.append(f"{streams} streams: {ratio:.3f} of the batch's tokens/s")
            if "peer" in middle:
                faster = middle["drover"]["tokens/s"] / middle["peer"]["tokens/s"]
                sooner = middle["drover"]["first p95"] / middle["peer"]["first p95"]
                relations.append(
                    f"{streams} streams: {faster:.2f} times the peer's tokens/s, first token at p95 after {sooner:.2f} of its time"
                )
    print("\n" + "\n".join("- " + line for line in relations))
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
