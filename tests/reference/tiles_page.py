"""Llama 4's tiles on one page, from the equations: NumPy and Pillow, nothing of Drover's.

The canvas is chosen in float32 from a list of candidates, as the released code does it; the fit is
found in Python's float64; Pillow resizes, across and then down.
"""

import numpy as np
from PIL import Image

TILE, MOST_TILES = 336, 16
PATCHES = 144  # of a tile, as the text model sees it

CANVASES = np.array(
    [(f, n // f) for n in range(MOST_TILES, 0, -1) for f in range(1, n + 1) if n % f == 0]
)


def canvas(height, width):
    """Rows and columns of tiles."""
    scales = np.minimum(
        np.float32(TILE) * CANVASES[:, 0].astype(np.float32) / np.float32(height),
        np.float32(TILE) * CANVASES[:, 1].astype(np.float32) / np.float32(width),
    )
    holding = scales[scales >= 1]
    best = holding.min() if len(holding) else scales.max()
    rows, cols = min(CANVASES[scales == best], key=np.prod)
    return int(rows), int(cols)


def fit(height, width):
    """Height and width of the picture on its canvas."""
    rows, cols = canvas(height, width)
    most_height = min(max(height, TILE), rows * TILE)
    most_width = min(max(width, TILE), cols * TILE)
    by_width, by_height = most_width / width, most_height / height
    if by_width < by_height:
        return max(min(int(height * by_width), most_height), 1), most_width
    return most_height, max(min(int(width * by_height), most_width), 1)


def resize(picture, width, height):
    """Pillow's bilinear resize, across first.

    That was its order when the models were taught. 12.3 goes down first in pictures more than 100
    times as high as wide, and 13.0 wherever a picture gets much lower, to be faster; then some values
    differ by one, because of the 8 bits between the passes. Asked for one pass at a time, every
    version gives the same.
    """
    across = picture.resize((width, picture.height), Image.Resampling.BILINEAR)
    return across.resize((width, height), Image.Resampling.BILINEAR)


def tiles(picture):
    """uint8 [tiles, 336, 336, 3] of a Pillow picture in RGB."""
    rows, cols = canvas(picture.height, picture.width)
    height, width = fit(picture.height, picture.width)
    board = Image.new("RGB", (cols * TILE, rows * TILE))
    board.paste(resize(picture, width, height), (0, 0))
    cut = np.asarray(board).reshape(rows, TILE, cols, TILE, 3).transpose(0, 2, 1, 3, 4)
    cut = cut.reshape(rows * cols, TILE, TILE, 3)
    if rows * cols == 1:
        return cut
    whole = np.asarray(resize(picture, TILE, TILE))
    return np.concatenate([cut, whole[None]])


def token_string(rows, cols):
    """What stands for a picture in a prompt."""
    patches = "<|patch|>" * PATCHES
    row = "<|tile_x_separator|>".join([patches] * cols) + "<|tile_y_separator|>"
    board = row * rows if rows * cols > 1 else ""
    return f"<|image_start|>{board}<|image|>{patches}<|image_end|>"
