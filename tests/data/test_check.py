"""Unreadable pictures are found before a training, all at once."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coterie.data.check import check_images
from coterie.data.dataset import MultiLabelDataset
from coterie.errors import DataError


def dataset(folder: Path, names: list[str]) -> MultiLabelDataset:
    n = len(names)
    return MultiLabelDataset(
        images=[folder / name for name in names],
        targets=np.arange(2 * n, dtype=np.int8).reshape(n, 2) % 2,
        class_names=("cat", "dog"),
        splits=np.array(["train"] * n),
        image_ids=tuple(names),
        name="toy",
    )


def picture(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def damaged(tmp_path: Path) -> MultiLabelDataset:
    """Two good pictures between five that cannot be read."""
    for name in ("good.jpg", "fine.png", "cut.jpg", "cut.png"):
        picture(tmp_path / name)
    for name in ("cut.jpg", "cut.png"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("404 not found")
    (tmp_path / "folder.jpg").mkdir()
    names = ["good.jpg", "cut.jpg", "empty.jpg", "text.jpg", "folder.jpg", "cut.png", "gone.jpg", "fine.png"]
    return dataset(tmp_path, names)


def test_readable_pictures_pass_unchanged(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    data = dataset(tmp_path, ["a.png"])
    assert check_images(data) == (data, [])


def test_arrays_are_decoded_already() -> None:
    data = MultiLabelDataset(
        images=np.zeros((1, 2, 2, 3), np.uint8),
        targets=np.ones((1, 1), np.int8),
        class_names=("cat",),
        splits=np.array(["train"]),
        image_ids=("a",),
    )
    assert check_images(data) == (data, [])


def test_skip_drops_each_unreadable_picture_with_its_reason(damaged: MultiLabelDataset) -> None:
    kept, reports = check_images(damaged, on_corrupt="skip")
    reasons = dict(reports)
    assert list(reasons) == ["cut.jpg", "empty.jpg", "text.jpg", "folder.jpg", "cut.png", "gone.jpg"]
    assert "truncated" in reasons["cut.jpg"]
    assert "truncated" in reasons["cut.png"]
    assert reasons["empty.jpg"] == "the file is empty"
    assert reasons["text.jpg"] == "it is not a picture of a known format"
    assert reasons["folder.jpg"] == "it is a folder"
    assert reasons["gone.jpg"] == "there is no such file"
    assert kept.image_ids == ("good.jpg", "fine.png")
    assert kept.targets.tolist() == damaged.targets[[0, 7]].tolist()
    assert kept.notes == (
        "6 of 8 images cannot be read and are left out: "
        "'cut.jpg', 'empty.jpg', 'text.jpg', 'folder.jpg', 'cut.png' and 1 more",
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error"),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), "Stale file handle"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "Permission denied"),
        (MemoryError(), "memory has run out"),
    ],
    ids=str,
)
def test_skip_drops_no_picture_that_the_machine_alone_cannot_read(
    damaged: MultiLabelDataset, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    opened = Image.open

    def failing(file: Path, **named: object) -> Image.Image:
        if file.name == "fine.png":
            raise error
        return opened(file, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", failing)
    with pytest.raises(DataError, match=rf"fine\.png cannot be read: {reason}; the picture may be sound"):
        check_images(damaged, on_corrupt="skip")


def test_an_error_counts_all_and_names_the_first_with_their_reasons(damaged: MultiLabelDataset) -> None:
    with pytest.raises(DataError) as caught:
        check_images(damaged, on_corrupt="error")
    message = str(caught.value)
    assert message.startswith("6 of 8 images of toy cannot be read: 'cut.jpg' (")
    assert "'empty.jpg' (the file is empty), 'text.jpg' (" in message
    assert message.endswith(" and 1 more; replace them, or leave them out with data.on_corrupt=skip")


def test_a_dataset_of_unreadable_pictures_only_is_an_error_under_skip_too(damaged: MultiLabelDataset) -> None:
    with pytest.raises(
        DataError, match=r"2 of 2 images of toy cannot be read: .* check that the files are pictures"
    ):
        check_images(damaged.subset(np.array([1, 2])), on_corrupt="skip")


def test_progress_counts_up_to_all_images(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    data = dataset(tmp_path, ["a.png"])
    many = MultiLabelDataset(
        images=list(data.images) * 100,
        targets=data.targets.repeat(100, axis=0),
        class_names=data.class_names,
        splits=data.splits.repeat(100),
        image_ids=tuple(map(str, range(100))),
    )
    calls: list[tuple[int, int]] = []
    check_images(many, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(32, 100), (64, 100), (96, 100), (100, 100)]


def test_of_many_images_some_are_looked_at_from_all_over(damaged: MultiLabelDataset) -> None:
    seen: list[int] = []
    with pytest.raises(DataError, match=r"3 of 8 images .*: 'empty\.jpg'.*'folder\.jpg'.*'gone\.jpg'"):
        check_images(damaged, progress=lambda done, _: seen.append(done), most=4)  # every second one
    assert seen == [4]
    assert check_images(damaged, most=1)[1] == []
