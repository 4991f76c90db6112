"""A headless Chromium for tests of the page. Whatever a page complains of, asks elsewhere or tries
against its policy fails the test that saw it, unless that test said that it would."""

import json
import pathlib
import re
import struct
import unittest
import zlib

from playwright.sync_api import expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
expect.set_options(timeout=60_000)  # a machine may have much else to do
# Of a refused request Chromium itself writes an error to the console; a test that has one refused
# expects it.
REFUSED = r"Failed to load resource: the server responded with a status of {}"
GONE = r"Failed to load resource: net::ERR_(CONNECTION_REFUSED|EMPTY_RESPONSE|CONNECTION_RESET|INCOMPLETE)"

_playwright = None
_browser = None


def browser():
    global _playwright, _browser
    if _browser is None:
        _playwright = sync_playwright().start()
        # Without the sandbox, since tests run as root, too; the pages are our own.
        _browser = _playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    return _browser


def close():
    if _browser is not None:
        _browser.close()
        _playwright.stop()


def png(width, height, colour):
    """A PNG file, each pixel as colour(x, y) says."""
    rows = b"".join(
        b"\0" + b"".join(bytes(colour(x, y)) for x in range(width)) for y in range(height)
    )

    def part(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + part(b"IHDR", header)
        + part(b"IDAT", zlib.compress(rows, 9))
        + part(b"IEND", b"")
    )


class PageTest(unittest.TestCase):
    """self.open(address) gives a page; its context is the test's own."""

    def setUp(self):
        self.complaints = []
        self.expected = []

    def open(self, address, **options):
        context = browser().new_context(**{"viewport": {"width": 1100, "height": 760}, **options})
        context.set_default_timeout(60_000)
        self.addCleanup(context.close)
        page = context.new_page()
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (event) => console.error("
            "'policy: ' + event.violatedDirective + ' ' + event.blockedURI))"
        )
        self.watch(page, address)
        context.on("page", lambda other: self.complaints.append(f"opened {other.url}"))
        page.goto(address + "/")
        return page

    def watch(self, page, address):
        def heard(message):
            if message.type in ("error", "warning"):
                self.complaints.append(message.text)

        def asked(request):
            if not request.url.startswith((address + "/", "data:", "blob:" + address)):
                self.complaints.append(f"a request to {request.url}")

        page.on("console", heard)
        page.on("pageerror", lambda error: self.complaints.append(f"threw {error}"))
        page.on("request", asked)
        page.on("dialog", lambda dialog: self.complaints.append(f"said {dialog.message}"))

    def tearDown(self):
        unexpected = [
            complaint
            for complaint in self.complaints
            if not any(re.search(pattern, complaint) for pattern in self.expected)
        ]
        self.assertEqual(unexpected, [])

    # ---- what a person does and sees ----

    def ready(self, page):
        expect(page.locator("#model")).not_to_be_empty(timeout=60_000)

    def ask(self, page, text):
        page.locator("#question").fill(text)
        page.locator("#question").press("Enter")

    def answer(self, page):
        """The last one."""
        return page.locator(".answer").last

    def ended(self, page, state="done"):
        expect(self.answer(page)).to_have_attribute("data-state", state)

    def setting(self, page, **values):
        page.get_by_role("button", name="Settings").click()
        for name, value in values.items():
            page.locator(f"#settings [name={name}]").fill(str(value))
        page.get_by_role("button", name="Done").click()
        expect(page.locator("#settings")).to_be_hidden()

    def never_end(self, page):
        """From now on answers of this page go on until they are stopped: a model with random weights
        draws its last token when it pleases."""

        def on_and_on(route):
            route.continue_(post_data=json.dumps({**route.request.post_data_json, "ignore_eos": True}))

        page.route("**/v1/chat/completions", on_and_on)

    def exported(self, page):
        """The conversation, as the page gives it as a file."""
        with page.expect_download() as download:
            page.get_by_role("button", name="Export").click()
        self.assertEqual(download.value.suggested_filename, "drover-chat.json")
        return json.loads(pathlib.Path(download.value.path()).read_text())
