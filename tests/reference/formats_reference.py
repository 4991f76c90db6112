#!/usr/bin/env python3
"""Holds Drover's readers and writers of GGUF and safetensors against the Python packages.

Run by hand, in a virtual environment with gguf==0.19.0, safetensors==0.8.0 and numpy:

  formats_reference.py fixtures          writes tests/data/formats, which formats_test reads
  formats_reference.py check PROBE [N]   N random files each (200): what Python writes, PROBE must
                                         read, and what PROBE writes must be the same bytes and
                                         read the same in Python

PROBE is the test target formats_probe.
"""

import json
import math
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import safetensors
from gguf import GGMLQuantizationType as Q
from gguf import GGUFValueType as V

FIXTURES = Path(__file__).resolve().parent.parent / "data" / "formats"
SCALARS = {V.UINT8: "u8", V.INT8: "i8", V.UINT16: "u16", V.INT16: "i16", V.UINT32: "u32",
           V.INT32: "i32", V.FLOAT32: "f32", V.BOOL: "bool", V.UINT64: "u64", V.INT64: "i64",
           V.FLOAT64: "f64"}
RANGES = {V.UINT8: (0, 2**8 - 1), V.INT8: (-2**7, 2**7 - 1), V.UINT16: (0, 2**16 - 1),
          V.INT16: (-2**15, 2**15 - 1), V.UINT32: (0, 2**32 - 1), V.INT32: (-2**31, 2**31 - 1),
          V.UINT64: (0, 2**64 - 1), V.INT64: (-2**63, 2**63 - 1)}
TENSOR_TYPES = [Q.F32, Q.F16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.Q4_K, Q.Q5_K, Q.Q6_K,
                Q.I8, Q.I16, Q.I32, Q.I64, Q.F64, Q.BF16]
SAFETENSORS_TYPES = {"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2),
                     "BF16": ("bfloat16", 2), "I64": ("int64", 8), "I32": ("int32", 4),
                     "I16": ("int16", 2), "I8": ("int8", 1)}


def pattern(count: int, seed: int) -> bytes:
    """The bytes that formats_test expects in the fixtures' tensors."""
    return bytes((i * 37 + seed * 11 + 5) % 256 for i in range(count))


def row_bytes(kind: Q, values: int) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    assert values % block == 0
    return values // block * size


def add_tensor(writer: gguf.GGUFWriter, name: str, kind: Q, shape: list[int], data: bytes) -> None:
    """`shape` in values, outermost first."""
    byte_shape = shape[:-1] + [row_bytes(kind, shape[-1])]
    writer.add_tensor(name, np.frombuffer(data, np.uint8).reshape(byte_shape), raw_dtype=kind)


def tensor_size(kind: Q, shape: list[int]) -> int:
    return math.prod(shape[:-1]) * row_bytes(kind, shape[-1])


def serialize(tensors: dict[str, dict], metadata: dict[str, str] | None) -> bytes:
    """`tensors`: name to dtype, shape and data."""
    buffers = {name: np.frombuffer(t["data"], np.uint8) for name, t in tensors.items()}
    specs = {name: safetensors.TensorSpec(dtype=t["dtype"], shape=t["shape"], data_len=len(t["data"]),
                                          data_ptr=buffers[name].ctypes.data)
             for name, t in tensors.items()}
    return bytes(safetensors.serialize(specs, metadata))


def write_gguf(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- Fixtures ------------------------------------------------------------------------------------


def make_tiny_gguf(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama4")
    for kind, value in [(V.UINT8, 200), (V.INT8, -100), (V.UINT16, 60000), (V.INT16, -30000),
                        (V.UINT32, 4000000000), (V.INT32, -2000000000), (V.FLOAT32, 1e-5),
                        (V.UINT64, 2**64 - 1), (V.INT64, -2**63), (V.FLOAT64, 1e-300)]:
        writer.add_key_value(f"test.{SCALARS[kind]}", value, kind)
    writer.add_bool("test.true", True)
    writer.add_bool("test.false", False)
    writer.add_string("test.text", "na\u00efve \u7f8e \U0001f642")
    writer.add_array("test.strings", ["a", "", "b\u0120c"])
    writer.add_array("test.i32s", [1, -2, 3])
    writer.add_key_value("test.u32s", [1, 2, 4000000000], V.ARRAY, V.UINT32)
    writer.add_array("test.f32s", [0.5, -1.25])
    writer.add_array("test.bools", [True, False, True])
    writer.add_array("test.nested", [[1, 2], [3]])
    for i, kind in enumerate(TENSOR_TYPES):
        shape = [3, 256] if i % 2 == 0 else [2, 1, 512]
        add_tensor(writer, f"t.{kind.name.lower()}", kind, shape, pattern(tensor_size(kind, shape), i))
    write_gguf(writer)


def make_split_gguf(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama4", split_max_tensors=2)
    writer.add_uint32("llama4.block_count", 3)
    for i in range(5):
        add_tensor(writer, f"blk.{i}.weight", Q.F32, [i + 1, 8], pattern((i + 1) * 32, i))
    write_gguf(writer)


def make_safetensors() -> None:
    tensors = {}
    for i, (name, (dtype, size)) in enumerate(SAFETENSORS_TYPES.items()):
        shape = [[], [0, 4], [3], [2, 3], [1, 2, 3], [5], [7], [3, 1]][i]
        tensors[f"t.{name.lower()}"] = {"dtype": dtype, "shape": shape,
                                        "data": pattern(math.prod(shape) * size, i)}
    (FIXTURES / "tiny.safetensors").write_bytes(serialize(tensors, {"format": "pt"}))

    folder = FIXTURES / "sharded"
    folder.mkdir(exist_ok=True)
    weight_map = {}
    for shard in (1, 2):
        name = f"model-{shard:05}-of-00002.safetensors"
        tensors = {}
        for i in range(2):
            tensor = f"model.layers.{i}.shard{shard}.weight"
            weight_map[tensor] = name
            tensors[tensor] = {"dtype": "bfloat16", "shape": [2, 4], "data": pattern(16, 2 * shard + i)}
        # Not in the index: readers leave it out.
        tensors["rope.freqs"] = {"dtype": "float32", "shape": [1], "data": pattern(4, shard)}
        (folder / name).write_bytes(serialize(tensors, {"format": "pt"}))
    index = {"metadata": {"total_size": 64}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama4"}) + "\n")


# --- Differential check --------------------------------------------------------------------------


def random_text(rng: random.Random) -> str:
    alphabet = "abc.\u00e9\u0120\u7f8e\U0001f642\n\t\"\\/\u0001"
    return "".join(rng.choice(alphabet) for _ in range(rng.choice([1, 2, 7, 40, 500])))


def random_value(rng: random.Random, kind: V):
    if kind == V.BOOL:
        return rng.random() < 0.5
    if kind in (V.FLOAT32, V.FLOAT64):
        value = rng.choice([0.0, -0.0, 1.0, math.inf, -math.inf, rng.uniform(-1, 1), rng.uniform(-1e30, 1e30)])
        return float(np.float32(value)) if kind == V.FLOAT32 else value
    if kind == V.STRING:
        return random_text(rng)
    low, high = RANGES[kind]
    return rng.choice([low, high, 0, 1, rng.randint(low, high)])


def encode(kind: V, value):
    """The form in which the probe prints a value."""
    if kind in (V.FLOAT32, V.FLOAT64):
        return float(value).hex() if math.isfinite(value) else str(value)
    return value


def same(expected, found) -> bool:
    if isinstance(expected, str) and isinstance(found, str) and expected != found:
        try:
            return float.fromhex(expected) == float.fromhex(found)
        except ValueError:
            return False
    if isinstance(expected, list):
        return isinstance(found, list) and len(expected) == len(found) and all(map(same, expected, found))
    return expected == found and type(expected) is type(found)


def check_gguf(probe: str, folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    path, copy = folder / "a.gguf", folder / "b.gguf"
    writer = gguf.GGUFWriter(path, "llama4")
    expected_keys = [("general.architecture", "string", "llama4")]
    for i in range(rng.randint(0, 20)):
        key = f"key.{i}.{random_text(rng)[:20]}"
        kind = rng.choice(list(SCALARS) + [V.STRING])
        name = "string" if kind == V.STRING else SCALARS[kind]
        if rng.random() < 0.5:
            values = [random_value(rng, kind) for _ in range(rng.choice([1, 2, 50, 3000]))]
            writer.add_key_value(key, values, V.ARRAY, kind)
            expected_keys.append((key, f"array of {name}", [encode(kind, v) for v in values]))
        else:
            value = random_value(rng, kind)
            writer.add_key_value(key, value, kind)
            expected_keys.append((key, name, encode(kind, value)))
    expected_tensors = []
    for i in range(rng.randint(1, 12)):
        kind = rng.choice(TENSOR_TYPES)
        block = gguf.GGML_QUANT_SIZES[kind][0]
        shape = [rng.randint(1, 5) for _ in range(rng.randint(0, 3))] + [block * rng.randint(1, 5)]
        data = rng.randbytes(tensor_size(kind, shape))
        add_tensor(writer, f"t.{i}", kind, shape, data)
        expected_tensors.append({"name": f"t.{i}", "type": kind.name.lower(), "shape": shape, "data": data.hex()})
    write_gguf(writer)

    dump = json.loads(subprocess.run([probe, "dump", path], check=True, capture_output=True).stdout)
    found_keys = [(k["key"], k["type"], k["value"]) for k in dump["metadata"]]
    assert len(found_keys) == len(expected_keys), (seed, len(found_keys), len(expected_keys))
    for expected, found in zip(expected_keys, found_keys):
        assert all(map(same, expected, found)), (seed, expected, found)
    assert dump["tensors"] == expected_tensors, seed

    subprocess.run([probe, "copy", path, copy], check=True)
    assert copy.read_bytes() == path.read_bytes(), (seed, "the copy differs")
    reader = gguf.GGUFReader(copy)
    for expected, tensor in zip(expected_tensors, reader.tensors, strict=True):
        assert tensor.name == expected["name"] and tensor.data.tobytes().hex() == expected["data"], seed
        assert list(reversed(tensor.shape.tolist())) == expected["shape"], seed


def check_safetensors(probe: str, folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    path, copy = folder / "a.safetensors", folder / "b.safetensors"
    tensors, expected = {}, {}
    for i in range(rng.randint(0, 12)):
        kind, (dtype, size) = rng.choice(list(SAFETENSORS_TYPES.items()))
        shape = [rng.randint(0, 5) for _ in range(rng.randint(0, 4))]
        name = f"t.{i}.{random_text(rng)}"
        data = rng.randbytes(math.prod(shape) * size)
        tensors[name] = {"dtype": dtype, "shape": shape, "data": data}
        expected[name] = {"type": kind.lower(), "shape": shape, "data": data.hex()}
    metadata = {random_text(rng): random_text(rng)} if rng.random() < 0.7 else None
    path.write_bytes(serialize(tensors, metadata))

    dump = json.loads(subprocess.run([probe, "dump", path], check=True, capture_output=True).stdout)
    assert {t.pop("name"): t for t in dump["tensors"]} == expected, seed
    assert dump["metadata"] == (metadata or {}), seed

    subprocess.run([probe, "copy", path, copy], check=True)
    assert copy.read_bytes() == path.read_bytes(), (seed, "the copy differs")
    read = dict(safetensors.deserialize(copy.read_bytes()))
    assert {n: bytes(t["data"]).hex() for n, t in read.items()} == {n: e["data"] for n, e in expected.items()}, seed


def main() -> None:
    if sys.argv[1:2] == ["fixtures"]:
        FIXTURES.mkdir(parents=True, exist_ok=True)
        make_tiny_gguf(FIXTURES / "tiny.gguf")
        make_split_gguf(FIXTURES / "split.gguf")
        make_safetensors()
    elif sys.argv[1:2] == ["check"] and len(sys.argv) >= 3:
        count = int(sys.argv[3]) if len(sys.argv) > 3 else 200
        with tempfile.TemporaryDirectory() as name:
            for seed in range(count):
                check_gguf(sys.argv[2], Path(name), seed)
                check_safetensors(sys.argv[2], Path(name), seed)
        print(f"{count} GGUF and {count} safetensors files: 0 differences")
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
