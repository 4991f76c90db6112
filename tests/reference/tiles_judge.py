"""Holds Drover's resampling and tiles against Pillow and against tiles_page.py, pixel by pixel.

    python tiles_judge.py PROBE [--shared ../shared/data]

PROBE is the built tiles_probe. Every picture is seeded noise, a smooth slope or hard edges, and the
photographs of --shared when they are there. Not a single bit may differ.
"""

import argparse
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import tiles_page

SEED = 20250405
# Where the roundings are: nothing changes, one side changes, one pixel, whole ratios, one off them,
# far down, far up, wider than float32 counts.
RESIZES = [  # width, height, new width, new height
    (7, 5, 7, 5), (64, 48, 64, 20), (64, 48, 30, 48), (64, 48, 64, 97), (64, 48, 131, 48),
    (1, 1, 1, 1), (1, 1, 336, 336), (1, 1, 1, 9), (2, 3, 1, 1), (336, 336, 1, 1), (3, 2, 336, 336),
    (672, 672, 336, 336), (673, 671, 336, 336), (671, 673, 336, 336), (1008, 336, 336, 336),
    (337, 337, 336, 336), (335, 335, 336, 336), (336, 337, 337, 336), (1000, 10, 336, 336),
    (12000, 3, 336, 336), (3, 12000, 336, 336), (1, 5000, 3, 7), (5000, 1, 7, 3),
    (1920, 1080, 1680, 945), (1080, 1920, 945, 1680), (2000, 2000, 1344, 1344),
    (4032, 3024, 1344, 1008), (4032, 3024, 336, 336), (512, 512, 511, 513),
    (20_000_001, 1, 336, 1), (1, 20_000_001, 1, 336),
]  # fmt: skip
TILES = [  # width, height
    (1, 1), (336, 336), (337, 336), (336, 337), (335, 337), (672, 336), (671, 673), (100, 100),
    (300, 200), (640, 480), (1024, 768), (1920, 1080), (1080, 1920), (800, 300), (1000, 10),
    (10, 1000), (2000, 2000), (500, 3000), (5376, 336), (336, 5377), (1, 6000), (6000, 1),
    (1344, 1344), (1345, 1343),
]  # fmt: skip


def picture(rng, width, height):
    kind = rng.randrange(3)
    dice = np.random.default_rng(rng.randrange(1 << 32))
    if kind == 0:
        rgb = dice.integers(0, 256, (height, width, 3))
    elif kind == 1:
        slope = np.arange(height)[:, None] / height + np.arange(width) / width
        rgb = slope[..., None] * dice.integers(0, 128, 3)
    else:
        rgb = 255 * (dice.random((height, width, 3)) < 0.5)
    return Image.fromarray(rgb.astype(np.uint8))


def ask(probe, what, *numbers, pixels=b""):
    request = np.array(numbers, "<u4").tobytes() + pixels
    return subprocess.run([probe, what], input=request, capture_output=True, check=True).stdout


def check_resize(probe, source, width, height):
    theirs = np.asarray(tiles_page.resize(source, width, height))
    numbers = (source.width, source.height, width, height)
    ours = ask(probe, "resize", *numbers, pixels=source.tobytes())
    ours = np.frombuffer(ours, np.uint8).reshape(theirs.shape)
    return report(f"{source.width}x{source.height} to {width}x{height}", ours, theirs)


def check_tiles(probe, source):
    theirs = tiles_page.tiles(source)
    size = (source.height, source.width)
    answer = ask(probe, "tiles", source.width, source.height, pixels=source.tobytes())
    layout = tuple(np.frombuffer(answer[:20], "<u4").tolist())
    expected = (*tiles_page.canvas(*size), *tiles_page.fit(*size), len(theirs))
    name = f"tiles of {source.width}x{source.height}"
    if layout != expected:
        print(f"{name}: layout {layout}, expected {expected}")
        return 1
    return report(name, np.frombuffer(answer[20:], np.uint8).reshape(theirs.shape), theirs)


def report(name, ours, theirs):
    wrong = np.argwhere(ours != theirs)
    if len(wrong):
        at = tuple(wrong[0])
        print(f"{name}: {len(wrong)} differences, at {at} {ours[at]}, expected {theirs[at]}")
    return len(wrong) > 0


def check_layouts(probe, rng, count):
    log_size = lambda: int(10 ** rng.uniform(0, 4.8))
    near = lambda: max(336 * rng.randint(0, 17) + rng.randint(-1, 1), 1)
    sizes = [(log_size(), log_size()) for _ in range(count)]
    sizes += [(near(), near()) for _ in range(count)]
    lines = "".join(f"{h} {w}\n" for h, w in sizes)
    answer = subprocess.run(
        [probe, "layout"], input=lines, capture_output=True, check=True, text=True
    )
    wrong = 0
    for (h, w), line in zip(sizes, answer.stdout.splitlines(), strict=True):
        rows, cols = tiles_page.canvas(h, w)
        expected = (rows, cols, *tiles_page.fit(h, w), rows * cols + (rows * cols > 1))
        if tuple(map(int, line.split())) != expected:
            print(f"layout of {h}x{w}: {line}, expected {expected}")
            wrong += 1
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("probe")
    parser.add_argument("--shared", default="../shared/data", type=Path)
    args = parser.parse_args()
    rng = random.Random(SEED)

    wrong = check_layouts(args.probe, rng, 2000)
    print("4000 layouts")

    # Larger pictures than Pillow likes to open are ours.
    Image.MAX_IMAGE_PIXELS = None
    some = lambda most: max(int(most ** rng.random()), 1)
    resizes = RESIZES + [(some(1500), some(1500), some(1500), some(1500)) for _ in range(40)]
    for width, height, *size in resizes:
        wrong += check_resize(args.probe, picture(rng, width, height), *size)
    print(f"{len(resizes)} resizes")

    sizes = TILES + [(some(3000), some(3000)) for _ in range(20)]
    for size in sizes:
        wrong += check_tiles(args.probe, picture(rng, *size))
    print(f"tiles of {len(sizes)} pictures")

    folder = args.shared / "images"
    photographs = sorted(folder.glob("*.jp*g"))
    for path in photographs:
        photograph = Image.open(path).convert("RGB")
        # Cut and enlarged, they have the ratios of real photographs.
        for shape in (photograph.size, (640, 480), (1080, 1920), (4032, 3024), (900, 300)):
            source = photograph.resize(shape, Image.Resampling.BICUBIC)
            wrong += check_tiles(args.probe, source)
            wrong += check_resize(args.probe, source, some(1500), some(1500))
    print(f"{len(photographs)} photographs in five shapes" if photographs
          else f"photographs: skipped, {folder} is not there")  # fmt: skip

    print(f"seed {SEED}, {wrong} differences in all")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
