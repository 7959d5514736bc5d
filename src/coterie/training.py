"""One training from its inputs to its checkpoint, in this process or in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lightning_fabric import Fabric
from torch import nn

from coterie.checkpoint import Checkpoint, describe_architecture, load_model, save_checkpoint
from coterie.config import Config, TrainConfig
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import Batches, ResizedImages, plain_batches, training_batches
from coterie.data.transforms import make_augmentation
from coterie.errors import CheckpointError
from coterie.evaluation import EVALUATION_BATCH
from coterie.models.factory import ModelFactory
from coterie.preparation import branch_weights
from coterie.runfolder import Training, reset
from coterie.seeding import derive_seed
from coterie.tasks import ClassificationTask, DistillationTask, Task, classification_loss, distillation_loss
from coterie.teachers import Branch
from coterie.teaching import Teaching
from coterie.trainer import Data, Reporter, Trainer


@dataclass(frozen=True)
class Job:
    """A training to do: its entry in the manifest, its settings, and the key of its inputs."""

    training: Training
    settings: TrainConfig
    key: str


@dataclass(frozen=True)
class Workshop:
    """What all trainings of a run are made from. It can be sent to another process."""

    config: Config
    folder: Path
    dataset: MultiLabelDataset
    factory: ModelFactory
    images: ResizedImages
    fingerprint: str

    def train(
        self, job: Job, fabric: Fabric, reporter: Reporter, teachers: Sequence[Training] = ()
    ) -> Training:
        """Train from the last finished epoch on, and leave the checkpoint: the manifest's new entry.

        `teachers`: those of the manifest, for the student.
        """
        training, settings = job.training, job.settings
        path = self.folder / training.name
        seed = self._seed(training)
        task, batches = self._task(job, seed, fabric, reporter, teachers)
        trainer = Trainer(
            task,
            self._data(batches),
            settings,
            fabric,
            path,
            key=job.key,
            seed=seed,
            channels_last=self.config.channels_last,
        )
        images = len(trainer.data.training) * trainer.data.training.sampler.batch_size
        with reporter.watch(training.name, settings.epochs, images, trainer.state.epoch) as watcher:
            state = trainer.run(watcher)
        model = trainer.task.model
        model.load_state_dict(state.best_weights)
        checkpoint = save_checkpoint(
            path,
            model,
            Checkpoint(
                name=training.name,
                class_names=training.class_names,
                architecture=describe_architecture(self.factory),
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

    def branch(self, kind: str, teachers: Sequence[Training]) -> Branch:
        """The teachers of a branch, by the manifest; CheckpointError where one answers for other classes."""
        loaded = []
        for training in teachers:
            if training.branch != kind:
                continue
            model, checkpoint = load_model(self.folder / training.name, self.factory.builder)
            if checkpoint.class_names != training.class_names:
                raise CheckpointError(f"{training.name} answers for other classes than the manifest says")
            loaded.append((model, checkpoint.class_names))
        return Branch(loaded, self.dataset.class_names)

    def _seed(self, training: Training) -> int:
        of_student = self.config.distill.seed if training.name == "student" else None
        return derive_seed(self.config.seed if of_student is None else of_student, training.name)

    def _data(self, batches: Batches) -> Data:
        validation = plain_batches(
            self.images, self.dataset.indices("val"), EVALUATION_BATCH, self.config.data.workers
        )
        return Data(batches, validation, self.factory.preprocessing)

    def _task(
        self, job: Job, seed: int, fabric: Fabric, reporter: Reporter, teachers: Sequence[Training]
    ) -> tuple[Task, Batches]:
        """What a training optimises, and on which batches."""
        class_names, settings = job.training.class_names, job.settings
        model = self.factory.build(class_names, seed)
        if job.training.name == "student":
            return self._distillation(model, settings, seed, fabric, reporter, teachers)
        columns = [self.dataset.class_names.index(name) for name in class_names]
        augmentation, workers = make_augmentation(self.config.augment), self.config.data.workers
        batches = training_batches(self.images, "train", settings.batch_size, augmentation, seed, workers)
        return ClassificationTask(model, columns, classification_loss(settings)), batches

    def _distillation(
        self,
        model: nn.Module,
        settings: TrainConfig,
        seed: int,
        fabric: Fabric,
        reporter: Reporter,
        teachers: Sequence[Training],
    ) -> tuple[Task, Batches]:
        """The student's task with its teachers; or without them, and batches that bring their logits."""
        distill, weights = self.config.distill, branch_weights(self.config)
        load = partial(self.branch, teachers=teachers)
        teaching = Teaching(self.config, self.images, fabric, load, reporter)
        cache, answering = None, None
        if distill.is_cached(settings.epochs):
            made_from = {"data": self.fingerprint, "architecture": describe_architecture(self.factory)}
            hashes = {
                kind: [
                    (other.class_names, other.weights_sha256) for other in teachers if other.branch == kind
                ]
                for kind in weights
            }
            cache = teaching.cache(self.folder, made_from, hashes)
            teaching.fill(cache, settings.epochs)
        else:
            answering = teaching.teachers(list(weights))
        task = DistillationTask(
            model,
            answering,
            list(weights.values()),
            classification_loss(settings),
            distillation_loss(distill),
            distill.w,
            self.dataset.num_classes,
        )
        return task, teaching.batches(settings.batch_size, seed, cache)
