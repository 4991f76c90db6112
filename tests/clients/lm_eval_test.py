"""lm-eval, EleutherAI's evaluation harness, on tasks of our own (lm_eval_task/) by way of
/v1/completions. What it measures is what `drover score` and `drover run` say.

It finds the tokenizer of the server by itself (/tokenizer_info, /tokenize), so nothing is fetched.

    python lm_eval_test.py DROVER SCRIPTED_SERVER [unittest arguments]
"""

import atexit
import json
import os
import pathlib
import subprocess
import tempfile

import requests
import server

# Before the harness is imported: it keeps what it made of data in this folder, and asks nobody.
home = tempfile.TemporaryDirectory(prefix="drover-lm-eval-", ignore_cleanup_errors=True)
atexit.register(home.cleanup)
os.environ.update(HF_HOME=home.name, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import lm_eval
from lm_eval.tasks import TaskManager

TASKS = pathlib.Path(__file__).parent / "lm_eval_task"

# Both sides add up the same log-probabilities in double precision: the program prints them to the
# last digit. So only the rounding of the sums differs: fewer than 100 terms, each sum below 1000,
# make less than 100 * 1000 * 2^-53.
TOLERANCE = 1000 * 100 * 2**-53


def evaluate(base, name, task, **more):
    """The samples of a task, in order of its documents."""
    model = {
        "base_url": base + "/completions",
        "model": name,
        "max_retries": 1,
        "max_length": 2048,
        **more,
    }
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args=model,
        tasks=[task],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    return found["results"][task], sorted(found["samples"][task], key=lambda one: one["doc_id"])


class SmolTest(server.ServedTest):
    start = staticmethod(server.smol)

    def test_likelihoods_of_continuations_are_those_of_score(self):
        for more in ({}, {"num_concurrent": 4}, {"batch_size": 3}):
            with self.subTest(more=more):
                results, samples = evaluate(self.base, "smol", "drover_choices", **more)
                self.assertEqual(results["acc,none"], 1)
                for sample in samples:
                    choices = zip(sample["arguments"], sample["filtered_resps"], strict=True)
                    for (context, continuation), (likelihood, _) in choices:
                        expected = -(self.nll(context + continuation) - self.nll(context))
                        self.assertAlmostEqual(likelihood, expected, delta=TOLERANCE)

    def nll(self, text, known={}):
        if text not in known:
            known[text] = server.score(server.SMOLLM2, text)["nll"]
        return known[text]

    def test_what_is_written_is_what_run_writes(self):
        _, samples = evaluate(self.base, "smol", "drover_stories")
        for sample in samples:
            beginning = sample["arguments"][0][0]
            command = [server.drover, "run", str(server.SMOLLM2), beginning, "--raw", "--json"]
            command += ["--temp", "0", "-n", "24", "--stop", ".", *server.ONE_THREAD]
            done = subprocess.run(command, check=True, capture_output=True, env=server.CLEAN)
            self.assertEqual(sample["resps"][0][0], json.loads(done.stdout)["text"])


class TinyTest(server.ServedTest):
    """A model whose texts begin with a token of their own, so that every token is predicted."""

    start = staticmethod(server.tiny)

    def test_likelihoods_of_texts_are_those_of_score(self):
        asked = requests.post(self.server.address + "/tokenize", json={"prompt": ""})
        (begin,) = asked.json()["tokens"]
        _, samples = evaluate(self.base, "tiny", "drover_texts", custom_prefix_token_id=begin)
        for sample in samples:
            text = sample["doc"]["text"]
            expected = server.score(server.tiny_model(), text)["nll"]
            self.assertAlmostEqual(sample["resps"][0][0], -expected, delta=TOLERANCE)


if __name__ == "__main__":
    server.main(watched=False)  # it asks by other means than httpx
