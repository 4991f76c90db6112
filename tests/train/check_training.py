#!/usr/bin/env python3
"""check_training.py DROVER [--kills N] [--seed N]: see script/check-training."""

import argparse
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "cli"))
import small_recipe  # noqa: E402


def command(drover, recipe, out):
    return [drover, "train", str(recipe), "--resume", "--out", str(out)]


def finish(drover, recipe, out):
    done = subprocess.run(command(drover, recipe, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode != 0:
        sys.exit(f"expected the training to end well, got {done.returncode}: {done.stderr.decode()}")


def result(out):
    return small_recipe.timeless(out / "metrics.jsonl"), (out / "small.gguf").read_bytes()


def differences(ours, theirs):
    for mine, other in zip(ours[0], theirs[0]):
        if mine != other:
            return f"expected {other}, got {mine}"
    if len(ours[0]) != len(theirs[0]):
        return f"expected {len(theirs[0])} lines, got {len(ours[0])}"
    return "" if ours[1] == theirs[1] else "expected the same model, got another"


def main():
    parser = argparse.ArgumentParser(description="Kills a training and compares.")
    parser.add_argument("drover")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    numbers = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="drover-train-") as name:
        folder = pathlib.Path(name)
        recipe = small_recipe.write(folder)
        start = time.monotonic()
        finish(arguments.drover, recipe, folder / "whole")
        whole = time.monotonic() - start
        expected = result(folder / "whole")
        print(f"undisturbed: {len(expected[0])} lines in {whole:.1f} s")

        kills = trainings = 0
        while kills < arguments.kills or trainings == 0:
            out = folder / f"killed-{trainings}"
            here = 0
            while kills < arguments.kills:
                process = subprocess.Popen(
                    command(arguments.drover, recipe, out),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                try:
                    # Long enough to come forward, short enough to be killed several times.
                    code = process.wait(timeout=numbers.uniform(0, whole / 2))
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    kills += 1
                    here += 1
                    continue
                if code != 0:
                    sys.exit(f"expected the training to end well, got {code}")
                break
            finish(arguments.drover, recipe, out)
            difference = differences(result(out), expected)
            print(f"killed {here} times: {difference or 'the same losses and the same model'}")
            if difference:
                sys.exit(1)
            trainings += 1
        print(f"{kills} kills in {trainings} trainings: not a bit is different")


if __name__ == "__main__":
    main()
