"""Tensors in files: nothing is lost, and metadata that lie are refused."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file as plain_save

import lowprec as lp
from lowprec.integrations import safetensors
from lowprec.testing import assert_bit_equal, boundary_inputs

IN_FILES = {
    "half": "bfloat16",
    "eight": "e4m3fn",
    "scale": "e8m0fnu",
    "four": "e2m1fn",
    "six": "e3m2fn",
    "seven": lp.Format(precision=4, emax=3),
    "int": "int5",
    "fixed": "fixed9f3",
    "p3109": "binary6p3ue",
    "posit": lp.Posit(10, 1),
    "levels": lp.Levels([-0.75, 0.25, 1.0]),
}


@pytest.fixture
def tensors():
    return {
        name: lp.round(torch.rand(3, 5) * 2, target)
        for name, target in IN_FILES.items()
    }


def test_files_keep_every_bit(tensors, tmp_path):
    path = tmp_path / "w.safetensors"
    tensors["plain"] = torch.arange(4)
    tensors["scalar"] = torch.tensor(-1.5, dtype=torch.float64)
    tensors["empty"] = torch.zeros(0, 3)
    tensors["wide"] = lp.round(torch.randn(7, dtype=torch.float64), "posit32")
    formats = {**IN_FILES, "scalar": "e5m2", "empty": "e2m1fn"}
    formats["wide"] = lp.Posit(32)
    safetensors.save_file(tensors, path, formats, {"author": "me"})
    loaded = safetensors.load_file(path)
    assert loaded.tensors.keys() == tensors.keys()
    assert torch.equal(loaded.tensors.pop("plain"), tensors.pop("plain"))
    for name, x in loaded.tensors.items():
        assert_bit_equal(x, tensors[name])
        given = formats[name]
        expected = lp.format(given) if isinstance(given, str) else given
        assert loaded.formats[name] == expected
    with safe_open(path, "pt") as file:
        assert file.metadata()["author"] == "me"
        # Other programs read what has a dtype of its own, and others find bytes.
        assert file.get_tensor("eight").dtype == torch.float8_e4m3fn
        assert torch.equal(file.get_tensor("half").float(), tensors["half"])
        assert file.get_tensor("six").shape == (math.ceil(15 * 6 / 8),)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("binary32", "float32"),
        ("binary64", "float64"),
        ("int32", "int32"),
        ("uint32", "uint32"),
    ],
)
def test_wide_dtypes_of_torch_are_stored_as_such(tmp_path, name, dtype):
    path = tmp_path / "w.safetensors"
    carrier = torch.float32 if name == "binary32" else torch.float64
    x = lp.round(boundary_inputs(name, carrier), name)
    x = x if lp.format(name).nans else x[~x.isnan()]
    safetensors.save_file({"x": x}, path, {"x": name})
    assert_bit_equal(safetensors.load_file(path).tensors["x"], x)
    with safe_open(path, "pt") as file:
        seen = file.get_tensor("x")
    assert seen.dtype == getattr(torch, dtype)
    assert torch.equal(seen.double().nan_to_num(1), x.double().nan_to_num(1))


def test_carriers_that_could_not_be_loaded_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match=r"'x': torch\.float32 does not hold every"):
        safetensors.save_file({"x": torch.ones(2)}, tmp_path / "x", {"x": "int32"})


BLOCKS = {
    "mx": "mxfp4",
    "nv": "nvfp4",
    "own": lp.BlockFormat("e3m2fn", lp.SharedExponent(5), 3, rule="even"),
    "int": "mxint8",
}


@pytest.mark.parametrize("axis", [0, 1])
def test_block_formats_keep_codes_and_scales(tmp_path, axis):
    path = tmp_path / "w.safetensors"
    x = torch.randn(40, 35, generator=torch.Generator().manual_seed(3))
    x[3, 4] = math.nan
    given = {key: lp.encode_blocks(x, one, axis) for key, one in BLOCKS.items()}
    safetensors.save_file({**given, "plain": x}, path, BLOCKS)
    loaded = safetensors.load_file(path)
    assert loaded.tensors.keys() == {*given, "plain"}
    for key, one in BLOCKS.items():
        assert loaded.formats[key] == lp.block_format(one)
        values = lp.decode_blocks(loaded.tensors[key], one, axis)
        assert_bit_equal(values, lp.round(x, one, axis=axis))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": "mxfp8_e4m3"}, "the digest is not"),
        ({"shape": [64, 2]}, "the digest is not"),
        ({"scales": [1, 4]}, "the digest is not"),
        ({"more": 1}, "describe 'w', which the file has not"),
    ],
)
def test_block_formats_that_lie_are_refused(tmp_path, changes, text):
    path = tmp_path / "w.safetensors"
    codes = lp.encode_blocks(torch.ones(2, 64), "mxfp4")
    safetensors.save_file({"w": codes}, path, {"w": "mxfp4"})
    with safe_open(path, "pt") as file:
        entry = json.loads(file.metadata()["lowprec"])
        stored = {key: file.get_tensor(key) for key in ("w.codes", "w.scales")}
    entry["tensors"]["w"].update(changes)
    plain_save(stored, path, {"lowprec": json.dumps(entry)})
    with pytest.raises(ValueError, match=text):
        safetensors.load_file(path)


def test_blocks_that_do_not_fit_are_not_saved(tmp_path):
    path = tmp_path / "w.safetensors"
    codes = lp.encode_blocks(torch.ones(2, 64), "mxfp4")
    with pytest.raises(ValueError, match=r"'w': elements .* along no axis have scales"):
        safetensors.save_file({"w": codes}, path, {"w": "nvfp4"})
    with pytest.raises(TypeError, match="'w': a block format is a BlockFormat"):
        safetensors.save_file({"w": codes}, path, {})
    with pytest.raises(TypeError, match="'w': a tensor in the block format 'mxfp4' is"):
        safetensors.save_file({"w": torch.ones(2)}, path, {"w": "mxfp4"})
    assert not path.exists()


@pytest.mark.parametrize("part", ["codes", "scales", "tensor_scale"])
def test_names_of_parts_are_not_taken(tmp_path, part):
    tensors = {
        "w": lp.encode_blocks(torch.ones(64), "mxfp4"),
        f"w.{part}": torch.ones(2),
    }
    with pytest.raises(ValueError, match=f"stored as 'w.{part}', which is taken"):
        safetensors.save_file(tensors, tmp_path / "w", {"w": "mxfp4"})


def test_changed_scales_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    codes = lp.encode_blocks(torch.ones(2, 64), "nvfp4")
    safetensors.save_file({"w": codes}, path, {"w": "nvfp4"})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for name in stored:
        changed = {**stored, name: stored[name] + 1}
        plain_save(changed, path, metadata)
        with pytest.raises(ValueError, match="the digest is not that of"):
            safetensors.load_file(path)
    del stored["w.scales"]
    plain_save(stored, path, metadata)
    with pytest.raises(ValueError, match=r"describe 'w\.scales', which the file has"):
        safetensors.load_file(path)


def test_files_of_others(tmp_path):
    path = tmp_path / "plain.safetensors"
    plain_save({"x": torch.ones(2)}, path)
    loaded = safetensors.load_file(path)
    assert torch.equal(loaded.tensors["x"], torch.ones(2))
    assert loaded.formats == {}


def test_nothing_is_written_if_a_tensor_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    x = {"x": torch.tensor([1.1])}
    with pytest.raises(ValueError, match="'x': 1 of 1 elements are not values"):
        safetensors.save_file(x, path, {"x": "e4m3fn"})
    with pytest.raises(ValueError, match="formats names 'y', which is no tensor"):
        safetensors.save_file(x, path, {"y": "e4m3fn"})
    with pytest.raises(ValueError, match="metadata has the entry 'lowprec'"):
        safetensors.save_file(x, path, {}, {"lowprec": ""})
    with pytest.raises(TypeError, match="'x': x must be a float32 or float64"):
        safetensors.save_file({"x": torch.ones(2).half()}, path, {"x": "e4m3fn"})
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("six", {"format": "e2m3fn"}, "the digest is not that of the format"),
        ("four", {"format": "int4"}, "the digest is not that of the format"),
        ("six", {"format": "e2m1fn"}, "fill 8 bytes, got 12"),
        ("six", {"shape": [3, 4]}, "fill 9 bytes, got 12"),
        ("six", {"shape": [5, 3]}, "the digest is not"),
        ("six", {"carrier": "float64"}, "the digest is not"),
        ("six", {"carrier": "float16"}, "no shape and carrier"),
        ("six", {"shape": [-3, -5]}, "no shape and carrier"),
        ("six", {"shape": "15"}, "no shape and carrier"),
        ("six", {"shape": [2**62, 2**62]}, "bytes, got 12"),
        ("six", {"format": "e99m3"}, "X from 2 to 20"),
        ("six", {"format": 6}, "must be a mapping"),
        ("six", {"format": "binary64"}, "float32 does not hold every value"),
        ("eight", {"format": "e5m2"}, "is not what torch.float8_e4m3fn elements hold"),
        ("eight", {"format": "e3m4"}, "is not what torch.float8_e4m3fn elements hold"),
        ("half", {"format": "binary16"}, "is not what torch.bfloat16 elements hold"),
        ("half", {"shape": [15]}, r"shape \[15\] is not that of"),
        ("levels", {"format": {"values": [1.0, 0.5]}}, "strictly increasing"),
        ("levels", {"format": {"values": [0.5]}}, "bytes, got 4"),
        ("six", {"digest": "0"}, "the digest is not"),
        ("six", {"more": 1}, "a description has"),
    ],
)
def test_metadata_that_lie_are_refused(tensors, tmp_path, name, changes, text):
    path = tmp_path / "w.safetensors"
    safetensors.save_file(tensors, path, IN_FILES)
    with safe_open(path, "pt") as file:
        entry = json.loads(file.metadata()["lowprec"])
        stored = {key: file.get_tensor(key) for key in IN_FILES}
    entry["tensors"][name].update(changes)
    plain_save(stored, path, {"lowprec": json.dumps(entry)})
    with pytest.raises(ValueError, match=text):
        safetensors.load_file(path)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "has no tensors"),
        ('{"version": 9, "tensors": {}}', "have version 9; this lowprec reads 1"),
        ('{"version": 1, "tensors": {"y": {}}}', "describe 'y', which the file has"),
        ('{"version": 1, "tensors": {"x": []}}', "a description has"),
    ],
)
def test_broken_metadata_are_refused(tmp_path, entry, text):
    path = tmp_path / "w.safetensors"
    plain_save({"x": torch.ones(2)}, path, {"lowprec": entry})
    with pytest.raises(ValueError, match=text):
        safetensors.load_file(path)


def test_changed_bytes_are_refused(tensors, tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.save_file(tensors, path, IN_FILES)
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="the digest is not that of"):
        safetensors.load_file(path)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.save_file(
        {"w": lp.encode_blocks(torch.randn(32), "mxfp4")}, path, {"w": "mxfp4"}
    )
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        stored = {key: file.get_tensor(key) for key in ("w.codes", "w.scales")}
    plain_save(stored | {"w": torch.ones(2)}, path, metadata)
    with pytest.raises(ValueError, match="'w' is a tensor of the file, and the"):
        safetensors.load_file(path)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (3, "'w' must be a tensor, or BlockCodes, got 3 of type int"),
        (torch.eye(3).to_sparse(), r"'w' must be a dense tensor.*to_dense"),
    ],
)
def test_what_is_no_dense_tensor_is_refused(tmp_path, x, text):
    path = tmp_path / "w.safetensors"
    for formats in ({}, {"w": "e4m3fn"}):
        with pytest.raises(TypeError, match=text):
            safetensors.save_file({"w": x}, path, formats)
    assert not path.exists()
