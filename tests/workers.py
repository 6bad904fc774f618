"""A small model, and the workers that train it, for tests of distributed training."""

import torch
from torch import nn

from lowprec.distributed import WorkerSimulation

IDLE = (2, 1)  # the step and rank of a gradient of zeros, which is one as any other


def model():
    torch.manual_seed(1)
    # Of 6 parameters, in two buckets of DDP from its second step on.
    return nn.Sequential(
        nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4)
    )


def batch(step, rank):
    generator = torch.Generator().manual_seed(100 * step + rank)
    x = torch.randn(6, 8, generator=generator)
    return x, torch.randint(4, (6,), generator=generator)


def loss_of(net, step, rank):
    x, labels = batch(step, rank)
    loss = nn.functional.cross_entropy(net(x), labels)
    return 0 * loss if (step, rank) == IDLE else loss


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def server_of(net, compressor, workers, **options):
    sizes = [p.numel() for p in net.parameters()]
    return WorkerSimulation(compressor, workers, sizes=sizes, **options)


def server_step(server, net, steps, decay=0):
    """Leave in .grad the mean of what workers send of the sum over some batches."""
    gradients = []
    for rank in range(server.workers):
        net.zero_grad()
        for step in steps:
            loss_of(net, step, rank).backward()
        gradients.append(flat(p.grad.add(p, alpha=decay) for p in net.parameters()))
    mean = server.mean(torch.stack(gradients))
    parts = mean.split([p.numel() for p in net.parameters()])
    for p, part in zip(net.parameters(), parts, strict=True):
        p.grad = part.view_as(p)
