"""A GPT-style model of 1.2 million parameters learns Python's own documentation.

The text is the one behind `help("topics")`, about half a million characters that ship
with Python as `pydoc_data.topics`; the last tenth is for validation. The model is
written in plain torch: `lowprec.nn.convert_` gives it an arithmetic.

    python examples/gpt_text.py --out runs
"""

from __future__ import annotations

from collections.abc import Iterator
from pydoc_data.topics import topics

import torch
from four_precisions import Problem, arguments, main
from torch import Tensor, nn
from torch.nn import functional as F

import lowprec

WIDTH, HEADS, BLOCKS, CONTEXT = 128, 4, 6, 64
BATCH, VALIDATION_BATCHES = 8, 8


class Block(nn.Module):
    """Causal attention and a perceptron, each after a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.project = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.merge = nn.Linear(WIDTH, WIDTH, bias=False)
        self.expand = nn.Linear(WIDTH, 4 * WIDTH)
        self.contract = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, [batch, length, WIDTH] as ``x``."""
        shape = (*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        query, key, value = (
            part.transpose(1, 2)
            for part in self.project(self.norm1(x)).view(shape).unbind(2)
        )
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.merge(y.transpose(1, 2).reshape(x.shape))
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))


class GPT(nn.Module):
    """Embeddings, blocks, and a head that shares the embedding's weights."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(characters, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, characters, bias=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                deep = name.endswith(("merge.weight", "contract.weight"))
                nn.init.normal_(p, std=0.05 / (2 * BLOCKS) ** (0.5 * deep))
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits [batch, length, characters] of the next characters."""
        positions = torch.arange(tokens.shape[1])
        x = self.tokens(tokens) + self.positions(positions)
        return self.head(self.norm(self.blocks(x)))


def text() -> tuple[Tensor, int]:
    """Return the text as character numbers, and how many characters there are."""
    document = "\n\n".join(f"{name}\n\n{body}" for name, body in sorted(topics.items()))
    characters = sorted(set(document))
    numbers = {character: i for i, character in enumerate(characters)}
    return torch.tensor([numbers[c] for c in document]), len(characters)


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of the next character, in nats."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def problem() -> Problem:
    """Return the problem for `four_precisions`."""
    data, characters = text()
    split = len(data) * 9 // 10

    def batches(part: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            starts = torch.randint(len(part) - CONTEXT, (BATCH,), generator=generator)
            rows = torch.stack([part[i : i + CONTEXT + 1] for i in starts.tolist()])
            yield rows[:, :-1], rows[:, 1:]

    def optimizer(
        model: nn.Module, stored: lowprec.Rounding | None
    ) -> lowprec.optim.AdamW:
        return lowprec.optim.AdamW(
            model.parameters(), lr=3e-3, betas=(0.9, 0.95), param_format=stored
        )

    @torch.no_grad()
    def evaluate(model: nn.Module) -> dict[str, float]:
        pairs = zip(range(VALIDATION_BATCHES), batches(data[split:], 1), strict=False)
        losses = [loss(model(x), y).item() for _, (x, y) in pairs]
        return {"validation_loss": sum(losses) / len(losses)}

    return Problem(
        name="gpt",
        build=lambda: GPT(characters),
        batches=lambda: batches(data[:split], 0),
        loss=loss,
        optimizer=optimizer,
        evaluate=evaluate,
    )


if __name__ == "__main__":
    main(problem(), arguments(__doc__ or "", 400).parse_args())
