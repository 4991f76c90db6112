"""Checks what a server answered against its own description, GET /openapi.json.

    schema.watch(address)    # from now on, whatever clients in this process ask this server (by httpx)

is all that a test needs: what is not as described is an error at the end of its module. Of requests
that were answered, the bodies must be as described too.
"""

import functools
import json
import re
import unittest
import urllib.request

import httpx
import jsonschema


class Violation(Exception):
    """An exchange is not as the document has it."""


def check_content(validator, schema, instance, parent):
    """`contentSchema`: the text holds JSON, which is as the schema says."""
    if not isinstance(instance, str) or parent.get("contentMediaType") != "application/json":
        return
    try:
        value = json.loads(instance)
    except ValueError as error:
        yield jsonschema.ValidationError(f"{instance!r} is no JSON: {error}")
        return
    yield from validator.descend(value, schema, schema_path="contentSchema")


Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator, {"contentSchema": check_content}
)


def events_of(text):
    """The events of a stream, as the HTML standard reads them; comments are left out."""
    events = []
    for block in re.split(r"\r\n\r\n|\n\n|\r\r", text):
        event = {"data": []}
        for line in re.split(r"\r\n|\n|\r", block):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "data":
                event["data"].append(value)
            elif name:
                event[name] = value
        if event["data"]:
            events.append({**event, "data": "\n".join(event["data"])})
    return events


class Description:
    def __init__(self, document):
        self.document = document
        self.paths = {
            re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(path))): methods
            for path, methods in document["paths"].items()
        }

    @classmethod
    def of(cls, address):
        with urllib.request.urlopen(address + "/openapi.json") as answer:
            return cls(json.load(answer))

    def resolve(self, part):
        while "$ref" in part:
            steps = part["$ref"].removeprefix("#/").split("/")
            part = functools.reduce(lambda value, step: value[step], steps, self.document)
        return part

    def operation(self, method, path):
        path = re.sub(r"^/v1(?=/)", "", path.rstrip("/"))
        method = "get" if method == "HEAD" else method.lower()
        for pattern, methods in self.paths.items():
            if pattern.fullmatch(path):
                return methods.get(method)
        return None

    def validate(self, value, schema, what):
        whole = {**schema, "components": self.document["components"]}
        error = jsonschema.exceptions.best_match(Validator(whole).iter_errors(value))
        if error is not None:
            raise Violation(f"{what}: {error.json_path}: {error.message[:2000]}")

    def check_request(self, method, path, body):
        """That a body which was answered is one that the document allows."""
        operation = self.operation(method, path)
        content = self.resolve(operation["requestBody"])["content"]["application/json"]
        self.validate(json.loads(body), content["schema"], "request")

    def check(self, method, path, status, headers, body):
        """That an answer is one that the document announces. `headers` ignores case."""
        operation = self.operation(method, path)
        if operation is None:
            # There is nothing, or not by this method; to be refused has one form everywhere.
            if status not in (401, 403, 404, 405):
                raise Violation(f"status {status}: the document has no such operation")
            words = "MessagesErrorBody" if "/messages" in path else "Error"
            self.validate(json.loads(body), {"$ref": f"#/components/schemas/{words}"}, "error")
            return
        if str(status) not in operation["responses"]:
            raise Violation(f"status {status}: not announced")
        answer = self.resolve(operation["responses"][str(status)])
        for name, header in answer.get("headers", {}).items():
            self.check_header(name, self.resolve(header), headers.get(name))
        if method == "HEAD":
            return
        kind = headers.get("Content-Type", "").partition(";")[0]
        if kind not in answer["content"]:
            raise Violation(f"Content-Type {kind!r}: not announced")
        self.check_body(kind, answer["content"][kind]["schema"], body)

    def check_header(self, name, header, value):
        if value is None:
            if header.get("required"):
                raise Violation(f"header {name}: missing")
            return
        number = header["schema"].get("type") == "integer" and re.fullmatch(r"-?\d+", value)
        self.validate(int(value) if number else value, header["schema"], f"header {name}")

    def check_body(self, kind, schema, body):
        text = body.decode()
        if kind == "text/event-stream":
            events = events_of(text)
            if not events:
                raise Violation("a stream without events")
            for i, event in enumerate(events):
                self.validate(event, schema, f"event {i}")
        else:
            self.validate(json.loads(text) if kind == "application/json" else text, schema, "body")


class Watch:
    """All that clients in this process ask servers, by httpx, and what was not as described."""

    def __init__(self):
        self.descriptions = {}  # by address
        self.exchanges = 0
        self.violations = []

    def install(self):
        watch = self
        send = httpx.HTTPTransport.handle_request
        send_async = httpx.AsyncHTTPTransport.handle_async_request

        def handle(transport, request):
            answer = send(transport, request)
            answer.stream = Heard(answer.stream, functools.partial(watch.hear, request, answer))
            return answer

        async def handle_async(transport, request):
            answer = await send_async(transport, request)
            answer.stream = Heard(answer.stream, functools.partial(watch.hear, request, answer))
            return answer

        httpx.HTTPTransport.handle_request = handle
        httpx.AsyncHTTPTransport.handle_async_request = handle_async
        unittest.addModuleCleanup(self.report)

    def hear(self, request, answer, body, whole):
        url = request.url
        description = self.descriptions.get(f"{url.scheme}://{url.netloc.decode()}")
        if description is None:
            return
        if not whole:  # a client that left: of a stream, the events that it heard
            stream = "event-stream" in answer.headers.get("Content-Type", "")
            body = b"".join(body.rpartition(b"\n\n")[:2]) if stream else b""
            if not events_of(body.decode()):
                return
        self.exchanges += 1
        try:
            description.check(request.method, url.path, answer.status_code, answer.headers, body)
            if answer.status_code == 200 and request.content:
                description.check_request(request.method, url.path, request.content)
        except Exception as error:  # whatever a damaged answer makes of the check itself
            asked = request.content[:2000].decode(errors="replace")
            self.violations.append(f"{request.method} {url.path} {asked}: {error!r}")

    def report(self):
        violations, self.violations = self.violations, []
        if violations:
            raise AssertionError("not as /openapi.json has it:\n" + "\n".join(violations))


class Heard(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that tells what was read of it when it is closed, and whether that is all."""

    def __init__(self, stream, told):
        self.stream, self.told = stream, told
        self.pieces, self.whole = [], False

    def __iter__(self):
        for piece in self.stream:
            self.pieces.append(piece)
            yield piece
        self.whole = True

    async def __aiter__(self):
        async for piece in self.stream:
            self.pieces.append(piece)
            yield piece
        self.whole = True

    def close(self):
        self.stream.close()
        self.tell()

    async def aclose(self):
        await self.stream.aclose()
        self.tell()

    def tell(self):
        told, self.told = self.told, lambda *_: None
        told(b"".join(self.pieces), self.whole)


@functools.cache
def the_watch():
    watch = Watch()
    watch.install()
    return watch


def watch(address):
    """From now on what this server answers is checked."""
    the_watch().descriptions[address] = Description.of(address)
