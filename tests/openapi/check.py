"""Asks `drover serve` whatever its own description allows and forbids, for some time, and looks at
every answer: no 5xx, nothing that is not described, nothing taken that is forbidden.

    python check.py DROVER [--seconds N] [--seed N] [--path PATH ...] [argument of `st run` ...]
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import urllib.request

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent / "clients"))
import server  # noqa: E402

POST_WEIGHT = 6  # of the time of a GET, which has next to nothing to vary


def read(url):
    with urllib.request.urlopen(url) as answer:
        return answer.read().decode()


def ask(served, path, seconds, seed, more):
    """Whether schemathesis finds nothing wrong with what this path answers."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli"),
        *("--config-file", FOLDER / "schemathesis.toml"),
        *("run", served.address + "/openapi.json", "--url", served.base, "--include-path", path),
        *("--max-time", max(1, round(seconds)), "--seed", seed),
        *more,
    ]
    # It starts in seconds, and ends a test that it has begun.
    patience = 2 * seconds + 120
    try:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=patience
        )
    except subprocess.TimeoutExpired:
        print(f"{path}: schemathesis did not end within {patience:.0f} s")
        return False
    cases = re.search(r"(\d+) generated", done.stdout)
    print(f"{path}: {cases[1] if cases else 'no'} requests in {seconds:.0f} s", flush=True)
    if done.returncode != 0:
        print(done.stdout, done.stderr)
    return done.returncode == 0 and cases is not None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("drover")
    parser.add_argument("--seconds", type=float, default=600, help="of asking (600)")
    parser.add_argument("--seed", type=int, default=1, help="of the requests (1)")
    parser.add_argument("--path", action="append", help="this one, not all")
    options, more = parser.parse_known_args()
    server.drover = options.drover
    # A short context: whatever is asked ends soon.
    served = server.tiny("--context", 128, "--access-log", "off")
    try:
        paths = json.loads(read(served.address + "/openapi.json"))["paths"]
        weights = {
            path: POST_WEIGHT if "post" in methods else 1
            for path, methods in paths.items()
            if not options.path or path in options.path
        }
        share = options.seconds / sum(weights.values())
        # A process for each, so that one that is hard to make requests for has not the time of all.
        good = [
            ask(served, path, weight * share, options.seed, more)
            for path, weight in weights.items()
        ]
        counted = re.findall(
            r'^drover_http_requests_total\{[^}]*status="(\d+)"[^}]*\} (\S+)',
            read(served.address + "/metrics"),
            re.MULTILINE,
        )
    finally:
        ended = served.stop()
    print("answers by status:", ", ".join(f"{status}: {count}" for status, count in sorted(counted)))
    broken = [status for status, _ in counted if status.startswith("5")]
    if broken or ended != 0:
        print(f"answers of {broken}; the server ended with {ended}", "".join(served.lines[-20:]))
    sys.exit(0 if all(good) and not broken and ended == 0 else 1)


main()
