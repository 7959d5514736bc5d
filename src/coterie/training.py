"""Trainings from their inputs to their checkpoints, in this process or in another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from coterie.checkpoint import Checkpoint, describe_architecture, load_model, save_checkpoint
from coterie.config import BASELINE, STUDENT, Config, TrainConfig
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import Batches, EpochSampler, ImageBatches, ResizedImages, Views, plain_batches
from coterie.data.order import training_order
from coterie.data.splits import learned_images
from coterie.data.transforms import make_augmentation
from coterie.errors import CheckpointError, ConfigError, RunError, counted
from coterie.evaluation import EVALUATION_BATCH
from coterie.features import Features, FrozenViews
from coterie.lockstep import Member, train_together
from coterie.mirror import Keeping, Mirror
from coterie.models.cut import Cut
from coterie.models.factory import ModelFactory
from coterie.models.inherit import inherit_weights
from coterie.preparation import teacher_weights
from coterie.ranks import ALONE, Ranks, wait_for_all
from coterie.runfolder import Training, reset
from coterie.seeding import derive_seed
from coterie.states import remove_states
from coterie.tasks import ClassificationTask, DistillationTask, Task, classification_loss
from coterie.teachers import Branch, Teachers
from coterie.teaching import Teaching
from coterie.trainer import Data, Reporter, Trainer, make_fabric
from coterie.view_cache import FeatureBatches, TaughtBatches, ViewCache


@dataclass(frozen=True)
class Job:
    """A training to do: its entry in the manifest, its settings, and the key of its inputs."""

    training: Training
    settings: TrainConfig
    key: str


# Of a training that could not be finished: its entry, and why.
Failed = tuple[Training, RunError]


def grouped(jobs: Sequence[Job], together: int, processes: int = 1) -> list[list[Job]]:
    """The jobs in groups that can share their batches, up to `together` in each, and in no fewer groups than
    there are `processes` to do them.
    """
    alike: dict[tuple[object, ...], list[Job]] = {}
    for job in jobs:
        settings = job.settings
        from_features = settings.frozen is not None and settings.views_come_again
        of_batches = (settings.batch_size, settings.views, settings.start, settings.frozen, from_features)
        # what is mixed needs images, where the others share the features of a frozen part
        kind = (job.training.name == STUDENT, settings.mixup > 0)
        alike.setdefault((*kind, *of_batches), []).append(job)
    groups = []
    for same in alike.values():
        size = min(together, -(-len(same) // processes))
        groups += [same[start : start + size] for start in range(0, len(same), size)]
    return groups


@dataclass(frozen=True)
class Taught:
    """What a student learns from: its teachers, None where its batches bring their logits, and the weights of
    the branches, [R] or by label [R, C].
    """

    teachers: Teachers | None
    weights: Tensor


@dataclass(frozen=True)
class Workshop:
    """What all trainings of a run are made from. It can be sent to another process."""

    config: Config
    folder: Path
    dataset: MultiLabelDataset
    factory: ModelFactory
    images: ResizedImages
    fingerprint: str
    mirror: Mirror | None = None

    def train(
        self,
        jobs: Sequence[Job],
        reporter: Reporter,
        manifest: Sequence[Training] = (),
        device: int = 0,
        ranks: Ranks = ALONE,
    ) -> Iterator[Training | Failed]:
        """Train a group of `jobs` on the same batches, from their last states on, and leave their
        checkpoints: the manifest's new entries, each as soon as it is finished.

        `manifest`: all trainings of the run, for those that start from others or learn from them. `device`:
        which of several GPUs. With a `mirror`, what another machine has kept is taken up from there, and put
        there after every epoch. All of the `ranks` that do the group together call this; the first alone
        leaves files and entries.
        """
        if self.mirror is not None:
            self._fetch(jobs, manifest, self.mirror, ranks)
            if ranks.is_first:
                reporter = Keeping(self.mirror, {job.training.name: job.key for job in jobs}, reporter)
            wait_for_all(ranks)
        group = _Group(self, jobs, reporter, manifest, device, ranks)
        with group.watched() as members:
            for member, error in train_together(list(members)):
                job = members[member]
                if not ranks.is_first:
                    continue
                if error is not None:
                    yield job.training, error
                    continue
                done = self._finish(job, member.trainer)
                if self.mirror is not None:
                    self.mirror.keep(done)
                    remove_states(self.folder / done.name)  # nobody else comes here on a node of a cluster
                yield done

    def _fetch(self, jobs: Sequence[Job], manifest: Sequence[Training], mirror: Mirror, ranks: Ranks) -> None:
        """Bring what the jobs need here: the trainings that they depend on, as each of the `ranks` may be on
        a machine of its own, and for the first of them their states.
        """
        for job in jobs if ranks.is_first else ():
            mirror.fetch_state(job.training.name, job.key)
        for_student = any(job.training.name == STUDENT for job in jobs)
        from_baseline = any(job.settings.start == BASELINE for job in jobs)
        for other in manifest:
            needed = for_student or (from_baseline and other.name == BASELINE)
            if needed and other.state == "done" and mirror.take(other, other.key) is None:
                raise RunError(f"storage={mirror.url} does not hold {other.name} whole; start the run again")

    def _finish(self, job: Job, trainer: Trainer) -> Training:
        state, training, model = trainer.state, job.training, trainer.task.model
        model.load_state_dict(state.best_weights)
        checkpoint = save_checkpoint(
            self.folder / training.name,
            model,
            Checkpoint(
                name=training.name,
                class_names=self.answered(training),
                architecture=describe_architecture(self.factory_of(job.settings)),
                preprocessing=self.factory.preprocessing,
                threshold=self.config.threshold,
                metrics={"val_mAP": state.best_map, "best_epoch": state.best_epoch},
                config=self.config.to_values(),
            ),
        )
        return replace(
            reset(training),
            state="done",
            key=job.key,
            weights_sha256=checkpoint.weights_sha256,
            best_epoch=state.best_epoch,
            val_map=state.best_map,
            seconds=sum(line["seconds"] for line in state.history),
        )

    def factory_of(self, settings: TrainConfig) -> ModelFactory:
        """What builds the models of trainings with these settings."""
        return replace(self.factory, shrink=settings.shrink)

    def answered(self, training: Training) -> tuple[str, ...]:
        """The classes that the model of a training answers for: its own, or all of the data where a teacher
        learns those outside of its group beside them.
        """
        return self.dataset.class_names if self._learns_outside(training) else training.class_names

    def counts(self, training: Training) -> list[float] | None:
        """What the classes that it answers for count in a training; None where all count the same."""
        if not self._learns_outside(training) or self.config.teacher.outside == 1:
            return None
        group = set(training.class_names)
        return [1.0 if name in group else self.config.teacher.outside for name in self.dataset.class_names]

    def _learns_outside(self, training: Training) -> bool:
        is_of_some = len(training.class_names) < self.dataset.num_classes
        return training.branch is not None and is_of_some and self.config.teacher.outside > 0

    def load(self, training: Training) -> nn.Module:
        """The model of a finished training; CheckpointError where it answers for other classes than it
        should by the manifest, or wants other images than this run makes.
        """
        model, checkpoint = load_model(self.folder / training.name, self.factory.builder)
        if checkpoint.class_names != self.answered(training):
            raise CheckpointError(f"{training.name} answers for other classes than the manifest says")
        if checkpoint.preprocessing != self.factory.preprocessing:
            raise CheckpointError(
                f"{training.name} takes images of {checkpoint.preprocessing}, and this run makes those of "
                f"{self.factory.preprocessing}; delete its folder to train it anew"
            )
        return model

    def branch(self, kind: str, teachers: Sequence[Training]) -> Branch:
        """The teachers of a branch, or the baseline, by the manifest; CheckpointError where one does not
        fit.
        """
        own = [training for training in teachers if kind in (training.branch, training.name)]
        return Branch(
            [(self.load(training), training.class_names) for training in own],
            self.dataset.class_names,
            self.config.teacher.outside if any(map(self._learns_outside, own)) else 0.0,
        )


class _Group:
    """Trainings on the same batches: the model, the task and the trainer of each."""

    def __init__(
        self,
        workshop: Workshop,
        jobs: Sequence[Job],
        reporter: Reporter,
        manifest: Sequence[Training],
        device: int,
        ranks: Ranks,
    ) -> None:
        self.workshop = workshop
        self.ranks = ranks
        self.config, self.dataset = workshop.config, workshop.dataset
        self.settings = jobs[0].settings  # what makes the batches is the same in all
        self.is_student = jobs[0].training.name == STUDENT
        self.reporter = reporter
        self.manifest = manifest
        self.fabric = make_fabric(self.config, device, ranks)
        models = [self._model(job) for job in jobs]
        data, taught = self._data(self._frozen_part(models))
        self.trainers = {}
        for job, model in zip(jobs, models, strict=True):
            self.trainers[job] = Trainer(
                self._task(job, model, taught),
                data,
                job.settings,
                make_fabric(self.config, device, ranks),  # of its own: a scaler of gradients has a state
                workshop.folder / job.training.name,
                key=job.key,
                seed=self._seed(job.training),
                channels_last=self.config.channels_last,
                resume=self.config.resume,
                note=reporter.note,
            )

    @contextmanager
    def watched(self) -> Iterator[dict[Member, Job]]:
        """The members of the group, each with a watcher of its own."""
        with ExitStack() as stack:
            members = {}
            for job, trainer in self.trainers.items():
                training = trainer.data.training
                images = len(training) * training.sampler.batch_size
                watch = self.reporter.watch(
                    job.training.name, job.settings.epochs, images, trainer.state.epoch
                )
                members[Member(trainer, stack.enter_context(watch))] = job
            yield members

    def _seed(self, training: Training) -> int:
        of_student = self.config.distill.seed if training.name == STUDENT else None
        return derive_seed(self.config.seed if of_student is None else of_student, training.name)

    def _columns(self, training: Training) -> list[int]:
        return [self.dataset.class_names.index(name) for name in self.workshop.answered(training)]

    def _model(self, job: Job) -> nn.Module:
        """A new model, with the weights that it starts from."""
        training = job.training
        answered = self.workshop.answered(training)
        model = self.workshop.factory_of(job.settings).build(answered, self._seed(training))
        if job.settings.start == "baseline":
            baseline = self.workshop.load(Training(BASELINE, self.dataset.class_names))
            inherit_weights(model, baseline, answered, self.dataset.class_names)
        return model

    def _frozen_part(self, models: Sequence[nn.Module]) -> Cut | None:
        """The part that all models have frozen, on the device; ConfigError where they start differently."""
        if (name := self.settings.frozen) is None:
            return None
        cuts = [Cut(model, name) for model in models]
        if len({cut.sha256() for cut in cuts}) > 1:
            raise ConfigError(
                f"frozen={name}: the trainings start from different weights there; give the trained ones by "
                "model.weights, model.pretrained or start=baseline"
            )
        cuts[0].freeze()
        cuts[0].lower_part.to(self.fabric.device)
        return cuts[0]

    def _data(self, frozen_part: Cut | None) -> tuple[Data, Taught | None]:
        """The batches of the group; for a student also what it learns from beside them."""
        config, settings, images = self.config, self.settings, self.workshop.images
        indices, workers = images.dataset.indices, config.data.workers
        # the student has views of its own: its teachers would know theirs by heart
        role = STUDENT if self.is_student else "trainings"
        views = Views(images, make_augmentation(config.augment), derive_seed(config.view_seed, role))
        order = config.seed if config.distill.seed is None or not self.is_student else config.distill.seed
        shards = config.data.webdataset
        train = learned_images(images.dataset, is_student=self.is_student)
        sampler = EpochSampler(
            train,
            settings.batch_size,
            shuffle=True,
            order=training_order(
                images.dataset, train, derive_seed(order, role), shards.window, shards.block
            ),
            views=settings.views,
            ranks=self.ranks,
        )
        training: Batches = ImageBatches(views, sampler, workers)
        batch = EVALUATION_BATCH * self.ranks.size
        validation = plain_batches(images, indices("val"), batch, workers, self.ranks)
        for what, batches in (("batch", training), ("validation", validation)):
            if batches.sampler.batch_size < self.ranks.size:
                raise ConfigError(
                    f"a {what} of {counted(batches.sampler.batch_size, 'image')} cannot be shared by "
                    f"{self.ranks.size} processes; set fewer processes"
                )
        kept = None
        if frozen_part is not None:
            features = Features(
                config, self.workshop.folder, images, self.fabric, self.workshop.fingerprint, frozen_part
            )
            known = self._filled(features.cache("val", indices("val"), Views(images)), range(1))
            validation = FeatureBatches(self.dataset.targets, validation.sampler, known)
            # live teachers look at the images
            if settings.views_come_again and (config.caches_logits or not self.is_student):
                known = self._filled(features.cache("train", train, views), settings.distinct_views)
                training = FeatureBatches(self.dataset.targets, sampler, known)
                kept = FrozenViews(known, frozen_part.sha256())
        taught = None
        if self.is_student:
            training, taught = self._taught(training, views, kept)
        data = Data(training, validation, self.workshop.factory.preprocessing, self.dataset.image_ids)
        return data, taught

    def _filled(self, cache: ViewCache, views: range) -> ViewCache:
        missing = cache.missing(views)
        if missing:
            (store,) = cache.stores.values()
            with self.reporter.watch("features", len(missing), store.shape[0]) as watcher:
                cache.fill(missing, watcher.advance)
        return cache

    def _taught(self, batches: Batches, views: Views, known: FrozenViews | None) -> tuple[Batches, Taught]:
        """The student's batches with its teachers' logits, or without them and the teachers."""
        kinds = teacher_weights(self.config)
        load = partial(self.workshop.branch, teachers=self.manifest)
        teaching = Teaching(self.config, views, self.fabric, load, self.reporter, known)
        if not self.config.caches_logits:
            teachers = teaching.teachers(list(kinds))
            return batches, Taught(teachers, teaching.weights(teachers))
        hashes = {
            kind: [
                (other.class_names, other.weights_sha256)
                for other in self.manifest
                if kind in (other.branch, other.name)
            ]
            for kind in kinds
        }
        architecture = describe_architecture(self.workshop.factory_of(self.config.teacher))
        cache = teaching.cache(self.workshop.folder, self.workshop.fingerprint, architecture, hashes)
        teaching.fill(cache)
        return TaughtBatches(batches, cache), Taught(None, teaching.weights())

    def _task(self, job: Job, model: nn.Module, taught: Taught | None) -> Task:
        loss = classification_loss(job.settings)
        if taught is None:
            return ClassificationTask(
                model,
                self._columns(job.training),
                loss,
                job.settings.mixup,
                self.workshop.counts(job.training),
            )
        return DistillationTask(
            model,
            taught.teachers,
            taught.weights,
            loss,
            self.config.distill,
            self.dataset.num_classes,
            job.settings.mixup,
        )
