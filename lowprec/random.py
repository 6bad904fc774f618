"""Counter-based randomness: a pure function of seed and element index.

Philox4x32-10 with key = (low, high 32 bits of the seed). Element i of an output takes
word i mod 4 of the block with counter (low 32 bits of i div 4, high 32 bits of i div 4,
step, purpose). Results therefore depend on no device, thread, stride or shard: a shard
passes its global offset. This layout is part of the numerical contract.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_seed", "draw_seed", "philox_words", "split_seed"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def draw_seed(generator: torch.Generator | None = None) -> Tensor:
    """Draw one 63-bit seed, by default from the generator of ``torch.manual_seed``.

    Args:
        generator: a CPU or CUDA generator, or None for torch's default CPU generator.

    Returns:
        A 0-d int64 tensor on the generator's device.

    Raises:
        TypeError: if ``generator`` is not a generator.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> draw_seed().dtype
        torch.int64
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            "generator must be a torch.Generator, "
            f"got {generator!r} of type {type(generator).__name__}"
        )
    if generator is None:
        return torch.randint(2**63 - 1, (), device="cpu")
    tapes = _tapes.get()
    repeated = [tape.next() for tape in tapes if tape.replaying]
    if repeated:
        seed = repeated[0]
    else:
        seed = torch.randint(
            2**63 - 1, (), generator=generator, device=generator.device
        )
    for tape in tapes:
        if not tape.replaying:
            tape.seeds.append(seed)
    return seed


@dataclass
class _Tape:
    """The seeds that were drawn from explicit generators, to be drawn again.

    Torch's default generator needs none: checkpoints put it back themselves.
    """

    seeds: list[Tensor] = field(default_factory=list)
    replaying: bool = False
    position: int = 0

    def next(self) -> Tensor:
        self.position += 1
        return self.seeds[self.position - 1]


_tapes: ContextVar[tuple[_Tape, ...]] = ContextVar("lowprec_tapes", default=())


def replayed() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return a context that remembers the seeds drawn inside, one that repeats them.

    Seeds from torch's default generator are left alone.

    Example:
        >>> generator = torch.Generator()
        >>> first, second = replayed()
        >>> with first:
        ...     seed = draw_seed(generator)
        >>> with second:
        ...     bool(draw_seed(generator) == seed)
        True
    """
    tape = _Tape()
    return _using(tape, replaying=False), _using(tape, replaying=True)


@contextmanager
def _using(tape: _Tape, replaying: bool) -> Iterator[None]:
    tape.replaying, tape.position = replaying, 0
    token = _tapes.set((*_tapes.get(), tape))
    try:
        yield
    finally:
        _tapes.reset(token)


def as_seed(
    seed: int | Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """Return the seed of one random operation as a 0-d int64 tensor.

    Args:
        seed: an integer in [-2^63, 2^64) (taken modulo 2^64), a 0-d int64 tensor, or
            None to draw one.
        generator: where to draw from if ``seed`` is None.

    Returns:
        A 0-d int64 tensor; its 64 bits are the Philox key.

    Raises:
        TypeError: if ``seed`` is neither an integer nor a 0-d int64 tensor.
        ValueError: if both are given, or an integer seed is out of range.

    Example:
        >>> as_seed(7)
        tensor(7)
    """
    if seed is None:
        return draw_seed(generator)
    if generator is not None:
        raise ValueError("give either seed= or generator=, not both")
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() != 0:
            raise TypeError(
                "a seed tensor must be 0-d int64, got "
                f"{seed.dim()}-d {str(seed.dtype).removeprefix('torch.')}"
            )
        return seed
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(
            "seed must be an int or a 0-d int64 tensor, "
            f"got {seed!r} of type {type(seed).__name__}"
        )
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be a 64-bit integer, got {seed}")
    return torch.tensor(seed - 2**64 if seed >= 2**63 else seed, dtype=torch.int64)


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the high and low 32 bits of the 64-bit product of two 32-bit words."""
    # int64 products of 32-bit words wrap for large factors, so the factor is split:
    # every partial product below stays under 2^49.
    low, high = a & 0xFFFF, a >> 16
    lower, upper = b * low, b * high  # < 2^48
    middle = upper + (lower >> 16)  # < 2^49
    return middle >> 16, ((middle & 0xFFFF) << 16) | (lower & 0xFFFF)


def philox_words(
    index: Tensor, seed: Tensor, step: int | Tensor = 0, purpose: int = 0
) -> Tensor:
    """Return one random 32-bit word for each element index.

    Contract:
        Philox4x32-10, addressed as the module's text says; exact on every device.

    Args:
        index: int64 tensor of non-negative linear element indices, any shape.
        seed: 0-d int64 tensor, the 64-bit key.
        step: number of the term inside a sum, 0 elsewhere (32 bits).
        purpose: which rounding of an operation the word is for (32 bits).

    Returns:
        int64 tensor of ``index``'s shape with values in [0, 2^32).

    Example:
        >>> philox_words(torch.arange(2), torch.tensor(0)).tolist()
        [1713891541, 3781805453]

    References:
        Salmon, Moraes, Dror and Shaw, Parallel random numbers: as easy as 1, 2, 3,
        SC 2011.
    """
    seed = seed.to(index.device)
    block = index >> 2
    c0 = block & _MASK
    c1 = (block >> 32) & _MASK
    c2 = torch.zeros_like(c0) + step
    c3 = torch.full_like(c0, purpose)
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + _WEYL[0]) & _MASK
        k1 = (k1 + _WEYL[1]) & _MASK
    word = index & 3
    return torch.where(
        word < 2,
        torch.where(word == 0, c0, c1),
        torch.where(word == 2, c2, c3),
    )


_PURPOSE_SPLIT = 0xFFFFFFFF

# An operation, as torch.compile takes half a minute for ten rounds in line.
_LIBRARY = torch.library.Library("lowprec", "FRAGMENT")
_LIBRARY.define("split_seed(Tensor seed, int count) -> Tensor")


def _split_seed(seed: Tensor, count: int) -> Tensor:
    index = torch.arange(2 * count, device=seed.device)
    words = philox_words(index, seed, purpose=_PURPOSE_SPLIT)
    return (words[0::2] << 32) | words[1::2]


_LIBRARY.impl("split_seed", _split_seed, "CompositeExplicitAutograd")


def _split_seed_fake(seed: Tensor, count: int) -> Tensor:
    return seed.new_empty((count,))


# For fake tensors too; register_fake would read source files at import.
_LIBRARY.impl("split_seed", _split_seed_fake, "Meta")


@torch.library.register_vmap("lowprec::split_seed", lib=_LIBRARY)
def _split_seed_vmap(
    info: Any, in_dims: tuple[Any, ...], seed: Tensor, count: int
) -> tuple[Tensor, int]:
    rows = [_split_seed(one, count) for one in seed.unbind(in_dims[0])]
    return torch.stack(rows) if rows else seed.new_empty((0, count)), 0


def split_seed(seed: Tensor, count: int) -> tuple[Tensor, ...]:
    """Derive independent seeds for the parts of one operation.

    Part j gets words 2j and 2j + 1 of the stream with the reserved purpose 2^32 - 1,
    which no rounding uses.

    Args:
        seed: 0-d int64 tensor.
        count: number of seeds, positive.

    Returns:
        ``count`` 0-d int64 tensors.

    Example:
        >>> first, second = split_seed(torch.tensor(0), 2)
        >>> bool(first != second)
        True
    """
    parts: Tensor = torch.ops.lowprec.split_seed.default(seed, count)
    return tuple(parts.unbind())
