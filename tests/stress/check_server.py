"""Hurts `drover serve` and sees whether it holds.

    python check_server.py --drover BINARY --load BINARY [--hostile N] [--overload] [--slow N] ...

script/check-server builds both and runs this. Every check prints what it found, and what was wanted
where that is not so; the exit status is 1 when something was not.

hostile      Requests of every kind that nobody should fall for (hostile.py), one after the other. Each
             gets 4xx, or a close where it was cut short; after every hundred a good one gets the answer
             that it always gets.
overload     Ten times as many clients as the queue takes, who come again 0.1 s after every 429.
slow         Sixteen streams, alone and beside clients that send and read a byte a second, in pairs.
disconnects  Clients that leave at any moment. Then every page must be free for one more request.
sigterm      SIGTERM at a random moment of 16 streams, with much, little or no time to drain.
idle         Streams that wait for their turn.
soak         All of it at once, against a server that is stopped and started every minute; for builds
             with a sanitizer.
"""

import argparse
import json
import random
import re
import socket
import sys
import tempfile
import time

import hostile as bad
import under_load
from served import Load, Server, allow_many_sockets, megabytes
from under_load import LONG, bodies


class Judge:
    def __init__(self):
        self.failed = 0

    def say(self, text):
        print("     " + text, flush=True)

    def that(self, ok, text):
        print(("ok   " if ok else "FAIL ") + text, flush=True)
        self.failed += not ok


def quantiles(values):
    values = sorted(values)
    at = lambda part: values[min(len(values) - 1, int(part * len(values)))]
    return f"p50 {at(0.5):.2f}, p99 {at(0.99):.2f}, p99.9 {at(0.999):.2f}, max {values[-1]:.1f} ms"


# ---- hostile ----


class Wire:
    """Sends cases and reads what comes, over one connection as long as the server keeps it."""

    def __init__(self, port, patience):
        self.port, self.patience, self.socket = port, patience, None

    def close(self):
        if self.socket:
            self.socket.close()
        self.socket = None

    def send(self, case):
        """(statuses, milliseconds from the last byte to the last answer, an answer that is no error
        of the API)"""
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=self.patience)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            at = 0
            for cut in [*case.cuts, len(case.data)]:
                self.socket.sendall(case.data[at:cut])
                at = cut
            if case.finish:
                self.socket.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered before the end, and closed
        start = time.monotonic()
        buffer, last, strange = b"", None, None
        statuses = []
        while True:
            try:
                piece = self.socket.recv(65536)
            except TimeoutError:
                self.close()
                return statuses, (time.monotonic() - start) * 1000, "nothing came"
            except ConnectionResetError:
                piece = b""
            if not piece:
                self.close()
                break
            last = time.monotonic()
            buffer += piece
            closing = False
            while answer := re.match(rb"HTTP/1\.1 (\d+) .*?\r\n\r\n", buffer, re.S):
                head = answer[0].lower()
                if b"transfer-encoding" in head:
                    if b"\r\n0\r\n\r\n" not in buffer:
                        break
                    body, buffer = buffer.partition(b"\r\n0\r\n\r\n")[::2]
                else:
                    size = re.search(rb"content-length: (\d+)", head)
                    end = answer.end() + (int(size[1]) if size else 0)
                    if len(buffer) < end:
                        break
                    body, buffer = buffer[answer.end() : end], buffer[end:]
                statuses.append(int(answer[1]))
                if statuses[-1] >= 400 and b'"error":{' not in body:
                    strange = f"the error is {body[:100]}"
                closing = b"connection: close" in head
            # Where it is to be closed, nothing may follow.
            if len(statuses) > case.good and not closing:
                break
        if buffer:
            strange = f"and then {buffer[:100]}"
        return statuses, max(0.0, ((last or time.monotonic()) - start) * 1000), strange


def fits(case, statuses):
    if statuses[: case.good] != [200] * case.good:
        return False
    rest = statuses[case.good :]
    if not rest:
        return case.may_close
    return len(rest) == 1 and (400 <= rest[0] < 500 or rest[0] in case.also)


def hostile(options, judge):
    good = LONG | {"prompt": "the sea", "max_tokens": 4, "seed": 7, "temperature": 0}
    with Server(
        options.drover, options.model, "--context", 4096, "--chat-format", "llama4"
    ) as server:
        text = lambda answer: answer[1]["choices"][0]["text"]
        want = text(server.ask(body=good))
        wire = Wire(server.port, options.patience)
        times, late, wrong, answers = [], {}, [], 0
        statuses_seen, before = {}, 0
        numbers = [options.only] if options.only is not None else range(options.hostile)
        for number in numbers:
            case = bad.case(options.seed, number)
            statuses, took, strange = wire.send(case)
            if strange or not fits(case, statuses):
                wrong.append((number, case, statuses, strange))
            if not server.alive():
                break
            times.append(took)
            for status in statuses[case.good :] or ["closed"]:
                statuses_seen[status] = statuses_seen.get(status, 0) + 1
            if took > 100:
                late.setdefault(case.kind, []).append(took)
            if number % 100 == 99:
                answers += text(server.ask(body=good)) == want
            if number == options.hostile // 2:
                before = server.memory()
        wire.close()
        judge.that(server.alive(), "the server lives")
        if not server.alive():
            number, case = wrong[-1][:2]
            judge.say(f"it died of number {number}: {case.data[:300]}")
            return
        after = server.memory()
        judge.that(
            not wrong,
            f"{len(times)} hostile requests of seed {options.seed}, {len(wrong)} answered wrongly",
        )
        for number, case, statuses, strange in wrong[:20]:
            judge.say(f"{number} {case.kind}: {statuses} {strange or ''} {case.data[:160]}")
        judge.say(
            "answers: " + ", ".join(f"{k} {v}" for k, v in sorted(statuses_seen.items(), key=str))
        )
        beyond = sum(map(len, late.values()))
        judge.that(
            beyond == 0,
            f"to the answer {quantiles(times)}; {beyond} beyond 100 ms"
            + "".join(f"; {kind}: {len(of)}, max {max(of):.0f}" for kind, of in late.items()),
        )
        judge.that(
            answers == len(numbers) // 100,
            f"{answers} of {len(numbers) // 100} good requests between got the right answer",
        )
        judge.that(
            after - before < 16 << 20,
            f"memory {megabytes(before)} half-way, {megabytes(after)} at the end",
        )
        judge.that(server.idle(), "nothing is left in hand")


# ---- everything at once ----


def soak(options, judge):
    r = random.Random(options.seed)
    end = time.monotonic() + options.soak
    number = rounds = requests = 0
    reports = re.compile(r"ThreadSanitizer|AddressSanitizer|LeakSanitizer|runtime error:")
    while time.monotonic() < end:
        rounds += 1
        seconds = min(60, max(10, end - time.monotonic()))
        flags = [
            "--context",
            1024,
            "--parallel",
            8,
            "--max-queue",
            24,
            "--cache-memory",
            "16M",
            "--network-threads",
            2,
            "--drain-seconds",
            r.choice([0, 2]),
        ]
        with Server(options.drover, options.model, "--chat-format", "llama4", *flags) as server:
            load = lambda clients, of, **more: Load(
                options.load,
                server.port,
                of,
                options.folder,
                clients=clients,
                seconds=seconds,
                patience=120,
                pause=0.2,
                seed=rounds,
                **more,
            )
            crowd = [
                load(12, bodies(r, 100, (5, 200), (4, 60))),
                load(12, bodies(r, 100, (5, 200), (4, 60)), manner="leave"),
                load(4, bodies(r, 10, (5, 10), (16, 16), stream=True), manner="slow-head"),
                load(4, bodies(r, 10, (5, 10), (16, 16), stream=True), manner="slow-reader"),
                load(4, [{"model": "m", "input": "the sea"}], path="/v1/embeddings"),
            ]
            wire = Wire(server.port, options.patience)
            stop_at = time.monotonic() + seconds
            while time.monotonic() < stop_at and server.alive():
                case = bad.case(options.seed, number)
                number += 1
                statuses, _, strange = wire.send(case)
                # In the crowd, one that is wrong may be told to come again first.
                if strange or not (fits(case, statuses) or statuses == [429]):
                    judge.that(
                        False,
                        f"{number - 1} {case.kind}: {statuses} {strange or ''} {case.data[:160]}",
                    )
                if number % 20 == 0:
                    server.ask("/metrics", patience=120)
            wire.close()
            code = server.stop(patience=120)
            for one in crowd:
                report = one.report()
                requests += report["requests"]
                judge.that(
                    not set(report["ends"]) & {"cut", "hung"},
                    f"round {rounds}: {json.dumps(report['ends'])}",
                )
            judge.that(code == 0, f"round {rounds} ended with {code}")
        found = [i for i, line in enumerate(server.lines) if reports.search(line)]
        judge.that(not found, f"round {rounds}: {len(found)} reports of a sanitizer")
        if found:
            judge.say("".join(server.lines[found[0] : found[0] + 200]))
    judge.say(f"{rounds} rounds, {requests} requests, {number} hostile ones")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--drover", required=True)
    parser.add_argument("--load", required=True, help="server_load")
    parser.add_argument("--model", required=True, help="a small one; it should see pictures")
    parser.add_argument("--hostile", type=int, metavar="N", help="so many hostile requests")
    parser.add_argument(
        "--only", type=int, metavar="NUMBER", help="of the hostile ones, this alone"
    )
    parser.add_argument("--overload", action="store_true")
    parser.add_argument("--slow", type=int, metavar="N", help="so many slow clients")
    parser.add_argument("--disconnects", type=int, metavar="N")
    parser.add_argument("--sigterm", type=int, metavar="N", help="so many times")
    parser.add_argument("--idle", type=int, metavar="N", help="so many streams")
    parser.add_argument("--soak", type=float, metavar="SECONDS")
    parser.add_argument(
        "--seconds", type=float, default=120, help="of overload; of all measuring of --slow"
    )
    parser.add_argument(
        "--patience", type=float, default=10, help="for the answer to a hostile request"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    checks = [
        hostile,
        under_load.overload,
        under_load.slow,
        under_load.disconnects,
        under_load.sigterm,
        under_load.idle,
        soak,
    ]
    asked = [check for check in checks if getattr(options, check.__name__)]
    if not asked:
        parser.error("expected something to check")
    allow_many_sockets()
    judge = Judge()
    with tempfile.TemporaryDirectory() as options.folder:
        for check in asked:
            print(f"{check.__name__}", flush=True)
            check(options, judge)
    sys.exit(1 if judge.failed else 0)


if __name__ == "__main__":
    main()
