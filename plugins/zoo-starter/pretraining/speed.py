"""Prints milliseconds per image of both networks on one thread of the CPU: python speed.py."""

import statistics
import time
from typing import Final

import torch
from pretrain import NETWORKS
from torch import nn

NUM_WARM_UP: Final = 3
NUM_TIMED: Final = 20


def seconds(network: nn.Module, pixel_values: torch.Tensor, *, backward: bool) -> float:
    """Wall time of one forward pass, with or without the backward pass."""
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        loss = network(pixel_values).mean()
    if backward:
        loss.backward()
    return time.perf_counter() - start


def main() -> None:
    """Prints one row per network, memory format and batch size: median and range of the timed passes."""
    torch.set_num_threads(1)
    print("| network | weights | batch | forward, ms per image | forward and backward, ms per image |")
    print("|---|---|---|---|---|")
    for name, build in NETWORKS.items():
        for layout in (torch.contiguous_format, torch.channels_last):
            network = build().to(memory_format=layout)
            for batch_size in (32, 128):
                pixel_values = torch.randn(batch_size, 3, 32, 32)
                cells = []
                for backward in (False, True):
                    times = [seconds(network, pixel_values, backward=backward) for _ in range(NUM_WARM_UP + NUM_TIMED)]
                    timed = [1000 * one / batch_size for one in times[NUM_WARM_UP:]]
                    cells.append(f"{statistics.median(timed):.2f} ({min(timed):.2f} to {max(timed):.2f})")
                layout_name = str(layout).removeprefix("torch.")
                print(f"| {name} | {layout_name} | {batch_size} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
