#!/usr/bin/env python3
"""Holds decode_image against Pillow, bit for bit.

  image_judge.py PROBE

PROBE is the test target image_probe. Pictures of every kind: written by Pillow, put together in
bytes where Pillow cannot write them, written by the probe itself (odd sampling, arithmetic coding,
YCCK), and photographs where ../shared/data/images is there. What is expected is Pillow's
exif_transpose and convert("RGB"), or the paste on white where there is alpha or a transparent
colour.

Where Pillow has quirks with PNG, the expected pixels are worked out here instead:
- 16-bit grey becomes white above 255 in Pillow; here the high byte counts, as it does in Pillow for
  16-bit RGB;
- a transparent colour of grey with 2 or 4 bits, or of 16 bits, is compared with pixels after
  scaling in Pillow; here with the pixels as the file has them.
"""

import io
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

PHOTOGRAPHS = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "data" / "images"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG colour type
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def on_white(rgba: Image.Image) -> np.ndarray:
    out = Image.new("RGB", rgba.size, (255, 255, 255))
    out.paste(rgba, mask=rgba.getchannel("A"))
    return np.asarray(out)


def pillow(data: bytes) -> np.ndarray:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if "A" in image.getbands() or "transparency" in image.info:
        return on_white(image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def scene(rng: np.random.Generator, width: int, height: int, channels: int) -> np.ndarray:
    """Slopes, an edge and noise, so that filters and upsampling have something to differ in."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * rng.uniform(0, 9) + y * rng.uniform(0, 9) + rng.normal(0, 6, x.shape)
               + 120 * (x * rng.uniform(-1, 1) > y - height / 2)) for _ in range(channels)]
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def pil(pixels: np.ndarray, mode: str) -> Image.Image:
    height, width = pixels.shape[:2]
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def saved(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(orientation: int, order: str = "<") -> bytes:
    return (b"II" if order == "<" else b"MM") + struct.pack(
        order + "HIHHHIHHI", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


# --- PNG in bytes ---------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def packed_rows(values: np.ndarray, depth: int, rng: np.random.Generator) -> bytes:
    """values: [height, width, channels] in 0 ... 2^depth - 1, filtered at random."""
    if values.size == 0:
        return b""
    height = values.shape[0]
    if depth == 16:
        rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    elif depth == 8:
        rows = values.astype(np.uint8).reshape(height, -1)
    else:
        bits = (values.reshape(height, -1, 1) >> np.arange(depth - 1, -1, -1)) & 1
        rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    step = max(1, values.shape[2] * depth // 8)
    out = bytearray()
    above = np.zeros(rows.shape[1], np.int32)
    for row in rows.astype(np.int32):
        left = np.concatenate([np.zeros(step, np.int32), row])[:len(row)]
        corner = np.concatenate([np.zeros(step, np.int32), above])[:len(row)]
        guess = left + above - corner
        a, b, c = abs(guess - left), abs(guess - above), abs(guess - corner)
        paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))
        kind = int(rng.integers(5))
        predicted = [0, left, above, (left + above) // 2, paeth][kind]
        out += bytes([kind]) + ((row - predicted) & 255).astype(np.uint8).tobytes()
        above = row
    return bytes(out)


def png(values: np.ndarray, depth: int, color: int, rng, interlace: bool = False,
        extra: bytes = b"", late: bytes = b"") -> bytes:
    height, width = values.shape[:2]
    if interlace:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4),
                  (1, 0, 2, 2), (0, 1, 1, 2)]
        rows = b"".join(packed_rows(values[y::dy, x::dx], depth, rng) for x, y, dx, dy in passes)
    else:
        rows = packed_rows(values, depth, rng)
    return (b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace))
            + extra + chunk(b"IDAT", zlib.compress(rows)) + late + chunk(b"IEND", b""))


def high_byte(values: np.ndarray, depth: int) -> np.ndarray:
    return (values >> 8 if depth == 16 else values * 255 // (2**depth - 1)).astype(np.uint8)


def rgb_of(values: np.ndarray) -> np.ndarray:
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values


def png_cases():
    rng = np.random.default_rng(2)
    for color, depths in DEPTHS.items():
        for depth in depths:
            for interlace in (False, True):
                for width, height in ((37, 29),) if interlace else ((37, 29), (1, 1), (3, 2)):
                    values = rng.integers(0, 2**depth, (height, width, CHANNELS[color]))
                    extra = b""
                    if color == 3:
                        extra = chunk(b"PLTE", rng.bytes(3 * 2**depth))
                    data = png(values, depth, color, rng, interlace, extra)
                    expected = rgb_of(high_byte(values, 16)) if (color, depth) == (0, 16) else None
                    name = f"color {color} depth {depth} {width}x{height} interlace {interlace}"
                    yield name, data, expected

    for depth in (1, 2, 4, 8):
        values = rng.integers(0, 2**depth, (31, 23, 1))
        palette = chunk(b"PLTE", rng.bytes(3 * 2**depth))
        for n in (1, 2**depth):
            yield (f"palette of {depth} bits, {n} alphas",
                   png(values, depth, 3, rng, n > 1, palette + chunk(b"tRNS", rng.bytes(n))), None)
        yield (f"palette of {depth} bits, one colour clear",
               png(values, depth, 3, rng, False, palette + chunk(b"tRNS", b"\xff\x00")), None)
        transparent = max(0, 2**depth - 2)  # not white anyway
        clear = (values == transparent)
        grey = np.where(clear, 255, high_byte(values, depth))
        yield (f"grey of {depth} bits with a transparent value",
               png(values, depth, 0, rng, False, chunk(b"tRNS", struct.pack(">H", transparent))),
               rgb_of(grey.astype(np.uint8)))
    values = rng.integers(0, 3, (31, 23, 3))
    yield ("RGB with a transparent colour",
           png(values, 8, 2, rng, False, chunk(b"tRNS", struct.pack(">HHH", 1, 2, 1))), None)
    for color in (0, 2):
        # Colours that differ in their low bytes alone.
        values = rng.integers(0, 2, (31, 23, CHANNELS[color])) + 0x1234
        clear = (values == 0x1234).all(axis=2, keepdims=True)
        body = struct.pack(">" + "H" * CHANNELS[color], *[0x1234] * CHANNELS[color])
        yield (f"16-bit color {color} with a transparent colour",
               png(values, 16, color, rng, False, chunk(b"tRNS", body)),
               rgb_of(np.where(clear, 255, high_byte(values, 16)).astype(np.uint8)))

    values = scene(rng, 24, 17, 3)
    for orientation in range(1, 9):
        tag = chunk(b"eXIf", exif(orientation, "<>"[orientation % 2]))
        yield f"orientation {orientation}", png(values, 8, 2, rng, False, tag), None
    late = chunk(b"eXIf", exif(6))
    yield "orientation behind the pixels", png(values, 8, 2, rng, late=late), None
    yield ("profile, gamma and texts",
           png(values, 8, 2, rng, False,
               chunk(b"gAMA", struct.pack(">I", 30000))
               + chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile"))
               + chunk(b"tEXt", b"Comment\0words")
               + chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 9000))), None)
    frames = [pil(scene(rng, 24, 17, 4), "RGBA") for _ in range(3)]
    yield "animated", saved(frames[0], "PNG", save_all=True, append_images=frames[1:]), None
    yield ("animated, with another picture first",
           saved(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True),
           None)
    yield "mode 1 by Pillow", saved(pil(scene(rng, 40, 30, 1), "L").convert("1"), "PNG"), None
    yield "mode P by Pillow", saved(pil(values, "RGB").quantize(13), "PNG", optimize=True), None


# --- JPEG -----------------------------------------------------------------------------------------


def jpeg_cases(samples: Path):
    rng = np.random.default_rng(3)
    for width, height in ((1, 1), (16, 16), (17, 33), (100, 75)):
        for mode, channels in (("L", 1), ("RGB", 3), ("CMYK", 4)):
            for progressive in (False, True):
                image = pil(scene(rng, width, height, channels), mode)
                yield (f"{mode} {width}x{height} progressive {progressive}",
                       saved(image, "JPEG", progressive=progressive,
                             quality=int(rng.integers(5, 100))), None)
    image = pil(scene(rng, 75, 50, 3), "RGB")
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        for quality in (3, 60, 100):
            yield (f"{subsampling} quality {quality}",
                   saved(image, "JPEG", subsampling=subsampling, quality=quality, optimize=True),
                   None)
    yield "stored as RGB", saved(image, "JPEG", keep_rgb=True), None
    for orientation in range(0, 10):
        data = b"Exif\0\0" + exif(orientation, "<>"[orientation % 2])
        yield f"orientation {orientation}", saved(image, "JPEG", exif=data), None
    for path in sorted(samples.glob("*.jpg")):
        data = path.read_bytes()
        yield path.stem, data, None
        mark = data.find(b"\xff\xee\0\x0eAdobe")
        if mark >= 0:  # says which colours are stored; without it they are guessed
            yield path.stem + " without Adobe's mark", data[:mark] + data[mark + 16:], None
    for path in sorted(PHOTOGRAPHS.glob("*.jp*g")):
        yield path.name, path.read_bytes(), None


# --- WebP -----------------------------------------------------------------------------------------


def riff(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def webp_pixels(still: bytes) -> bytes:
    out, at = b"", 12
    while at < len(still):
        size = 8 + (struct.unpack_from("<I", still, at + 4)[0] + 1) // 2 * 2
        if still[at:at + 4] in (b"ALPH", b"VP8 ", b"VP8L"):
            out += still[at:at + size]
        at += size
    return out


def webp_animation(width: int, height: int, flags: int, x: int, y: int, stills) -> bytes:
    def three(value):
        return struct.pack("<I", value)[:3]
    body = riff(b"VP8X", struct.pack("<I", flags) + three(width - 1) + three(height - 1))
    body += riff(b"ANIM", bytes([9, 99, 199, 255]) + b"\0\0")
    for w, h, still in stills:
        body += riff(b"ANMF", three(x // 2) + three(y // 2) + three(w - 1) + three(h - 1)
                     + three(100) + b"\0" + webp_pixels(still))
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def webp_cases():
    rng = np.random.default_rng(4)
    for width, height in ((1, 1), (17, 33), (100, 75)):
        for mode in ("RGB", "RGBA"):
            for lossless in (False, True):
                image = pil(scene(rng, width, height, len(mode)), mode)
                yield (f"{mode} {width}x{height} lossless {lossless}",
                       saved(image, "WEBP", lossless=lossless, quality=int(rng.integers(10, 100))),
                       None)
    image = pil(scene(rng, 60, 40, 4), "RGBA")
    yield "colours under full transparency", saved(image, "WEBP", lossless=True, exact=True), None
    few = image.convert("RGB").quantize(5).convert("RGB")
    yield "few colours", saved(few, "WEBP", lossless=True), None
    yield "coarse alpha", saved(image, "WEBP", alpha_quality=30), None
    big = pil(scene(rng, 700, 500, 3), "RGB")
    for quality in (1, 100):
        data = saved(big, "WEBP", quality=quality, method=0)
        yield f"in many pieces, quality {quality}", data, None
    noise = pil(rng.integers(0, 256, (400, 500, 4), dtype=np.uint8), "RGBA")
    yield "lossless in many pieces", saved(noise, "WEBP", lossless=True, method=0), None
    for orientation in range(1, 9):
        data = saved(image, "WEBP", exif=b"Exif\0\0" + exif(orientation))
        yield f"orientation {orientation}", data, None
    frames = [pil(scene(rng, 60, 40, 4), "RGBA") for _ in range(3)]
    yield "animated", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]), None
    opaque = [frame.convert("RGB") for frame in frames]
    yield ("animated, opaque", saved(opaque[0], "WEBP", save_all=True, append_images=opaque[1:]),
           None)
    for lossless in (False, True):
        stills = [(60, 40, saved(frame, "WEBP", lossless=lossless)) for frame in frames]
        solid = [(60, 40, saved(frame, "WEBP", lossless=lossless)) for frame in opaque]
        for flags, x, y, pictures, what in (
                (2 + 16, 10, 6, stills, "in a corner, clear"),
                (2 + 16, 0, 0, solid, "opaque frame, clear canvas"),
                (2, 10, 6, solid, "opaque frame, opaque canvas"),
                (2, 10, 6, stills, "clear frame, opaque canvas")):
            yield (f"animated, {what}, lossless {lossless}",
                   webp_animation(80, 50, flags, x, y, pictures), None)


def main() -> int:
    probe = sys.argv[1]
    wrong = count = 0
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([probe, "samples", folder], check=True)
        path = Path(folder) / "picture"
        for kind, cases in (("PNG", png_cases()), ("JPEG", jpeg_cases(Path(folder))),
                            ("WebP", webp_cases())):
            for name, data, expected in cases:
                count += 1
                if expected is None:
                    expected = pillow(data)
                path.write_bytes(data)
                run = subprocess.run([probe, "decode", path], capture_output=True)
                head, _, pixels = run.stdout.partition(b"\n")
                size = f"{expected.shape[1]} {expected.shape[0]}"
                if run.returncode != 0:
                    problem = run.stderr.decode().strip()
                elif head.decode() != size:
                    problem = f"size {head.decode()}, expected {size}"
                elif pixels != expected.tobytes():
                    got = np.frombuffer(pixels, np.uint8).reshape(expected.shape).astype(int)
                    off = abs(got - expected)
                    y, x, c = np.unravel_index(off.argmax(), off.shape)
                    problem = (f"{np.count_nonzero(off)} of {off.size} values differ, the most at "
                               f"x {x} y {y}: got {got[y, x]}, expected {expected[y, x]}")
                else:
                    continue
                wrong += 1
                print(f"{kind}, {name}: {problem}")
    print(f"{count} pictures, {wrong} differ from what is expected")
    return 1 if wrong or count < 60 else 0


if __name__ == "__main__":
    sys.exit(main())
