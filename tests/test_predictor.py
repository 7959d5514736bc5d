"""A trained classifier at work: one score for a picture however it comes, and errors that name the file."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coterie.errors import CheckpointError, ConfigError, DataError
from coterie.pipeline import Run
from coterie.predictor import BATCHES_AHEAD, Predictor, find_checkpoint, find_images, load_classifier
from coterie.runfolder import MANIFEST_FILE
from tests.tiny import Net, make_dataset


@pytest.fixture
def predictor(finished_run: Run) -> Predictor:
    return load_classifier(finished_run.folder, Net)


@pytest.fixture(scope="session")
def photos(finished_run: Run) -> list[Path]:
    folder = Path(finished_run.config.data.source).parent
    return [folder / f"{number:03d}.png" for number in range(48, 53)]


def test_paths_pictures_and_arrays_give_the_same_scores(predictor: Predictor, photos: list[Path]) -> None:
    from_paths = predictor.scores(photos)
    assert from_paths.shape == (5, 4)
    pictures = [Image.open(path) for path in photos]
    arrays = [np.array(picture) for picture in pictures]
    assert predictor.scores(pictures).tolist() == from_paths.tolist()
    assert predictor.scores(arrays).tolist() == from_paths.tolist()
    assert predictor.scores([str(path) for path in photos]).tolist() == from_paths.tolist()


def test_scores_do_not_depend_on_the_batch_size(predictor: Predictor, photos: list[Path]) -> None:
    np.testing.assert_allclose(predictor.scores(photos, batch_size=2), predictor.scores(photos), rtol=1e-5)


def test_no_pictures_give_no_scores(predictor: Predictor) -> None:
    assert predictor.scores([]).shape == (0, 4)
    assert predictor.predict([]) == []


def test_a_picture_of_another_size_is_squashed(predictor: Predictor, photos: list[Path]) -> None:
    # every pixel four times is the same picture again once it is resized
    larger = np.array(Image.open(photos[0])).repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_allclose(predictor.scores([larger]), predictor.scores(photos[:1]), atol=0.05)


def test_labels_are_those_above_the_threshold_best_first(predictor: Predictor, photos: list[Path]) -> None:
    for prediction in predictor.predict(photos, threshold=0.3):
        assert tuple(prediction.scores) == predictor.class_names
        above = [(score, label) for label, score in prediction.scores.items() if score > 0.3]
        assert prediction.labels == tuple(label for _, label in sorted(above, reverse=True))
    everything = predictor.predict(photos, threshold=0)
    assert all(len(prediction.labels) == 4 for prediction in everything)
    assert [prediction.image for prediction in everything] == [str(path) for path in photos]


def test_the_threshold_is_the_checkpoints_unless_given(predictor: Predictor, photos: list[Path]) -> None:
    assert predictor.checkpoint.threshold == 0.5
    assert predictor.predict(photos) == predictor.predict(photos, threshold=0.5)


def test_a_picture_that_cannot_be_read_is_named(
    predictor: Predictor, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    mixed = [photos[0], tmp_path / "broken.jpg", photos[1]]
    with pytest.raises(DataError, match=r"broken.jpg cannot be read: it is not a picture of a known format"):
        predictor.predict(mixed)
    good, broken, also_good = predictor.stream(mixed)
    assert (broken.image, broken.scores, broken.labels) == (str(mixed[1]), {}, ())
    assert broken.error == "it is not a picture of a known format"
    assert [good, also_good] == predictor.predict([photos[0], photos[1]])


def test_an_array_of_pictures_and_pictures_one_by_one_are_taken(
    predictor: Predictor, photos: list[Path]
) -> None:
    batch = np.stack([np.array(Image.open(path)) for path in photos])
    expected = predictor.scores(photos).tolist()
    assert predictor.scores(batch).tolist() == expected
    assert predictor.scores(iter(photos)).tolist() == expected
    names = [prediction.image for prediction in predictor.predict(batch)]
    assert names == [f"image {number}" for number in range(5)]


def test_an_open_picture_is_turned_and_scaled_as_its_file_is(predictor: Predictor, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    turned = Image.fromarray(rng.integers(0, 255, (8, 24, 3), dtype=np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    deep = Image.fromarray(rng.integers(0, 65535, (20, 20), dtype=np.uint16))
    deep.save(tmp_path / "deep.png")
    paths = [tmp_path / "turned.png", tmp_path / "deep.png"]
    opened = [Image.open(path) for path in paths]
    assert predictor.scores(opened).tolist() == predictor.scores(paths).tolist()
    assert opened[0].size == (24, 8)  # of the caller, as it was


def test_an_open_picture_that_breaks_off_is_named(predictor: Predictor, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.bmp")
    (tmp_path / "half.bmp").write_bytes((tmp_path / "whole.bmp").read_bytes()[:5000])
    with pytest.raises(DataError, match=r"half\.bmp cannot be read: .*truncated"):
        predictor.scores([Image.open(tmp_path / "half.bmp")])


def test_few_pictures_are_read_ahead_and_threads_end(predictor: Predictor, photos: list[Path]) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Path]:
        for number in itertools.count():
            taken.append(number)
            yield photos[number % 5]

    stream = predictor.stream(endless(), batch_size=4)
    for _ in range(9):
        next(stream)
    assert len(taken) <= (3 + BATCHES_AHEAD) * 4
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_an_array_that_is_no_picture_is_refused(predictor: Predictor) -> None:
    with pytest.raises(DataError, match=r"must be uint8 \[H, W, 3\] \(RGB\), got float32 \[4, 4, 3\]"):
        predictor.scores([np.zeros((4, 4, 3), np.float32)])


def test_a_run_or_one_of_its_checkpoints_can_be_loaded(finished_run: Run, photos: list[Path]) -> None:
    student = load_classifier(finished_run.folder / "student", Net)
    assert student.scores(photos).tolist() == finished_run.student.scores(photos).tolist()
    assert load_classifier(str(finished_run.folder), Net).checkpoint.name == "student"
    assert finished_run.baseline.checkpoint.name == "baseline"
    teacher = finished_run.predictor("teachers/co-occurrence-0")
    assert teacher.scores(photos).shape == (5, len(teacher.class_names))


def test_a_model_of_your_own_needs_its_builder(finished_run: Run) -> None:
    with pytest.raises(CheckpointError, match=r"your own model tests\.tiny:Net.*--model module:function"):
        load_classifier(finished_run.folder)


def test_a_run_that_is_not_there_or_not_finished_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"there is no run or checkpoint at {tmp_path}/nothing"):
        load_classifier(tmp_path / "nothing")
    (tmp_path / MANIFEST_FILE).write_text(json.dumps({}))
    with pytest.raises(
        CheckpointError, match=r"is not finished, it has no student yet; the same `coterie run`"
    ):
        load_classifier(tmp_path)
    with pytest.raises(CheckpointError, match="it has no baseline yet"):
        find_checkpoint(tmp_path, "baseline")


def test_a_device_that_is_not_there_is_refused(finished_run: Run) -> None:
    with pytest.raises(ConfigError, match="device warp cannot be used"):
        load_classifier(finished_run.folder, Net, device="warp")


def test_pictures_are_found_below_folders_by_name(tmp_path: Path) -> None:
    dataset = make_dataset()
    (tmp_path / "deeper").mkdir()
    for name in ("b.JPG", "a.png", "deeper/c.webp"):
        dataset.load_image(0).save(tmp_path / name)
    for name in ("notes.txt", "paper.pdf", "film.mpg"):
        (tmp_path / name).write_text("no picture")
    names = [str(path.relative_to(tmp_path)) for path in find_images([tmp_path])]
    assert names == ["a.png", "b.JPG", "deeper/c.webp"]
    assert find_images([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]  # as asked for


def test_paths_without_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no picture or folder .*missing\.jpg"):
        find_images([tmp_path / "missing.jpg"])
    with pytest.raises(DataError, match="holds no picture"):
        find_images([tmp_path])
