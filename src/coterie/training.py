"""One training from its inputs to its checkpoint, in this process or in another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_fabric import Fabric

from coterie.checkpoint import Checkpoint, describe_architecture, load_model, save_checkpoint
from coterie.config import Config, TrainConfig
from coterie.data.dataset import MultiLabelDataset
from coterie.data.loading import ResizedImages, plain_batches, training_batches
from coterie.data.transforms import make_augmentation
from coterie.errors import CheckpointError
from coterie.evaluation import EVALUATION_BATCH
from coterie.models.factory import ModelFactory
from coterie.preparation import branch_weights
from coterie.runfolder import Training, reset
from coterie.seeding import derive_seed
from coterie.tasks import ClassificationTask, DistillationTask, Task, classification_loss, distillation_loss
from coterie.teachers import Branch
from coterie.trainer import Data, EpochWatcher, Trainer

# (name, epochs, images of an epoch, epochs done before) -> the watcher of that training
Watch = Callable[[str, int, int, int], AbstractContextManager[EpochWatcher]]


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

    def train(self, job: Job, fabric: Fabric, watch: Watch, teachers: Sequence[Training] = ()) -> Training:
        """Train from the last finished epoch on, and leave the checkpoint: the manifest's new entry.

        `teachers`: those of the manifest, for the student.
        """
        training, settings = job.training, job.settings
        path = self.folder / training.name
        seed = derive_seed(self.config.seed, training.name)
        trainer = Trainer(
            self._task(job, seed, teachers),
            self._data(settings, seed),
            settings,
            fabric,
            path,
            key=job.key,
            seed=seed,
            channels_last=self.config.channels_last,
        )
        images = len(trainer.data.training) * trainer.data.training.sampler.batch_size
        with watch(training.name, settings.epochs, images, trainer.state.epoch) as watcher:
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

    def _task(self, job: Job, seed: int, teachers: Sequence[Training]) -> Task:
        class_names = job.training.class_names
        model = self.factory.build(class_names, seed)
        loss = classification_loss(job.settings)
        if job.training.name != "student":
            columns = [self.dataset.class_names.index(name) for name in class_names]
            return ClassificationTask(model, columns, loss)
        distill = self.config.distill
        branches = {
            kind: (self.branch(kind, teachers), weight)
            for kind, weight in branch_weights(self.config).items()
        }
        return DistillationTask(model, branches, loss, distillation_loss(distill), distill.w)

    def _data(self, settings: TrainConfig, seed: int) -> Data:
        workers = self.config.data.workers
        augmentation = make_augmentation(self.config.augment)
        return Data(
            training_batches(self.images, "train", settings.batch_size, augmentation, seed, workers),
            plain_batches(self.images, self.dataset.indices("val"), EVALUATION_BATCH, workers),
            self.factory.preprocessing,
        )
