"""plan: whether a model fits, from its configuration alone; what to change; how long it takes."""

import pathlib

import harness
from harness import CliTest

SCOUT = pathlib.Path("tests/data/configs/scout")
MAVERICK = pathlib.Path("tests/data/configs/maverick/config.json")
LIMITS = ("--bandwidth", 100, "--int8-rate", 10, "--float-rate", 2)


class Plan(CliTest):
    def test_scout_at_ten_million_tokens_has_the_designs_cache(self):
        told = self.good(
            *("plan", SCOUT, "--type", "q4_k_m", "-c", "10M", "--memory", "1T"),
            *("--no-measure", "--json"),
        ).json
        (row,) = told["table"]
        self.assertEqual(row["context"], 10_000_000)
        self.assertAlmostEqual(row["cache"]["bf16"]["global_bytes"] / 1e9, 491.5, delta=0.05)
        self.assertGreaterEqual(row["cache"]["int8"]["global_bytes"], 253e9)
        self.assertLessEqual(row["cache"]["int8"]["global_bytes"], 261e9)
        self.assertAlmostEqual(row["cache"]["bf16"]["local_bytes"] / 1e9, 1.21, delta=0.005)
        self.assertIsNone(row["prefill_seconds"])
        self.assertEqual(told["parameters"]["total"], 108641793536)
        self.assertEqual(told["fits"], True)
        self.assertEqual(told["advice"], [])
        self.assertEqual(told["memory_bytes"], 1 << 40)

    def test_what_does_not_fit_has_exit_code_3_and_ways_out_that_work(self):
        ask = ("plan", SCOUT, "--no-measure", "--json")
        result = self.bad_plan(*ask, "--context", "1M", "--memory", "128G")
        advice = result.json["advice"]
        self.assertGreaterEqual(len(advice), 2)
        for change in advice:
            flags = {"--context": "1M", "--memory": "128G"}
            words = change["flags"].split()
            flags.update(zip(words[::2], words[1::2]))
            again = self.good(*ask, *[word for pair in flags.items() for word in pair]).json
            self.assertEqual(again["needed_bytes"], change["needed_bytes"], change)
            self.assertTrue(again["fits"])
        text = self.bad_plan("plan", SCOUT, "--no-measure", "-c", "1M", "--memory", "128G").text
        self.assertIn("does NOT fit", text)
        self.assertIn("--type q", text)

    def bad_plan(self, *args):
        result = harness.run(*args)
        self.assertEqual((result.code, result.err), (3, ""))
        return result

    def test_the_table_has_the_lengths_that_the_model_was_made_for(self):
        told = self.good("plan", MAVERICK, "--memory", "2T", *LIMITS, "--json").json
        lengths = [row["context"] for row in told["table"]]
        self.assertEqual(lengths, [8192, 32768, 131072, 1000000, 1048576])
        self.assertEqual(told["limits"]["bytes_per_second"], 100e9)
        self.assertEqual(told["context"], 32768)
        for row in told["table"]:
            self.assertGreater(row["prefill_seconds"], 0)
            self.assertLess(row["prefill_seconds"], row["prefill_seconds_with_dead_work"])
            self.assertGreater(row["decode_seconds_per_token"], 0)
        text = self.good("plan", MAVERICK, "--memory", "2T", *LIMITS).text
        self.assertEqual(sum(line.startswith("|") for line in text.splitlines()), 7)
        self.assertIn("reads 100.0 GB/s", text)

    def test_a_folder_is_planned_with_the_types_it_has_and_measured_here(self):
        told = self.good("plan", self.scout, "--json").json
        self.assertTrue(told["has_weights"])
        self.assertEqual(list(told["weight_bytes_by_type"]), ["f32"])
        self.assertEqual(told["cache_type"], "f32")
        self.assertGreater(told["limits"]["bytes_per_second"], 0)
        inspected = self.good("inspect", self.scout, "--json").json
        self.assertEqual(told["weight_bytes"], inspected["weight_bytes"])

    def test_what_makes_no_sense_is_refused(self):
        for code, words, options in (
            (2, "tokens such as", ("--context", "many")),
            (2, "tokens such as", ("--context", "0")),
            (2, "tokens such as", ("--context", "1.0000001K")),
            (2, "bytes such as", ("--memory", "64X")),
            (2, "q4_k_m", ("--type", "q9")),
            (2, "cache type", ("--cache-type", "q4_0")),
            (2, "batch", ("--batch", 0)),
            (2, "limits", ("--bandwidth=-1",)),
            (1, "at most the model's 10485760", ("--context", "11M")),
        ):
            self.bad(code, words, "plan", SCOUT, "--no-measure", *options)
        self.bad(66, "no/such", "plan", "no/such")
        broken = self.folder / "config.json"
        broken.write_text('{"model_type": "gpt2"}')
        self.bad(1, "gpt2", "plan", broken)
