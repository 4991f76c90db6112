"""train and tune: what they say, what they write, stopping and going on, what they refuse."""

import json
import pathlib
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as xml

import harness
from harness import CliTest, Terminal, run

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "train"))
import small_recipe  # noqa: E402


class Train(CliTest):
    def metrics(self, out="out"):
        return small_recipe.timeless(self.folder / out / "metrics.jsonl")

    def test_teaches_by_a_recipe_and_the_model_answers(self):
        recipe = small_recipe.write(self.folder)
        done = self.good("train", recipe, "--json", "--log-every", 10)
        for words in (
            "small: teaches ",
            "stage 1: 20 steps of 256 tokens, examples up to 64: harbour 100 %",
            "40 steps, 15,360 tokens at most",
            "step 40 of 40, stage 2: loss ",
            "busiest expert ",
            "held out: harbour ",
        ):
            self.assertIn(words, done.err)
        self.assertTrue(done.json["done"])
        self.assertEqual(done.json["step"], 40)

        steps = [line for line in self.metrics() if "loss" in line]
        self.assertEqual([line["step"] for line in steps], list(range(1, 41)))
        self.assertLess(steps[-1]["loss"], steps[0]["loss"])
        self.assertEqual(set(steps[-1]["sources"]), {"harbour", "sums"})
        self.assertEqual([len(layer) for layer in steps[-1]["experts"]], [4, 4])
        asked = [line for line in self.metrics() if "held_out" in line]
        self.assertEqual([line["step"] for line in asked], [15, 30, 40])
        self.assertTrue(xml.parse(self.folder / "out/loss.svg").getroot().tag.endswith("svg"))

        for model in ("out/small.gguf", "out/small"):
            shown = self.good("inspect", self.folder / model, "--json").json
            self.assertIn("cc0-1.0", json.dumps(shown).lower())
            self.good("run", self.folder / model, "--raw", "the harbour", "-n", 4, "--temp", 0)

    def test_goes_on_where_it_was_stopped(self):
        recipe = small_recipe.write(self.folder)
        self.good("train", recipe, "--out", self.folder / "whole")
        stopped = self.good("train", recipe, "--steps", 25)
        self.assertIn("Stopped after step 25; --resume goes on from there.", stopped.text)
        self.assertFalse((self.folder / "out/small.gguf").exists())
        shown = self.good("train", recipe, "--resume", "--steps", 25, "--write")
        self.assertIn("Stopped after step 25;", shown.text)
        self.assertIn("Wrote ", shown.text)
        self.good("run", self.folder / "out/small.gguf", "--raw", "the harbour", "-n", 4)
        self.bad(2, ["there are checkpoints of a training already", "--resume"], "train", recipe)
        done = self.good("train", recipe, "--resume")
        self.assertIn("goes on after step 25", done.err)
        self.assertEqual(self.metrics(), self.metrics("whole"))
        self.assertEqual(
            (self.folder / "out/small.gguf").read_bytes(),
            (self.folder / "whole/small.gguf").read_bytes(),
        )

    def test_a_signal_stops_it_with_a_checkpoint(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            with self.subTest(number):
                folder = self.folder / str(int(number))
                stages = [{"steps": 100000, "tokens": 128, "length": 64, "mixture": {"harbour": 1}}]
                recipe = small_recipe.write(folder, stages=stages)
                process = subprocess.Popen(
                    [harness.drover, "train", str(recipe)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=harness.CLEAN,
                )
                metrics = folder / "out/metrics.jsonl"
                end = time.monotonic() + 60
                while not (metrics.exists() and metrics.stat().st_size > 0):
                    self.assertIsNone(process.poll(), process.stderr.read)
                    self.assertLess(time.monotonic(), end)
                    time.sleep(0.01)
                process.send_signal(number)
                out, err = process.communicate(timeout=60)
                self.assertEqual(process.returncode, 0, err)
                self.assertIn(b"Stopped after step ", out)
                self.assertTrue(list((folder / "out").glob("*.checkpoint")))

    def test_a_terminal_has_one_line(self):
        recipe = small_recipe.write(self.folder)
        with Terminal("train", recipe) as terminal:
            terminal.expect("step [0-9]+ of 40, stage [12]: loss [0-9.]+, [0-9,]+ tokens/s")
            terminal.expect("Wrote .*small.gguf")
            self.assertEqual(terminal.wait(), 0)

    def test_says_what_is_wrong_with_a_recipe(self):
        recipe = small_recipe.write(self.folder, sede=1)
        self.bad(65, ["recipe.json: unknown key 'sede'"], "train", recipe)
        recipe = small_recipe.write(self.folder, freeze=["blk.9.*"])
        self.bad(2, ["freeze: 'blk.9.*' matches no tensor of this model"], "train", recipe)
        recipe = small_recipe.write(self.folder, sources={"harbour": {"kind": "tekst"}})
        self.bad(65, ["there is no source 'sums'"], "train", recipe)
        self.bad(66, ["recipe.json"], "train", self.folder / "nowhere/recipe.json")

    def test_a_checkpoint_belongs_to_its_recipe(self):
        recipe = small_recipe.write(self.folder)
        self.good("train", recipe, "--steps", 7)
        small_recipe.write(self.folder, seed=2)
        other = run("train", recipe, "--resume")
        self.assertNotEqual(other.code, 0)
        self.assertIn("expected a checkpoint of this recipe", other.err)

    def test_a_new_training_takes_no_place_of_a_finished_one(self):
        recipe = small_recipe.write(self.folder)
        self.good("train", recipe, "--steps", 2, "--write")
        for file in (self.folder / "out").glob("*.checkpoint"):
            file.unlink()
        lines = self.metrics()
        for more in ([], ["--resume"]):
            self.bad(2, ["there is the model of a training already"], "train", recipe, *more)
        self.assertEqual(self.metrics(), lines)

    def tune(self, *more, out="tuned"):
        small_recipe.write(self.folder)
        return self.good(
            "tune", self.scout, self.folder / "sums.jsonl", "--out", f"{self.folder}/{out}",
            "--steps", 4, "--tokens", 256, "--micro", 128, "--length", 64, "--json", *more,
        )  # fmt: skip

    def test_tunes_a_model_that_is_there(self):
        done = self.tune("--full", "--rate", "1e-3", "--freeze", "blk.0.*")
        self.assertIn("frozen: blk.0.*", done.err)
        self.assertEqual(done.json["step"], 4)
        for model in ("tuned/tuned.gguf", "tuned/tuned"):
            self.good("run", self.folder / model, "what is 1 and 2?", "-n", 3)

    def test_a_tuned_model_has_its_folders_own_name(self):
        for out, name in (("tuned/", "tuned"), ("other/more/..", "other")):
            self.tune(out=out)
            self.assertTrue((self.folder / name / name / "adapter_config.json").exists(), out)

    def test_says_nothing_of_what_is_held_out_when_nothing_is(self):
        self.assertNotIn("held out", self.tune("--held-out", 0).err)

    def test_tunes_adapters_beside_a_model(self):
        done = self.tune("--rank", 2, "--lora", "attention,experts")
        self.assertIn("teaches adapters of rank 2 on ", done.err)
        self.assertIn("held out: data ", done.err)
        adapter = self.folder / "tuned/tuned"
        self.assertEqual(json.loads((adapter / "adapter_config.json").read_text())["r"], 2)
        self.good("run", self.scout, "what is 1 and 2?", "-n", 3, "--lora", adapter)
        self.bad(2, ["--full"], "tune", self.scout, self.folder / "sums.jsonl", "--out",
                 self.folder / "x", "--freeze", "blk.0.*")  # fmt: skip
