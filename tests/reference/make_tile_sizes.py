"""Writes tests/data/images/tile_sizes.json: what transformers makes of 400 sizes of pictures.

    pip install torch torchvision transformers==5.24.0 pillow numpy
    python make_tile_sizes.py [--out FILE] [--photographs FOLDER]

Llama4Processor is asked with blank pictures of every size. What it is asked for is not pixels, so its
resize is watched and answers with a blank picture of the wanted size. The texts it makes are held
against tiles_page.py here; canvas, resized size and the number of tokens are written.

transformers finds the resized size in float32 when the canvas is the bound, and so is a pixel off
here and there. Those sizes are listed with what float64 gives ("float64").

With --photographs, also counts in how many pixels its resampling differs from Pillow's.
"""

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Llama4ImageProcessor, Llama4Processor, PreTrainedTokenizerFast

import tiles_page

SEED, COUNT, LONGEST = 20250405, 400, 12000
SPECIALS = ["<|image_start|>", "<|image_end|>", "<|tile_x_separator|>", "<|tile_y_separator|>",
            "<|image|>", "<|patch|>"]  # fmt: skip
# height, width: the table of spec 6.8, then corners, what cameras and screens make, and sizes whose fit
# is an integer, where float32 and float64 part.
FIXED = [
    (1, 1), (100, 100), (200, 300), (336, 337), (337, 337), (480, 640), (768, 1024), (1080, 1920),
    (1920, 1080), (300, 800), (10, 1000), (2000, 2000), (3000, 500), (4032, 3024),
    (1, 2), (2, 1), (1, 335), (1, 336), (1, 337), (336, 1), (337, 1), (1, 12000), (12000, 1),
    (2, 12000), (12000, 3), (17, 12000), (12000, 300), (336, 12000), (12000, 12000), (11999, 12000),
    (1, 5376), (1, 5377), (5375, 1), (5376, 336), (336, 5377), (5377, 337), (335, 5376),
    (240, 320), (600, 800), (720, 1280), (1440, 2560), (2160, 3840), (3024, 4032), (6000, 4000),
    (2532, 1170), (2778, 1284), (3264, 2448), (512, 512), (1024, 1024), (1280, 1280), (3508, 2480),
    (2096, 2096), (2280, 2280), (2404, 2404), (1161, 2064), (1233, 2192), (1350, 2400), (1082, 2164),
    (1128, 2256), (1572, 2096), (1710, 2280), (1648, 2472), (2008, 1506), (2882, 1848), (480, 5620),
    (747, 5229), (1776, 3108), (1216, 3534), (2886, 1924), (4864, 836), (4921, 532),
]  # fmt: skip


def sizes():
    rng = random.Random(SEED)
    near = lambda: 336 * rng.randint(1, 17) + rng.choice((-1, 0, 0, 1))
    log_size = lambda: round(LONGEST ** rng.random())
    every = dict.fromkeys(FIXED)
    while len(every) < 200:
        every[near(), near()] = None
    while len(every) < COUNT:
        every[log_size(), log_size()] = None
    return list(every)


def make_processor():
    words = {text: i for i, text in enumerate(["?", "see", *SPECIALS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS})
    # Scout as it was released: patches of 14 pixels, four of them to a token.
    return Llama4Processor(Llama4ImageProcessor(), tokenizer, patch_size=14, pixel_shuffle_ratio=0.5)


def ask(processor, height, width):
    """Resized size, tiles and text of a blank picture."""
    asked = []

    def resize(images, size, **_):
        asked.append((int(size.height), int(size.width)))
        return images.new_zeros((*images.shape[:-2], size.height, size.width))

    processor.image_processor.resize = resize
    blank = torch.zeros((3, height, width), dtype=torch.uint8)
    answer = processor(images=[blank], text="see <|image|> see", return_tensors="pt")
    if len(asked) > 1:
        assert asked[1:] == [(tiles_page.TILE, tiles_page.TILE)], asked
    text = processor.tokenizer.convert_ids_to_tokens(answer["input_ids"][0])
    assert text[0] == text[-1] == "see"
    return asked[0], answer["pixel_values"].shape[0], text[1:-1]


def compare_pixels(folder):
    """transformers' resampling of photographs and of noise, against Pillow's."""
    processor = Llama4ImageProcessor()
    dice = np.random.default_rng(SEED)
    pictures = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jp*g"))]
    for height, width in ((100, 100), (480, 640), (1080, 1920), (1500, 1500), (3024, 4032)):
        pictures.append(Image.fromarray(dice.integers(0, 256, (height, width, 3), np.uint8)))
        pictures.append(pictures[0].resize((width, height), Image.Resampling.BICUBIC))
    for picture in pictures:
        stacked = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
        for height, width in (tiles_page.fit(picture.height, picture.width), (336, 336)):
            size = transformers.image_utils.SizeDict(height=height, width=width)
            theirs = processor.resize(stacked, size, resample=processor.resample)
            theirs = theirs[0].permute(1, 2, 0).numpy().astype(int)
            pillow = np.asarray(tiles_page.resize(picture, width, height))
            away = np.abs(theirs - pillow.astype(int))
            print(f"{picture.height}x{picture.width} to {height}x{width}: {np.count_nonzero(away)} of"
                  f" {away.size} values differ, by at most {away.max()}")  # fmt: skip


def main():
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=root / "tests/data/images/tile_sizes.json")
    parser.add_argument("--photographs", type=Path)
    args = parser.parse_args()

    transformers.logging.set_verbosity_error()
    processor = make_processor()
    rows, float64 = [], []
    for height, width in sizes():
        fitted, tiles, text = ask(processor, height, width)
        grid = tiles_page.canvas(height, width)
        assert tiles == np.prod(grid) + (np.prod(grid) > 1), (height, width, tiles)
        assert "".join(text) == tiles_page.token_string(*grid), (height, width)
        rows.append([height, width, *grid, *fitted, tiles, len(text)])
        exact = tiles_page.fit(height, width)
        if exact != fitted:
            float64.append([height, width, *exact])
    print(f"{len(rows)} sizes, {len(float64)} fitted otherwise in float64")

    lines = lambda table: "[\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in table) + "\n]"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        f'{{"made_with": "transformers {transformers.__version__}",\n'
        '"columns": "height, width; rows, cols of the canvas; height, width on it; tiles; tokens",\n'
        f'"sizes": {lines(rows)},\n"float64": {lines(float64)}\n}}\n'
    )
    if args.photographs:
        compare_pixels(args.photographs)


if __name__ == "__main__":
    main()
