"""Payloads survive the wire bit for bit, in as many bytes as are accounted."""

import math

import pytest
import torch

import lowprec as lp
from lowprec.distributed import (
    Cast,
    RandomK,
    Sign,
    Threshold,
    TopK,
    Wire,
)
from lowprec.distributed._bits import pack_bits, packed_bytes, unpack_bits
from lowprec.theory.spars_ams import payload_bits

STOCHASTIC = lp.Rounding("e5m2", "stochastic")
COMPRESSORS = [
    TopK(k=5),
    TopK(density=0.5),
    TopK(k=7, values="bfloat16"),
    TopK(k=7, values="e4m3fn"),
    TopK(k=9, values=Cast("e2m1fn", scaled=True)),
    TopK(k=3, values=Cast(STOCHASTIC, scaled=True)),
    RandomK(k=4),
    RandomK(density=0.25, unbiased=True),
    Threshold(relative=0.3),
    Threshold(absolute=1e30),  # sends nothing
    Sign(),
    Cast("bfloat16"),
    Cast("e5m2"),
    Cast(lp.Rounding("e2m1fn", saturation="finite")),
    Cast("e3m2fn", scaled=True),
    Cast("binary32"),
]


def same(a, b):
    """Whether two payloads have the same bits."""
    if (a.kind, a.size, a.rounding) != (b.kind, b.size, b.rounding):
        return False
    for name in ("values", "indices", "scale"):
        x, y = getattr(a, name), getattr(b, name)
        if (x is None) != (y is None):
            return False
        if x is not None:
            integer = {4: torch.int32, 8: torch.int64}[x.element_size()]
            if x.dtype != y.dtype or x.shape != y.shape:
                return False
            if not torch.equal(x.view(integer), y.view(integer)):
                return False
    return True


@pytest.mark.parametrize("width", [0, 1, 3, 4, 7, 8, 12, 13, 24, 31, 33, 63, 64])
def test_bits_are_one_long_integer(width):
    for count in (0, 1, 7, 8, 9, 40):
        items = torch.randint(-(2**63), 2**63 - 1, (count,))
        packed = pack_bits(items, width)
        known = [int(item) % 2**width for item in items]
        whole = sum(item << width * i for i, item in enumerate(known))
        assert bytes(packed.tolist()) == whole.to_bytes(
            packed_bytes(count, width), "little"
        )
        unpacked = unpack_bits(packed, width, count)
        assert [int(item) % 2**width for item in unpacked] == known


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("indices", ["packed", "int32"])
@pytest.mark.parametrize("size", [16, 17, 300])
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_the_receiver_has_what_was_sent(compressor, size, indices, dtype):
    generator = torch.Generator().manual_seed(size)
    for scale in (1.0, 1e-40, 80.0):
        p = torch.randn(size, generator=generator, dtype=dtype) * scale
        p[::5] *= 0.0  # zeros of both signs
        payload = compressor.compress(p, seed=3)
        wire = Wire.of(payload, indices)
        packed = wire.pack(payload)
        entries = payload.values.numel()
        assert packed.dtype == torch.uint8
        assert packed.numel() == wire.bytes(entries)
        received = wire.unpack(packed, entries)
        assert same(received, payload)
        assert torch.equal(received.dense(), payload.dense())


def test_every_value_of_a_format_survives():
    for name in ("e4m3fn", "e5m2", "binary16", "bfloat16", "e2m1fn", "e4m3fnuz"):
        values = torch.tensor(
            sorted(v for v in lp.format(name).values() if math.isfinite(v))
        )
        values = torch.cat([values, -values])
        payload = Cast(name).compress(values)
        wire = Wire.of(payload)
        assert same(wire.unpack(wire.pack(payload), len(values)), payload)


def test_bytes_of_the_specification():
    # D9: d = 2410, 1 %.
    payload = TopK(density=0.01).compress(torch.randn(2410))
    assert payload.values.numel() == 25
    payload = TopK(k=24).compress(torch.randn(2410))
    assert Wire.of(payload, "int32").pack(payload).numel() == 192
    payload = TopK(k=24, values="bfloat16").compress(torch.randn(2410))
    assert Wire.of(payload).pack(payload).numel() == 84
    dense = Cast("binary32").compress(torch.randn(2410))
    assert Wire.of(dense).pack(dense).numel() == 9640


@pytest.mark.parametrize("size", [1, 2, 17, 2410])
@pytest.mark.parametrize("values", [None, "bfloat16", "e2m1fn"])
def test_bytes_are_the_bits_of_the_theory(values, size):
    value_bits = 32 if values is None else lp.format(values).bits
    for entries in {1, size // 20 + 1, size}:
        payload = TopK(k=entries, values=values).compress(torch.linspace(-3, 3, size))
        for indices, index_bits in (("packed", None), ("int32", 32)):
            wire = Wire.of(payload, indices)
            bits = payload_bits(
                entries, size, value_bits=value_bits, bits_of_index=index_bits
            )
            # Two parts of whole bytes, and one where no code is NaN.
            flag = values == "e2m1fn"
            assert 0 <= 8 * (wire.bytes(entries) - flag) - bits < 16
            assert wire.pack(payload).numel() == wire.bytes(entries)


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=repr)
def test_no_payload_looks_like_a_gradient_that_is_not_finite(compressor):
    for extreme in (-1.0, -6.0, -1e9):
        try:
            payload = compressor.compress(torch.full((16,), extreme), seed=0)
        except ValueError:
            continue
        wire = Wire.of(payload)
        entries = payload.values.numel()
        if entries == 0:
            continue
        assert wire.unpack(wire.pack(payload), entries) is not None
        refusal = wire.refusal(entries)
        assert refusal.numel() == wire.bytes(entries)
        assert wire.unpack(refusal, entries) is None


def test_refusals():
    payload = TopK(k=2).compress(torch.randn(5))
    with pytest.raises(ValueError, match="'packed' or as 'int32', got 'int16'"):
        Wire.of(payload, "int16")
    with pytest.raises(ValueError, match="int32 indices cannot count"):
        Wire(kind="sparse", size=2**31 + 1, indices="int32")
    wire = Wire.of(payload)
    with pytest.raises(ValueError, match="2 entries has 9 bytes, got 3"):
        wire.unpack(torch.zeros(3, dtype=torch.uint8), 2)
    with pytest.raises(ValueError, match="must be one vector of the layout"):
        wire.pack(TopK(k=2).compress(torch.randn(6)))
    with pytest.raises(ValueError, match=r"shape \(3, 2\)"):
        wire.pack(TopK(k=2).compress(torch.randn(3, 5)))
