"""The servers that the page is tested with: the real one, in a process of its own, and a scripted one
that gives the real one's page and says what a test wants, when it wants."""

import http.server
import json
import os
import re
import signal
import subprocess
import threading
import urllib.request


class Drover:
    """`drover serve`, on a port of its own choosing, until stop()."""

    def __init__(self, binary, model, *flags):
        command = [binary, "serve", str(model), "--port", "0", *flags]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DROVER")}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if found := re.search(r"listening on (\S+)", line):
                self.address = found[1]
            if line == "ready\n":
                break
        else:
            raise RuntimeError("the server did not start: " + "".join(lines))
        self.rest = threading.Thread(target=lambda: lines.extend(self.process.stderr))
        self.rest.start()

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60)
        self.rest.join()
        self.process.stderr.close()
        return code

    def ask(self, path, body=None):
        request = urllib.request.Request(
            self.address + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read().decode()

    def metric(self, name):
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.ask("/metrics"), re.MULTILINE)
        return float(found[1])


def chunk(text=None, finish=None):
    choice = {"index": 0, "delta": {} if text is None else {"content": text}}
    choice["finish_reason"] = finish
    return {"object": "chat.completion.chunk", "choices": [choice]}


def usage(prompt, completion, cached=0):
    return {
        "choices": [],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


class Stream:
    """An answer that a script writes."""

    def __init__(self, handler):
        self.handler = handler
        self.begun = False

    def begin(self, headers={}):
        self.begun = True
        self.handler.send_response(200)
        self.handler.send_header("Content-Type", "text/event-stream")
        for name, value in headers.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()

    def raw(self, text):
        if not self.begun:
            self.begin()
        self.handler.wfile.write(text.encode())
        self.handler.wfile.flush()

    def data(self, value):
        self.raw(f"data: {json.dumps(value)}\n\n")

    def text(self, text):
        self.data(chunk(text))

    def done(self, prompt=10, completion=5, cached=0):
        self.data(chunk(finish="stop"))
        self.data(usage(prompt, completion, cached))
        self.raw("data: [DONE]\n\n")

    def refuse(self, status, message, code=None):
        body = json.dumps({"error": {"message": message, "type": "x", "param": None, "code": code}})
        self.handler.send_response(status)
        self.handler.send_header("Content-Type", "application/json")
        self.handler.end_headers()
        self.handler.wfile.write(body.encode())


class Scripted:
    """Gives the page of the server at `address`, under its policy, and answers questions by
    `script`, a function of the request's body and a Stream."""

    def __init__(self, address):
        self.script = lambda body, stream: stream.done()
        self.loading = False
        self.asked = []
        self.held = threading.Event()  # what scripts wait for
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"  # an answer ends with its connection

            def log_message(self, *_):
                pass

            def do_GET(self):
                stream = Stream(self)
                if self.path == "/health":
                    if outer.loading:
                        return stream.refuse(503, "the model is being loaded")
                    return self.give(b'{"status":"ok"}', {"Content-Type": "application/json"})
                if self.path == "/v1/models":
                    body = {"data": [{"id": "scripted", "max_model_len": 1000}]}
                    return self.give(json.dumps(body).encode(), {"Content-Type": "application/json"})
                with urllib.request.urlopen(address + self.path, timeout=60) as answer:
                    names = ("Content-Type", "Content-Security-Policy", "X-Content-Type-Options")
                    self.give(answer.read(), {name: answer.headers[name] for name in names})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                try:
                    outer.script(body, Stream(self))
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the page stopped it

            def give(self, body, headers):
                self.send_response(200)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def stop(self):
        self.held.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def says(self, text, pieces=None):
        """From now on every answer is this, in these pieces."""

        def script(body, stream):
            for piece in pieces or [text]:
                stream.text(piece)
            stream.done()

        self.script = script
