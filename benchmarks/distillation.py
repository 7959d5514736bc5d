"""What a distillation step costs with teachers live and with their logits from the disk, and an ablation.

    python -m benchmarks.distillation [--model resnet50] [--size 224] [--batch 16] [--rounds 3]

K = 5, so ten teachers: random weights, batch-norm statistics measured, random pictures with 80 labels. The
published procedure stands in this file for the purpose: ten fp32 models one after the other, a loss for each
of the two branches, nothing folded, PyTorch's default memory format. Prints the best of ROUNDS, everything
taken in turn. The ablation is ten students of resnet18 on small pictures, with new views in every epoch.

Exit status 1 where, in the fastest precision of the device, the live step is not 2 times as fast as the
published one (3 times on a GPU), a teacher's logits are more than 1e-2 from its plain fp32 ones, a step with
logits from the disk takes over 1.1 plain training steps, or the ablation is not 3 times as fast as ten
published students.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.pictures import CLASS_NAMES, CLASSES, random_dataset
from coterie.array_store import Array
from coterie.config import load_config
from coterie.data.loading import Batch, Batches, EpochSampler, ImageBatches, ResizedImages, Views
from coterie.data.transforms import make_augmentation
from coterie.devices import low_precisions
from coterie.losses import asymmetric_loss
from coterie.models.factory import make_factory
from coterie.models.folding import fold_batch_norm, relative_error
from coterie.models.frozen import FrozenModel
from coterie.progress import Bars
from coterie.tasks import ClassificationTask, DistillationTask, classification_loss
from coterie.teachers import Branch, Teachers
from coterie.teaching import Teaching
from coterie.trainer import make_fabric, make_optimizer, memory_layout, prepare
from coterie.view_cache import Make, TaughtBatches

tell = partial(print, flush=True)
K = 5
KINDS = ("co-occurrence", "dis-occurrence")
LEAST_LIVE, LEAST_LIVE_ON_GPU, MOST_CACHED, LEAST_ABLATION, MOST_ERROR = 2.0, 3.0, 1.1, 3.0, 1e-2
ABLATION_MODEL, ABLATION_SIZE, ABLATION_BATCH, ABLATION_STEPS, ABLATION_EPOCHS = "resnet18", 96, 16, 6, 4
STUDENTS = [
    (loss, w, a)
    for loss in ("squared-error", "bernoulli-kl")
    for w, a in ((0.25, 0.5), (0.5, 0.2), (0.5, 0.5), (0.5, 0.8), (0.75, 0.5))
]


class Published(nn.Module):
    """The student's step as it was published: every teacher as it was trained, and a loss for each branch."""

    def __init__(self, model: nn.Module, branches: Mapping[str, nn.Module], w: float, a: float) -> None:
        super().__init__()
        self.model = model
        self.co, self.dis = (branches[kind] for kind in KINDS)
        self.w, self.a = w, a

    def forward(self, images: Tensor, targets: Tensor, _: bool = False) -> dict[str, Tensor]:
        with torch.no_grad():
            co, dis = self.co(images), self.dis(images)
        logits = self.model(images)
        from_co, from_dis = ((logits - known).square().sum(dim=1).mean() for known in (co, dis))
        distillation = self.a * from_co + (1 - self.a) * from_dis
        return {"loss": (1 - self.w) * asymmetric_loss(logits, targets) + self.w * distillation}


class Subject:
    """One architecture with ten teachers, and random pictures for `steps` steps an epoch."""

    def __init__(self, model: str, size: int, batch: int, steps: int, device: str) -> None:
        self.words = [f"model={model}", f"model.image_size={size}", f"student.batch_size={batch}"]
        self.words += [f"device={device}", f"k={K}", "augment.randaugment=false"]
        self.batch, self.steps = batch, steps
        self.factory = make_factory(load_config(self.words).model)
        dataset = random_dataset(batch * steps, size)
        self.images = ResizedImages(dataset, self.factory.preprocessing, memory_gb=8)
        self.seen = self.factory.preprocessing.normalize(
            torch.from_numpy(np.asarray(self.images.dataset.images[:batch])).permute(0, 3, 1, 2)
        )
        self.branches = {kind: self._branch(100 * number) for number, kind in enumerate(KINDS)}

    def _branch(self, seed: int) -> Branch:
        order = np.random.default_rng(seed).permutation(CLASSES)
        groups = [tuple(CLASS_NAMES[label] for label in group) for group in np.array_split(order, K)]
        return Branch(
            [(self._teacher(group, seed + i), group) for i, group in enumerate(groups)], CLASS_NAMES
        )

    @torch.no_grad()
    def _teacher(self, class_names: tuple[str, ...], seed: int) -> nn.Module:
        """A model whose layers all take part; timm starts the last scale of a residual block at zero."""
        model = self.factory.build(class_names, seed).train()
        generator = torch.Generator().manual_seed(seed)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the mean over what is seen
            low, high = (0.5, 1.5) if norm.weight.any() else (0.1, 0.3)
            norm.weight.uniform_(low, high, generator=generator)
            norm.bias.normal_(0, 0.3, generator=generator)
        model(self.seen)
        return model.eval()

    def teaching(self, *words: str) -> Teaching:
        config = load_config([*self.words, *words])
        quiet = Bars(Console(quiet=True))
        views = Views(self.images, make_augmentation(config.augment))
        return Teaching(
            config, views, make_fabric(config), lambda kind: copy.deepcopy(self.branches[kind]), quiet
        )

    def batches(self, teaching: Teaching, seed: int = 0) -> Batches:
        indices, views = self.images.dataset.indices("train"), teaching.config.student.views
        sampler = EpochSampler(indices, self.batch, shuffle=True, seed=seed, views=views)
        return ImageBatches(teaching.views, sampler)

    def published(self, w: float = 0.5, a: float = 0.5, seed: int = 0) -> Callable[[], None]:
        """The published step, in fp32 and the default memory format."""
        teaching = self.teaching("channels_last=false")
        branches = {kind: copy.deepcopy(branch) for kind, branch in self.branches.items()}
        task = Published(self.factory.build(CLASS_NAMES, seed), branches, w, a)
        return stepping(task, teaching, self.batches(teaching))

    def plain(self, precision: str) -> Callable[[], None]:
        """A training step of the same model without teachers."""
        teaching = self.teaching(f"precision={precision}")
        loss = classification_loss(teaching.config.student)
        task = ClassificationTask(self.factory.build(CLASS_NAMES), list(range(CLASSES)), loss)
        return stepping(task, teaching, self.batches(teaching))

    def live(self, precision: str, teachers: Teachers) -> Callable[[], None]:
        teaching = self.teaching(f"precision={precision}")
        return stepping(self._student(teaching, teachers), teaching, self.batches(teaching))

    def cached(
        self, teaching: Teaching, folder: Path, make: Make | None = None, seed: int = 0
    ) -> Callable[[], None]:
        """A step with logits from `folder`; those that are missing are made there first, by `make`."""
        cache = teaching.cache(folder, "", {}, {kind: [(CLASS_NAMES, kind)] for kind in KINDS})
        cache = replace(cache, make=make or cache.make)
        batches = TaughtBatches(self.batches(teaching, seed), cache)
        return stepping(self._student(teaching, None, seed), teaching, batches)

    def random_logits(self, kinds: tuple[str, ...]) -> Callable[[int], Iterator[Array]]:
        """Logits that took no teacher: as dear to read as any."""
        shape = (len(kinds), len(self.images.dataset), CLASSES)
        return lambda view: iter([np.random.default_rng(view).normal(size=shape).astype(np.float32)])

    def _student(self, teaching: Teaching, teachers: Teachers | None, seed: int = 0) -> DistillationTask:
        distill = teaching.config.distill
        return DistillationTask(
            self.factory.build(CLASS_NAMES, seed),
            teachers,
            [distill.a, 1 - distill.a],
            classification_loss(teaching.config.student),
            distill,
            CLASSES,
        )


def stepping(task: nn.Module, teaching: Teaching, batches: Batches) -> Callable[[], None]:
    """A function that does the next training step: batch, forward, backward, update."""
    fabric, config = teaching.fabric, teaching.config
    layout = memory_layout(config.channels_last)
    task.to(memory_format=layout)
    wrapped, optimizer = fabric.setup(task, make_optimizer(task.model, config.student))  # type: ignore[arg-type]
    wrapped.train()
    coming = endless(batches)

    def step() -> None:
        batch = next(coming)
        prepared = prepare(batch, teaching.images.preprocessing, fabric, layout)
        loss = wrapped(*prepared.inputs)["loss"]
        optimizer.zero_grad(set_to_none=True)
        fabric.backward(loss)
        optimizer.step()

    return step


def endless(batches: Batches) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def best_times(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The best time of each function in seconds, after one call that does not count, all taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            times[name].append(timed(function))
    return {name: min(taken[1:]) for name, taken in times.items()}


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def forms_of_a_teacher(subject: Subject, device: torch.device) -> dict[str, Callable[[], object]]:
    """One teacher's answer in every form: folded or not, by precision and memory format."""
    model = next(iter(subject.branches.values())).models[0]
    folded = fold_batch_norm(model, subject.seen[:2])
    dtypes = [torch.float32, *low_precisions(device.type)]
    forms: dict[str, Callable[[], object]] = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        images = subject.seen.to(device, memory_format=layout)
        for name, source in (("as trained", model), ("folded", folded)):
            for dtype in dtypes if name == "folded" else dtypes[:1]:
                frozen = FrozenModel(copy.deepcopy(source).to(device), dtype).to(memory_format=layout)
                words = f"{name}, {str(dtype).removeprefix('torch.')}, {str(layout).removeprefix('torch.')}"
                forms[words] = partial(frozen, images)
    return forms


def largest_error(subject: Subject, teachers: Teachers, device: torch.device) -> float:
    """The largest relative error of a teacher's logits on a batch, from those of its plain fp32 form."""
    images = subject.seen.to(device)
    errors = []
    for plain, fast in zip(subject.branches.values(), teachers.branches, strict=True):
        assert isinstance(fast, Branch)
        for model, frozen in zip(plain.models, fast.models, strict=True):
            with torch.no_grad():
                expected = copy.deepcopy(model).to(device)(images)
            errors.append(relative_error(frozen(images), expected))
    return max(errors)


def ablation(device: str, precision: str) -> tuple[float, float]:
    """Seconds for ten students as published, and for ours: the teachers asked once, for all of them."""
    subject = Subject(ABLATION_MODEL, ABLATION_SIZE, ABLATION_BATCH, ABLATION_STEPS, device)
    steps = ABLATION_STEPS * ABLATION_EPOCHS

    def published() -> None:
        for number, (_, w, a) in enumerate(STUDENTS):
            step = subject.published(w, a, seed=number)
            for _ in range(steps):
                step()

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for number, (loss, w, a) in enumerate(STUDENTS):
                words = [f"distill.loss={loss}", f"distill.w={w}", f"distill.a={a}", f"precision={precision}"]
                teaching = subject.teaching(*words, "distill.cache=on")
                step = subject.cached(teaching, Path(folder), seed=number)
                for _ in range(steps):
                    step()

    return timed(published), timed(ours)


def step_times(
    subject: Subject, precisions: list[str], device: torch.device, rounds: int
) -> tuple[dict[str, float], float]:
    """Seconds of a step of each kind and precision, and the largest error of a live teacher."""
    steps, errors = {"published": subject.published()}, []
    with tempfile.TemporaryDirectory() as folder:
        for precision in precisions:
            start = time.perf_counter()
            teachers = subject.teaching(f"precision={precision}").teachers(KINDS)
            tell(f"  {2 * K} teachers made ready for {precision} in {time.perf_counter() - start:.1f} s")
            errors.append(largest_error(subject, teachers, device))
            one_view = subject.teaching(f"precision={precision}", "student.views=1", "distill.cache=on")
            steps |= {
                f"live, {precision}": subject.live(precision, teachers),
                f"plain, {precision}": subject.plain(precision),
                f"cached, {precision}": subject.cached(one_view, Path(folder), subject.random_logits),
            }
        return best_times(steps, rounds), max(errors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50", help="any timm model (default %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images in a batch (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="best of so many (default %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default %(default)s)")
    arguments = parser.parse_args()
    subject = Subject(arguments.model, arguments.size, arguments.batch, 2, arguments.device)
    device = subject.teaching().fabric.device
    fast = torch.bfloat16 in low_precisions(device.type)
    best = "bf16" if fast else "fp32"
    tell(
        f"{arguments.model}, {arguments.size} px, batch {arguments.batch}, {2 * K} teachers, {device.type}, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name, seconds in best_times(forms_of_a_teacher(subject, device), arguments.rounds).items():
        tell(f"  one teacher, {name:42s} {1e3 * seconds:9.1f} ms")
    times, error = step_times(subject, ["fp32", "bf16"] if fast else ["fp32"], device, arguments.rounds)
    for name, seconds in times.items():
        ratio = times["published"] / seconds
        tell(f"  step, {name:16s} {1e3 * seconds:9.1f} ms, {ratio:6.2f} times as fast as published")
    published, ours = ablation(arguments.device, best)
    tell(f"  ablation of {len(STUDENTS)} students: published {published:.1f} s, ours {ours:.1f} s")

    live, ablated = times["published"] / times[f"live, {best}"], published / ours
    cached = times[f"cached, {best}"] / times[f"plain, {best}"]
    least = LEAST_LIVE_ON_GPU if device.type == "cuda" else LEAST_LIVE
    checks = (
        (live >= least, f"live step ({best}) {live:.2f} times as fast (wanted: {least})"),
        (error <= MOST_ERROR, f"logits within {error:.1e} of the plain fp32 ones (wanted: {MOST_ERROR})"),
        (
            cached <= MOST_CACHED,
            f"cached step takes {cached:.3f} plain ones (wanted: at most {MOST_CACHED})",
        ),
        (ablated >= LEAST_ABLATION, f"ablation {ablated:.2f} times as fast (wanted: {LEAST_ABLATION})"),
    )
    for held, text in checks:
        tell(f"{'reached' if held else 'MISSED '}  {text}")
    return int(not all(held for held, _ in checks))


if __name__ == "__main__":
    sys.exit(main())
