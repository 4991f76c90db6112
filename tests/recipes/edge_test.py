"""The commands of recipes/edge that prove something: what they ask, and that what is found stands where it
belongs. Drover is played by a script that finds what the test says."""

import importlib.machinery
import importlib.util
import itertools
import json
import os
import pathlib
import stat
import struct
import subprocess
import sys
import tempfile
import unittest
import zlib

sys.dont_write_bytecode = True
RECIPE = pathlib.Path(__file__).resolve().parents[2] / "recipes" / "edge"

# `drover run`: 1,000 tokens/s read, 10 written. `drover needle`: of length n, depth d found n / 8,192 of
# single ones inside a chunk, a quarter of those over a border, none of the others. `drover batch`: knows
# the answer with an adapter, else says nothing. `drover score`: 2 nats, 2.02 with an adapter.
ACTOR = '''#!/usr/bin/env python3
import json, pathlib, sys
args = sys.argv[1:]
value = lambda flag: args[args.index(flag) + 1]
if args[0] == "run":
    n = int(value("--prompt-tokens"))
    print(json.dumps({"prompt_seconds": n / 1000, "answer_seconds": 0.7, "answer_tokens": 8}))
if args[0] == "needle":
    with open(value("--csv"), "w") as out:
        out.write("kind,length,depth,trials,recall\\n")
        for kind in value("--kinds").split(","):
            for n in map(int, value("--lengths").split(",")):
                found = 0.25 if "--across-border" in args else n / 8192 if kind == "single" else 0
                for depth in range(int(value("--depths"))):
                    out.write(f"{kind},{n},{depth},{value('--seeds')},{found}\\n")
if args[0] == "train":
    recipe = pathlib.Path(args[1])
    told = json.loads(recipe.read_text())
    out = pathlib.Path(told["out"]) / told["name"]
    out.mkdir(parents=True)
    (out / "knows.jsonl").write_text((recipe.parent / told["sources"]["facts"]["files"][0]).read_text())
if args[0] == "batch":
    known = {}
    if "--lora" in args:
        for line in (pathlib.Path(value("--lora")) / "knows.jsonl").open():
            question, answer = [turn["content"] for turn in json.loads(line)["messages"]]
            known[question] = answer
    with open(args[3], "w") as out:
        for line in reversed(open(args[2]).readlines()):
            asked = json.loads(line)
            said = known.get(asked["body"]["messages"][0]["content"], "red")
            told = {"choices": [{"message": {"content": said}}]}
            out.write(json.dumps({"custom_id": asked["custom_id"], "response": {"body": told}}) + "\\n")
if args[0] == "score":
    print(json.dumps({"nll": 2.02 if "--lora" in args else 2.0, "tokens": 1}))
'''


def load(name):
    loader = importlib.machinery.SourceFileLoader(f"edge_{name}", str(RECIPE / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def run(*command):
    return subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Edge(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def actor(self):
        path = self.folder / "drover"
        path.write_text(ACTOR)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def row(self, table, begin):
        rows = [line for line in table.splitlines() if line.startswith(f"| {begin}")]
        self.assertEqual(len(rows), 1, table)
        return [cell.strip() for cell in rows[0].strip("|").split("|")]


class Fill(Edge):
    PAGE = "before\n<!-- a -->\nold\n<!-- /a -->\nbetween\n<!-- b -->\n<!-- /b -->\nafter\n"

    def setUp(self):
        super().setUp()
        self.page = self.folder / "page.md"
        self.page.write_text(self.PAGE)

    def fill(self, *command):
        return run(RECIPE / "fill", "--page", self.page, *command).returncode

    def test_replaces_what_stands_there_and_says_how_it_was_made(self):
        model = self.folder / "m.gguf"
        model.write_bytes(b"weights")
        self.assertEqual(self.fill("b", "echo", r"| \1 | new |", model), 0)
        self.assertEqual(self.fill("a", "echo", "first"), 0)
        self.assertEqual(self.fill("a", "echo", "second"), 0)
        text = self.page.read_text()
        self.assertTrue(text.startswith("before\n<!-- a -->\nsecond\n\n`echo second`; 20"))
        self.assertNotIn("old", text)
        self.assertNotIn("first", text)
        self.assertIn("\n<!-- /a -->\nbetween\n<!-- b -->\n| \\1 | new |", text)
        # printf weights | sha256sum
        self.assertIn("m.gguf is 9a129038d9a0 (SHA-256)", text)
        self.assertTrue(text.endswith("<!-- /b -->\nafter\n"))

    def test_keeps_what_was_written_while_the_command_ran(self):
        edit = f"sed -i s/between/meanwhile/ {self.page} && echo new"
        self.assertEqual(self.fill("a", "sh", "-c", edit), 0)
        text = self.page.read_text()
        self.assertIn("<!-- /a -->\nmeanwhile\n", text)
        self.assertIn("<!-- a -->\nnew\n", text)

    def test_leaves_the_page_alone_when_there_is_nothing_to_say(self):
        for command, code in ((("a", "false"), 1), (("a", "true"), 65), (("c", "echo", "x"), 65)):
            self.assertEqual(self.fill(*command), code, command)
            self.assertEqual(self.page.read_text(), self.PAGE)


class Draw(Edge):
    def test_shapes_are_what_it_says_and_others_with_another_seed(self):
        draw, seen = load("draw"), set()
        for seed in range(2):
            picture = self.folder / "p.png"
            done = run(RECIPE / "draw", picture, seed)
            self.assertEqual(done.returncode, 0, done.stderr)
            seen.add(done.stdout)
            data = picture.read_bytes()
            width, height = struct.unpack(">II", data[16:24])
            size = data.index(b"IDAT")
            length = struct.unpack(">I", data[size - 4 : size])[0]
            rows = zlib.decompress(data[size + 4 : size + 4 + length])
            self.assertEqual((width, height, len(rows)), (112, 112, 112 * (1 + 3 * 112)))
            colours = {rows[y * 337 + 1 + 3 * x :][:3] for y in range(112) for x in range(112)}
            for name, rgb in draw.COLOURS.items():
                self.assertEqual(bytes(rgb) in colours, f" {name} " in done.stdout, (name, done.stdout))
        self.assertEqual(len(seen), 2)
        self.assertEqual(run(RECIPE / "draw").returncode, 2)

    def test_all_shapes_fit_a_circle_of_radius_1_and_have_its_centre_inside(self):
        steps = [i / 50 for i in range(-60, 61)]
        for name, inside in load("draw").SHAPES.items():
            self.assertTrue(inside(0.0, 0.0), name)
            area = 0
            for x, y in itertools.product(steps, steps):
                if inside(x, y):
                    area += 0.02**2
                    self.assertLessEqual(x * x + y * y, 1.29, name)  # a square's corners
            self.assertTrue(0.8 < area < 3.2, (name, area))


class Needles(Edge):
    def test_puts_each_kind_and_length_into_its_cell(self):
        model = self.folder / "m.gguf"
        model.write_bytes(b"weights")
        done = run(
            *(RECIPE / "needles", model, "--lengths", "4K,8K", "--depths", 2, "--seeds", 10),
            *("--drover", self.actor(), "--text", model, "--svg", self.folder / "map.svg"),
            *("--folder", self.folder / "needle"),
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        # 95 % intervals of Wilson, of 20 trials.
        none, all_of_them = "0.0 % (0 to 16)", "100.0 % (84 to 100)"
        self.assertEqual(self.row(done.stdout, "found")[2:], ["4K", "8K"])
        self.assertEqual(self.row(done.stdout, "one needle")[1:], ["99 %", "50.0 % (30 to 70)", all_of_them])
        self.assertEqual(self.row(done.stdout, "the needle removed")[1:], ["0 %", none, none])
        border = "25.0 % (11 to 47)"
        self.assertEqual(self.row(done.stdout, "cut by")[1:], ["80 %", border, border])
        # 6 kinds of 20, two lengths; two readings of 8,192, two chunks a trial, 8 tokens written.
        seconds = 2 * 8192 / 1000 + 120 * (2 * 1024 / 1000 + 8 * 0.1 * (4096 + 8192) / 8192)
        self.assertIn("240 trials; 1,000 tokens/s read, 10 tokens/s", done.stderr)
        self.assertIn(f"some {seconds / 60:.0f} minutes", done.stderr)

    def test_refuses_what_it_cannot_read(self):
        done = run(RECIPE / "needles", self.folder / "no.gguf", "--drover", self.actor())
        self.assertEqual(done.returncode, 1)
        self.assertIn("no.gguf", done.stderr)
        self.assertEqual(run(RECIPE / "needles", "m", "--lengths", "4k").returncode, 2)


class Facts(Edge):
    def test_there_are_200_that_are_always_the_same(self):
        facts = load("facts")
        made = facts.make_facts()
        self.assertEqual(made, facts.make_facts())
        self.assertEqual(len({(name, what) for name, what, _ in made}), 200)
        for what in facts.RELATIONS:  # nothing is known by guessing
            values = [value for _, relation, value in made if relation == what]
            self.assertEqual(len(values), 50)
            self.assertLess(max(map(values.count, values)), 15, what)

    def test_no_question_that_is_asked_was_learnt_and_each_has_one_answer(self):
        facts = load("facts")
        made = facts.make_facts()
        learnt, asked = facts.questions(made, 0), facts.questions(made, 1)
        self.assertEqual((len(learnt), len(asked)), (1000, 400))
        self.assertEqual(len(dict(learnt)), 1000)
        self.assertEqual(len(dict(asked)), 400)
        self.assertFalse(set(dict(learnt)) & set(dict(asked)))

    def test_counts_answers_to_the_letter_and_the_change_of_losses(self):
        model = self.folder / "m.gguf"
        model.write_bytes(b"")
        texts = self.folder / "held_out"
        texts.mkdir()
        for name in ("persuasion.txt", "python.txt"):
            (texts / name).write_text("text")
        done = run(
            *(RECIPE / "facts", model, "--drover", self.actor(), "--texts", texts),
            *("--folder", self.folder / "work", "--steps", 3),
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        # Who says "red" to all of them knows so many favourite colours.
        facts = load("facts")
        red = sum(value == "red" for _, _, value in facts.make_facts()) / 200
        says_red = f"{100 * red:.1f} %"
        self.assertEqual(self.row(done.stdout, "1,000 questions")[1:3], [says_red, "100.0 %"])
        self.assertEqual(self.row(done.stdout, "400 questions")[1:], [says_red, says_red, "90 %"])
        for text in ("persuasion.txt", "python.txt"):
            row = self.row(done.stdout, f"loss on held-out text, {text}")
            self.assertEqual(row[1:], ["2.000", "2.020 (+1.0 %)", "at most +5 %"])
        self.assertIn("3 steps", done.stdout)
        (texts / "python.txt").unlink()
        self.assertIn("prepare", run(RECIPE / "facts", model, "--texts", texts).stderr)


if __name__ == "__main__":
    os.chdir(RECIPE.parents[1])
    unittest.main()
