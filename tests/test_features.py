"""A frozen part: its features are computed once, and a training on them is the one on the images."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from coterie.checkpoint import load_model
from coterie.config import Config, TrainConfig, load_config
from coterie.data.loading import ResizedImages, Views
from coterie.data.transforms import Preprocessing, make_augmentation
from coterie.errors import ConfigError, RunError
from coterie.features import FEATURES_FOLDER, Features, check_features
from coterie.files import file_sha256
from coterie.models.cut import Cut
from coterie.models.folding import relative_error
from coterie.pipeline import Run, run
from coterie.preparation import prepare_data
from coterie.runfolder import RunFolder, Training
from coterie.stages import training_settings
from coterie.teachers import Teachers
from coterie.training import Job, grouped
from coterie.view_cache import ViewCache
from tests.tiny import CLASS_NAMES, RUN_WORDS, SIDE, Net, cpu_fabric, make_dataset, tiny_net

# teachers that share the baseline's convolution, and see two views of each image
FROZEN = ("teacher.start=baseline", "teacher.frozen=norm", "teacher.views=2", "teacher.epochs=4")
TEACHERS = [
    f"teachers/{kind}-{number}" for kind in ("co-occurrence", "dis-occurrence") for number in range(2)
]


def features(*words: str, seed: int = 0, std: float = 0.25) -> tuple[Features, Views]:
    config = load_config(["augment.randaugment=false", *words])
    images = ResizedImages(make_dataset(), Preprocessing(SIDE, (0.5, 0.5, 0.5), (0.25, 0.25, std)))
    part = Cut(tiny_net(seed).eval(), "norm")
    made = Features(config, Path("nowhere"), images, cpu_fabric(config.precision), "data", part)
    return made, Views(images, make_augmentation(config.augment), config.view_seed)


def cache(folder: Path, *words: str, split: str = "train", seed: int = 0, std: float = 0.25) -> ViewCache:
    made, views = features(f"cache_dir={folder}", *words, seed=seed, std=std)
    return made.cache(split, made.images.dataset.indices(split), views)


def test_features_from_the_disk_are_those_of_the_views(tmp_path: Path) -> None:
    made, views = features(f"cache_dir={tmp_path}")
    indices = made.images.dataset.indices("train")
    (stored,) = made.cache("train", indices, views).view(3)
    assert stored.dtype == np.float16
    assert len(list((tmp_path / FEATURES_FOLDER).rglob("*.bin"))) == 1
    pixels = torch.stack([views[3, int(index)].pixels for index in indices])
    net = tiny_net().eval()
    with torch.no_grad():
        expected = net.norm(net.convolution(made.images.preprocessing.normalize(pixels)))
    np.testing.assert_allclose(stored, expected.numpy(), rtol=1e-3, atol=1e-3)


def test_what_the_features_depend_on_makes_another_cache(tmp_path: Path) -> None:
    cache(tmp_path).fill([0])
    assert cache(tmp_path).missing([0]) == []
    assert cache(tmp_path, "train.lr=0.5", "k=3").missing([0]) == []
    for words in (("augment.cutout=0.1",), ("seed=1",), ("precision=bf16",), ("channels_last=false",)):
        assert cache(tmp_path, *words).missing([0]) == [0], words
    assert cache(tmp_path, seed=1).missing([0]) == [0]
    assert cache(tmp_path, std=0.2).missing([0]) == [0]
    assert cache(tmp_path, split="val").missing([0]) == [0]


def config_of(made: Run, out: Path, *changes: str) -> Config:
    return load_config([*RUN_WORDS, f"data={made.config.data.source}", f"out={out}", *changes])


def weights(made: Run, name: str) -> dict[str, Tensor]:
    return load_model(made.folder / name, Net)[0].state_dict()


def test_teachers_that_share_a_frozen_part_learn_the_rest(run_copy: Run, tmp_path: Path) -> None:
    made = run(config_of(run_copy, tmp_path / "new", *FROZEN))
    baseline = weights(made, "baseline")
    for name in TEACHERS:
        teacher = weights(made, name)
        frozen = [key for key in teacher if key.startswith(("convolution", "norm"))]
        assert all(torch.equal(teacher[key], baseline[key]) for key in frozen)
        assert teacher["head.weight"].shape == (2, 6)
        classes = [
            training.class_names for training in RunFolder(made.folder).trainings() if training.name == name
        ]
        started = baseline["head.weight"][[made.baseline.class_names.index(label) for label in classes[0]]]
        assert not torch.equal(teacher["head.weight"], started)
        assert relative_error(teacher["head.weight"], started) < 1
    # two views of the training images, one plain view of those of validation
    assert len(list((made.folder / FEATURES_FOLDER).rglob("*.bin"))) == 3


def test_features_change_a_training_by_rounding_alone(
    run_copy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = run(config_of(run_copy, tmp_path / "cached", *FROZEN))
    monkeypatch.setattr(TrainConfig, "views_come_again", False)
    live = run(config_of(run_copy, tmp_path / "live", *FROZEN))
    assert len(list((live.folder / FEATURES_FOLDER).rglob("*.bin"))) == 1  # of validation
    for name in TEACHERS:
        heads = [weights(made, name)["head.weight"] for made in (cached, live)]
        assert 0 < relative_error(*heads) < 1e-2


@pytest.mark.parametrize(
    "words",
    [
        FROZEN,
        ("teacher.start=baseline", "teacher.frozen=norm"),
        ("teacher.start=baseline", "teacher.frozen=norm", "precision=bf16"),
        (),
    ],
    ids=str,
)
def test_teachers_together_have_the_weights_of_those_by_themselves(
    run_copy: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    one = run(config_of(run_copy, tmp_path / "one", *words))
    together = run(config_of(run_copy, tmp_path / "together", *words, "together=4"))
    aside = run(config_of(run_copy, tmp_path / "aside", *words, "together=2", "jobs=2"))
    for name in (*TEACHERS, "baseline", "student"):
        hashes = {file_sha256(made.folder / name / "model.safetensors") for made in (one, together, aside)}
        assert len(hashes) == 1, name


def test_trainings_on_features_are_not_grouped_with_those_on_images() -> None:
    """The first of a group decides for all: features are rounded, and images are not."""
    config = load_config(["train.frozen=norm", "train.views=3", "baseline.epochs=3", "teacher.epochs=9"])
    trainings = [
        Training("baseline", CLASS_NAMES),
        Training(TEACHERS[0], CLASS_NAMES[:2], "co-occurrence", 0),
    ]
    jobs = [Job(training, training_settings(config, training), "key") for training in trainings]
    assert grouped(jobs, together=2) == [[jobs[0]], [jobs[1]]]
    same = [replace(job, settings=config.teacher) for job in jobs]
    assert grouped(same, together=2) == [same]


def test_trainings_on_mixed_images_are_not_grouped_with_those_that_share_features() -> None:
    settings = TrainConfig(frozen="norm")
    jobs = [
        Job(Training(f"teachers/co-occurrence-{number}", ("a",)), chosen, "key")
        for number, chosen in enumerate((settings, settings.model_copy(update={"mixup": 0.2}), settings))
    ]
    assert grouped(jobs, together=3) == [[jobs[0], jobs[2]], [jobs[1]]]


def test_a_student_with_a_frozen_part_learns_from_features_and_logits(run_copy: Run, tmp_path: Path) -> None:
    own = ("student.start=baseline", "student.frozen=norm", "student.views=1")
    made = run(config_of(run_copy, tmp_path / "new", *FROZEN, *own))
    baseline, student = weights(made, "baseline"), weights(made, "student")
    assert torch.equal(student["convolution.weight"], baseline["convolution.weight"])
    assert not torch.equal(student["head.weight"], baseline["head.weight"])
    # live teachers look at the images; those whose logits are kept answered from the features
    live = run(
        config_of(run_copy, tmp_path / "live", *FROZEN, *own, "distill.cache=off", "distill.tolerance=0")
    )
    assert relative_error(weights(live, "student")["head.weight"], student["head.weight"]) < 1e-2


def test_teachers_with_the_students_frozen_part_answer_from_its_features(
    run_copy: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_features: list[bool] = []
    answer = Teachers.forward

    def recorded(self: Teachers, images: Tensor, are_features: bool = False) -> Tensor:
        from_features.append(are_features)
        return answer(self, images, are_features)

    monkeypatch.setattr(Teachers, "forward", recorded)
    own = ("student.start=baseline", "student.frozen=norm", "student.views=1", "distill.tolerance=0")
    run(config_of(run_copy, tmp_path / "new", *FROZEN, *own))
    assert set(from_features) == {True}
    from_features.clear()
    # another frozen part than the student's: from the images, as ever
    other = ("teacher.frozen=convolution",)
    run(config_of(run_copy, tmp_path / "other", *FROZEN, *own, *other))
    assert set(from_features) == {False}


@pytest.mark.parametrize("own", [(), ("student.start=baseline", "student.frozen=norm", "student.views=1")])
def test_room_for_the_features_is_looked_for_before_any_training(
    run_copy: Run, tmp_path: Path, own: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(config_of(run_copy, tmp_path / "new", *FROZEN, *own))
    size = sum(path.stat().st_size for path in (made.folder / FEATURES_FOLDER).rglob("*.bin"))
    config = config_of(run_copy, tmp_path / "other", *FROZEN, *own)
    trainings = RunFolder(made.folder).trainings()
    dataset = prepare_data(config)

    def check(free: int, where: Path = tmp_path / "other") -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, free))
        check_features(config, where, dataset, tiny_net(), SIDE, trainings)

    check(size)
    with pytest.raises(RunError, match=r"the features of the frozen part need 0\.00 GB in .* fewer train\."):
        check(size - 1)
    check(0, made.folder)  # they are there
    monkeypatch.setattr("coterie.pipeline.check_space", lambda *_: None)
    with pytest.raises(RunError, match="the features of the frozen part need"):
        run(config)
    assert not (tmp_path / "other" / "baseline").exists()


def test_a_changed_baseline_trains_what_starts_from_it_anew(run_copy: Run, tmp_path: Path) -> None:
    before = run(config_of(run_copy, tmp_path / "new", *FROZEN))
    hashes = {training.name: training.weights_sha256 for training in RunFolder(before.folder).trainings()}
    run(config_of(run_copy, tmp_path / "new", *FROZEN, "baseline.lr=0.02"), update=True)
    after = {training.name: training.weights_sha256 for training in RunFolder(before.folder).trainings()}
    assert all(hashes[name] != after[name] for name in hashes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("model=test_resnet", "train.frozen=backbone.layer1"),
            r"baseline\.frozen=.* would freeze random weights",
        ),
        ((*FROZEN, "teacher.frozen=nrom"), r"frozen=nrom: .* did you mean 'norm'"),
        ((*FROZEN, "teacher.frozen=head"), r"teacher\.frozen=head: nothing behind it is left to learn"),
        ((*FROZEN, "teacher.shrink=16"), r"teacher\.frozen and teacher\.shrink do not go together"),
    ],
)
def test_what_cannot_be_frozen_is_said_before_any_training(
    run_copy: Run, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(config_of(run_copy, tmp_path / "new", *words))
    assert not (tmp_path / "new" / "baseline").exists()


def test_trainings_whose_frozen_parts_differ_are_refused(run_copy: Run, tmp_path: Path) -> None:
    words = ("baseline.frozen=norm", "teacher.frozen=norm", "together=5", "student.epochs=1")
    with pytest.raises(ConfigError, match=r"frozen=norm: the trainings start from different weights"):
        run(config_of(run_copy, tmp_path / "new", *words))


def test_teachers_may_look_at_smaller_images(run_copy: Run, tmp_path: Path) -> None:
    words = ("model=squeezenet", "model.image_size=32", "teacher.shrink=24", "train.epochs=1")
    made = run(config_of(run_copy, tmp_path / "new", *words))
    teacher = made.predictor(TEACHERS[0])
    assert teacher.checkpoint.architecture["shrink"] == 24
    assert made.student.checkpoint.architecture["shrink"] is None
    images = torch.rand(2, 3, 32, 32)
    smaller = torch.nn.functional.interpolate(images, size=(24, 24), mode="bilinear", antialias=True)
    with torch.no_grad():
        assert torch.equal(teacher.model(images), teacher.model(smaller))
        assert not torch.equal(made.student.model(images), made.student.model(smaller))
    with pytest.raises(ConfigError, match="shrink does not reach your own model"):
        run(config_of(run_copy, tmp_path / "own", "teacher.shrink=16"))
