"""The checks of check_server.py that are about many clients at once."""

import json
import random
import socket
import statistics
import threading
import time

import hostile as bad
from served import Load, Server, megabytes

# All answers are as long as they are allowed to be.
LONG = {"model": "m", "ignore_eos": True, "temperature": 1}
WORDS = "the sea was calm and nobody on the boat had slept since they left the harbour".split()


def prompt(r, words):
    return " ".join(r.choice(WORDS) for _ in range(words))


def bodies(r, count, words, tokens, stream=None):
    """Of completions, all different; streams, or not, or one of two."""
    return [
        LONG
        | {
            "prompt": prompt(r, r.randint(*words)),
            "max_tokens": r.randint(*tokens),
            "stream": r.random() < 0.5 if stream is None else stream,
        }
        for _ in range(count)
    ]


def latency(server, count=7):
    body = LONG | {"prompt": "the sea", "max_tokens": 16}
    return statistics.median(server.ask(body=body)[2] for _ in range(count))


class Memory(threading.Thread):
    """Looks every quarter of a second."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.seen, self.over = server, [], threading.Event()

    def run(self):
        while not self.over.wait(0.25) and self.server.alive():
            self.seen.append(self.server.memory())

    def stop(self):
        self.over.set()
        self.join()
        return self.seen


def overload(options, judge):
    r = random.Random(options.seed)
    queue = 32
    flags = ["--parallel", 8, "--max-queue", queue, "--context", 1024, "--cache-memory", "32M"]
    with Server(options.drover, options.model, *flags) as server:
        # What is kept of texts has its share of memory from the beginning.
        Load(
            options.load,
            server.port,
            bodies(r, 200, (100, 300), (16, 64)),
            options.folder,
            clients=16,
            requests=100,
        ).report()
        normal = latency(server)
        watch = Memory(server)
        watch.start()
        load = Load(
            options.load,
            server.port,
            bodies(r, 500, (10, 200), (32, 128)),
            options.folder,
            clients=10 * queue,
            seconds=options.seconds,
            pause=0.1,
        )
        report = load.report()
        seen = watch.stop()
        time.sleep(1)
        afterwards = latency(server)
        ends, statuses = report["ends"], report["statuses"]
        judge.say(
            f"{10 * queue} clients, {report['seconds']:.0f} s: {json.dumps(statuses)}, {json.dumps(ends)}"
        )
        judge.that(
            set(statuses) <= {"200", "429"} and set(ends) <= {"done", "whole", "refused"},
            "every request ended as 200 or 429",
        )
        told = report["head_ms"]["429"]
        judge.that(
            told["p99"] <= 50,
            f"429 came after p50 {told['p50']:.1f}, p99 {told['p99']:.1f}, max {told['max']:.1f} ms",
        )
        quarter = len(seen) // 4
        early, late = max(seen[:quarter]), max(seen[-quarter:])
        judge.that(
            late <= early + (8 << 20),
            f"memory {megabytes(early)} in the first quarter, {megabytes(late)} in the last",
        )
        judge.that(
            afterwards <= 2 * normal + 0.02,
            f"a request alone took {normal * 1e3:.1f} ms before, {afterwards * 1e3:.1f} ms a second after",
        )


def slow(options, judge):
    r = random.Random(options.seed)
    streams = bodies(r, 200, (10, 60), (128, 128), stream=True)
    short = bodies(r, 50, (5, 10), (16, 16), stream=True)
    text = [{"content": prompt(r, 6000)}]
    each = options.slow // 4
    seconds = options.seconds / 10
    with Server(options.drover, options.model, "--context", 2048) as server:
        measure = lambda: Load(
            options.load,
            server.port,
            streams,
            options.folder,
            clients=16,
            seconds=seconds + 1,
            warm=1,
        ).report()
        measure()
        alone, beside, heard = [], [], []
        for _ in range(5):
            alone.append(measure()["texts_per_second"])
            crowd = [
                Load(
                    options.load,
                    server.port,
                    of,
                    options.folder,
                    clients=each,
                    seconds=seconds + 8,
                    manner=manner,
                    path=path,
                )
                for manner, path, of in [
                    ("slow-head", "/v1/completions", short),
                    ("slow-body", "/v1/completions", short),
                    ("slow-reader", "/v1/completions", short),
                    ("slow-reader", "/tokenize", text),
                ]
            ]
            time.sleep(5)
            heard.append(server.metrics()["drover_http_connections"])
            report = measure()
            beside.append(report["texts_per_second"])
            judge.that(
                set(report["ends"]) == {"done"}, f"the streams beside ended well: {report['ends']}"
            )
            for load in crowd:
                judge.say(f"slow ones: {json.dumps(load.report()['ends'])}")
        judge.that(
            min(heard) >= 4 * each, f"{min(heard):.0f} connections at least while it was measured"
        )
        # Of pairs, since a machine has its moods.
        kept = sorted(y / x for x, y in zip(alone, beside))
        pairs = ", ".join(f"{part:.3f}" for part in kept)
        judge.that(
            statistics.median(kept) >= 0.95,
            f"16 streams: {statistics.median(alone):.0f} texts/s alone; beside {4 * each} slow "
            f"clients they keep {pairs}",
        )


def whole_cache(server, patience=120):
    """Asks for all pages at once, to the last: the longest answer that is not refused. Its status."""
    body = lambda tokens: LONG | {"prompt": "a", "n": 2, "max_tokens": tokens}

    def refused(tokens):
        # What is taken begins to be answered; its client leaves.
        with socket.create_connection(("127.0.0.1", server.port), timeout=0.5) as one:
            one.sendall(bad.post("/v1/completions", json.dumps(body(tokens)).encode()))
            try:
                return one.recv(20).startswith(b"HTTP/1.1 400")
            except TimeoutError:
                return False

    low, high = 1, 1 << 20
    if not refused(high):
        raise RuntimeError("the cache has room for everything; this wants one of few pages")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if refused(middle) else (middle, high)
    server.idle()
    return low, server.ask(body=body(low), patience=patience)[0]


def disconnects(options, judge):
    r = random.Random(options.seed)
    mixed = bodies(r, 300, (1, 30), (32, 128)) + bodies(r, 100, (200, 800), (1, 32))
    flags = ["--context", 4096, "--parallel", 16, "--cache-memory", "6M"]
    with Server(options.drover, options.model, *flags) as server:
        tokens, status = whole_cache(server)
        judge.that(status == 200, f"two answers of {tokens} tokens take the whole cache")
        report = Load(
            options.load,
            server.port,
            mixed,
            options.folder,
            clients=64,
            requests=options.disconnects,
            manner="leave",
            seed=options.seed,
        ).report()
        judge.say(
            f"{report['requests']} clients in {report['seconds']:.1f} s: {json.dumps(report['ends'])}"
        )
        judge.that(
            set(report["ends"]) <= {"left", "done", "whole", "refused"},
            "who did not leave was answered",
        )
        judge.that(server.idle(), "then nothing is in hand, and no connection open")
        seen = server.metrics()
        for name in [
            "drover_requests_in_hand",
            "drover_requests_waiting",
            "drover_sequences_running",
            "drover_cache_promised_bytes",
        ]:
            judge.that(seen[name] == 0, f"{name} {seen[name]:.0f}")
        again, status = whole_cache(server)
        judge.that(
            (again, status) == (tokens, 200), f"and every page is free: {again} tokens, {status}"
        )


def sigterm(options, judge):
    r = random.Random(options.seed)
    streams = bodies(r, 100, (5, 100), (16, 600))
    codes, ends, slowest, wrong = {}, {}, 0.0, 0
    for number in range(options.sigterm):
        patience = r.choice([0, 0.2, 5])
        with Server(
            options.drover, options.model, "--context", 2048, "--drain-seconds", patience
        ) as server:
            load = Load(
                options.load,
                server.port,
                streams,
                options.folder,
                clients=16,
                seconds=60,
                patience=30,
            )
            time.sleep(r.uniform(0.05, 0.8))
            start = time.monotonic()
            code = server.stop()
            took = time.monotonic() - start - patience
        report = load.report(patience=60)
        codes[code] = codes.get(code, 0) + 1
        for end, count in report["ends"].items():
            ends[end] = ends.get(end, 0) + count
        slowest = max(slowest, took)
        lost = report["ends"].get("cut", 0) + report["ends"].get("hung", 0)
        if lost:
            judge.say(f"run {number} with {patience} s: {json.dumps(report['ends'])}")
        wrong += lost
    judge.that(codes == {0: options.sigterm}, f"exit codes {codes}")
    judge.that(wrong == 0, f"no stream was cut without a word: {json.dumps(ends)}")
    # Beyond the time to drain: two seconds for last words, and the end of the process.
    judge.that(slowest < 4, f"at most {slowest:.2f} s beyond the time to drain")


def idle(options, judge):
    count = options.idle
    body = LONG | {"prompt": "the sea", "max_tokens": 4000, "stream": True}
    flags = ["--parallel", 1, "--max-queue", count + 100, "--context", 4096]
    with Server(options.drover, options.model, *flags) as server:
        latency(server)
        before = server.memory()
        load = Load(
            options.load,
            server.port,
            [body],
            options.folder,
            clients=count,
            seconds=25,
            manner="hold",
        )
        time.sleep(8)
        start = server.seconds()
        time.sleep(12)
        used = (server.seconds() - start) / 12
        seen, memory = server.metrics(), server.memory()
        report = load.report()
        judge.that(
            seen["drover_requests_waiting"] >= count - 20,
            f"{seen['drover_requests_waiting']:.0f} requests wait",
        )
        judge.that(
            report["ends"].get("held", 0) >= count - 20 and set(report["ends"]) <= {"held", "done"},
            f"their streams: {json.dumps(report['ends'])}, {report['comments']} comments",
        )
        judge.that(
            memory - before < 200 << 20,
            f"memory {megabytes(before)} before, {megabytes(memory)} with them",
        )
        judge.say(f"{used:.2f} processors, the one answer that is written included")
        judge.that(server.idle(), "nothing is in hand when they have left")
