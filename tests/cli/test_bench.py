"""bench: what it measures is the machine's business; that it says what it promises is ours."""

import subprocess

import harness
from harness import CliTest

ROW = {
    "test": str,
    "tokens": int,
    "depth": int,
    "parallel": int,
    "threads": int,
    "tokens_per_second": float,
    "spread": float,
    "bytes_per_second": float,
    "fraction_of_limit": float,
    "limit": str,
}


class Bench(CliTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.tiny = harness.pathlib.Path(cls._shared.name) / "tiny.gguf"
        made = harness.run("bench", "--make", "tiny", cls.tiny, "--type", "q8_0")
        assert made.code == 0, made.err

    def test_json_has_one_row_for_each_test_in_order(self):
        facts = self.good(
            *("bench", self.tiny, "--prompt", 20, "--generate", "2,3", "--depth", "0,5"),
            *("--parallel", "1,4", "--both", "--threads", "1,2", "--repeat", 2, "--json"),
        ).json
        per_depth = [("pp", 20, 1), ("tg", 2, 1), ("tg", 3, 1), ("tg", 2, 4), ("tg", 3, 4)]
        per_depth += [("pg", 22, 1), ("pg", 23, 1)]
        expected = [
            (test, tokens, depth, parallel, threads)
            for threads in (1, 2)
            for depth in (0, 5)
            for test, tokens, parallel in per_depth
        ]
        keys = ("test", "tokens", "depth", "parallel", "threads")
        self.assertEqual([tuple(row[k] for k in keys) for row in facts["results"]], expected)
        for row in facts["results"]:
            self.assertEqual({key: type(value) for key, value in row.items()}, ROW)
            self.assertGreater(row["tokens_per_second"], 0)
            self.assertGreater(row["bytes_per_second"], 0)
            self.assertGreater(row["fraction_of_limit"], 0)
            self.assertGreaterEqual(row["spread"], 0)
            self.assertIn(row["limit"], ("bandwidth", "multipliers"))
        self.assertEqual([limit["threads"] for limit in facts["limits"]], [1, 2])
        for limit in facts["limits"]:
            self.assertTrue(all(value > 0 for value in limit.values()), limit)
        self.assertEqual(facts["model"], "tiny.gguf")
        self.assertGreater(facts["memory_beyond_files"], 0)
        self.assertGreater(facts["load_seconds"], 0)

    def test_people_get_a_markdown_table(self):
        text = self.good("bench", self.scout, "-p", 20, "-n", 2, "-r", 1, "-t", 1).text
        lines = text.splitlines()
        table = [line for line in lines if line.startswith("|")]
        self.assertEqual(len(table), 4, text)
        self.assertEqual({line.count("|") for line in table}, {9}, text)
        self.assertTrue(table[2].startswith("| pp 20 | 0 | 1 | 1 |"), text)
        self.assertTrue(table[3].startswith("| tg 2 | 0 | 1 | 1 |"), text)
        self.assertIn("GB/s", lines[1])
        self.assertIn("beyond the mapped file", lines[-1])

    def test_two_models_are_compared_by_speed_and_by_parameters(self):
        options = ("-p", 20, "-n", 2, "-r", 2, "-t", 1)
        facts = self.good("bench", "--compare", self.tiny, self.llama, *options, "--json").json
        self.assertEqual((facts["a"], facts["b"]), ("tiny.gguf", "llama"))
        self.assertEqual([row["test"] for row in facts["results"]], ["pp", "tg"])
        for row in facts["results"]:
            self.assertAlmostEqual(row["kept"], row["ratio"] / facts["parameter_ratio"])
        parameters = []
        for model in (self.tiny, self.llama):
            told = self.good("inspect", model, "--json").json
            embedding = told["config"]["vocab"] * told["config"]["hidden"]
            parameters.append(told["parameters"]["active"] - embedding)
        self.assertAlmostEqual(facts["parameter_ratio"], parameters[1] / parameters[0])
        text = self.good("bench", "--compare", self.tiny, self.llama, *options).text
        self.assertEqual(sum(line.startswith("|") for line in text.splitlines()), 4)
        self.bad(2, "one number", "bench", "--compare", self.tiny, self.llama, "-t", "1,2")

    def test_another_program_may_measure_in_turn(self):
        command = ["bench", self.tiny, "--step", "--json", "-p", 0, "-n", 2, "-r", 3, "-t", 1]
        program = subprocess.Popen(
            [harness.drover, *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=harness.CLEAN,
            text=True,
        )
        for _ in range(3):
            self.assertEqual(program.stdout.readline(), "ready\n")
            program.stdin.write("\n")
            program.stdin.flush()
            self.assertGreater(float(program.stdout.readline()), 0)
        facts = harness.json.loads(program.stdout.readline())
        self.assertEqual(len(facts["results"]), 1)
        program.stdin.close()
        program.stdout.close()
        self.assertEqual(program.wait(60), 0)

    def test_a_made_model_answers_and_is_not_written_over(self):
        self.good("run", self.tiny, "hello", "-n", 3)
        self.bad(73, "already exists", "bench", "--make", "tiny", self.tiny)
        self.good("bench", "--make", "tiny", self.tiny, "--type", "q8_0", "--force")
        out = self.folder / "x.gguf"
        self.bad(2, ["edge-moe", "got giant"], "bench", "--make", "giant", out)
        self.bad(2, ["q4_k_m", "got q9"], "bench", "--make", "tiny", out, "--type", "q9")
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_what_makes_no_sense_is_refused(self):
        for words, options in (
            ("expected one of MODEL", ()),
            ("excludes", (self.tiny, "--compare", self.tiny, self.tiny)),
            ("something to measure", (self.tiny, "-p", 0, "-n", 0)),
            ("repeat", (self.tiny, "-r", 0)),
            ("batch", (self.tiny, "-b", 0)),
            ("cache type", (self.tiny, "--cache-type", "q4_0")),
            ("parallel 0", (self.tiny, "--parallel", 0)),
            ("prompt -1", (self.tiny, "--prompt=-1")),
            ("threads", (self.tiny, "--threads", "1,-1")),
        ):
            self.bad(2, words, "bench", *options)
        self.bad(1, "context", "bench", self.tiny, "--depth", 1 << 30)
        self.bad(66, "no/such", "bench", "no/such")
