"""`drover serve` in a process of its own, watched from outside, and clients for it."""

import json
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import threading
import time


def allow_many_sockets():
    """For this process and those it starts."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Server:
    """Its flags are serve's own; the port is free, the name of the model is m."""

    def __init__(self, drover, model, *flags, env=None):
        command = [
            drover,
            "serve",
            model,
            "--port",
            "0",
            "--alias",
            "m",
            "--access-log",
            "off",
            *flags,
        ]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("DROVER")}
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stderr=subprocess.PIPE,
            text=True,
            env={**clean, **(env or {})},
        )
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"listening on \S+:(\d+)$", line):
                self.port = int(found[1])
            if line == "ready\n":
                break
        else:
            raise RuntimeError("the server did not start: " + "".join(self.lines))
        # Somebody must take what it says, or it waits.
        self.rest = threading.Thread(target=lambda: self.lines.extend(self.process.stderr))
        self.rest.start()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None:
            self.stop() if kind is None else self.process.kill()
        self.process.wait()
        self.rest.join()
        self.process.stderr.close()

    def stop(self, patience=60):
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=patience)

    def alive(self):
        return self.process.poll() is None

    def ask(self, path="/v1/completions", body=None, patience=60):
        """(status, parsed body, seconds)"""
        start = time.monotonic()
        with socket.create_connection(("127.0.0.1", self.port), timeout=patience) as one:
            text = b"" if body is None else json.dumps(body).encode()
            head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n"
            one.sendall(head.encode() + text)
            answer = b""
            while piece := one.recv(65536):
                answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        if b"json" in head:
            body = json.loads(body)
        return int(head.split()[1]), body, time.monotonic() - start

    def metrics(self):
        """The values of the lines that have no labels."""
        text = self.ask("/metrics")[1].decode()
        return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.M)}

    def idle(self, patience=30):
        """Waits until nothing is in hand and nobody is there; whether that came."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            seen = self.metrics()
            # The connection is the one that asks.
            if (
                seen["drover_requests_in_hand"] == 0
                and seen["drover_sequences_running"] == 0
                and seen["drover_http_connections"] == 1
            ):
                return True
            time.sleep(0.05)
        print("     still there:", seen)
        return False

    def memory(self):
        """Bytes that are its own: without the mapped model."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) * 1024

    def seconds(self):
        """Of computing, so far."""
        fields = (
            pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        )
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Load:
    """server_load, running; `report` waits for what it says."""

    def __init__(self, binary, port, bodies, folder, **flags):
        self.bodies = pathlib.Path(folder) / f"bodies-{id(self)}"
        self.bodies.write_text("".join(json.dumps(body) + "\n" for body in bodies))
        command = [binary, "--port", port, "--bodies", self.bodies]
        for name, value in flags.items():
            command += ["--" + name, value]
        self.process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.PIPE, text=True
        )

    def report(self, patience=None):
        out, _ = self.process.communicate(timeout=patience)
        self.bodies.unlink()
        if self.process.returncode != 0:
            raise RuntimeError("server_load failed")
        return json.loads(out)


def megabytes(bytes):
    return f"{bytes / 2**20:.1f} MB"
