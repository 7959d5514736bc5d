"""Decoding and resizing of photographs, Pillow against torchvision: `python -m benchmarks.decoding`.

JPEG of 640 x 480 in memory, to squares of `--size` pixels, bilinear with antialiasing, on one thread. The two
take turns; printed are the best milliseconds an image of each, their ratio, and how far pixels differ.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import resize

from benchmarks.pictures import write_photographs

ROUNDS = 7
Input = TypeVar("Input")
Output = TypeVar("Output")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50, help="(default %(default)s)")
    parser.add_argument("--size", type=int, default=448, help="pixels of a side (default %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), options.images)
        files = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    tensors = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    side = options.size

    def pillow_decode(file: bytes) -> Image.Image:
        return Image.open(io.BytesIO(file)).convert("RGB")

    def pillow_resize(image: Image.Image) -> Image.Image:
        return image.resize((side, side), Image.Resampling.BILINEAR)

    def torchvision_decode(file: Tensor) -> Tensor:
        decoded: Tensor = decode_jpeg(file, ImageReadMode.RGB)
        return decoded

    def torchvision_resize(image: Tensor) -> Tensor:
        resized: Tensor = resize(image, [side, side], antialias=True)
        return resized

    table = Table("milliseconds an image", "Pillow", "torchvision", "ratio", "pixels differ by at most")
    decoded = compare("decode", pillow_decode, files, torchvision_decode, tensors, table)
    compare("resize", pillow_resize, decoded[0], torchvision_resize, decoded[1], table)
    Console().print(table)
    return 0


def compare(
    name: str,
    pillow: Callable[[Input], Image.Image],
    ours: Sequence[Input],
    torchvision: Callable[[Tensor], Tensor],
    theirs: Sequence[Tensor],
    table: Table,
) -> tuple[list[Image.Image], list[Tensor]]:
    """Add the best times of several turns as a row to `table`; what both make of their inputs."""
    turns = [(timed(pillow, ours), timed(torchvision, theirs)) for _ in range(ROUNDS)]
    images, tensors = turns[-1][0][1], turns[-1][1][1]
    first, second = (min(seconds for seconds, _ in kind) * 1e3 for kind in zip(*turns, strict=True))
    difference = max(
        int(np.abs(np.asarray(image, np.int16) - tensor.permute(1, 2, 0).numpy()).max())
        for image, tensor in zip(images, tensors, strict=True)
    )
    table.add_row(name, f"{first:.2f}", f"{second:.2f}", f"{first / second:.2f}", str(difference))
    return images, tensors


def timed(work: Callable[[Input], Output], inputs: Sequence[Input]) -> tuple[float, list[Output]]:
    """Seconds for one input, and what came out."""
    start = time.perf_counter()
    outputs = [work(one) for one in inputs]
    return (time.perf_counter() - start) / len(inputs), outputs


if __name__ == "__main__":
    sys.exit(main())
