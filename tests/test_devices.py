"""Where trainings compute, and in which precision they are fast there."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

import pytest
import torch

from coterie.config import CONFIG_FILE, Config, load_config, settled
from coterie.devices import device_type, low_precisions


def cpu_with(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> None:
    known = MappingProxyType(capabilities)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)


def gpu_here(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool = False, ampere: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: ampere)


def test_low_precision_is_that_of_the_run_and_what_the_cpu_has_in_hardware(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu_with(monkeypatch, avx512_bf16=True)
    assert low_precisions("cpu", "fp32") == low_precisions("cpu", "bf16") == [torch.bfloat16]
    cpu_with(monkeypatch, avx512_bf16=False, avx2=True)
    assert low_precisions("cpu", "fp32") == []
    assert low_precisions("cpu", "bf16") == [torch.bfloat16]
    assert low_precisions("mps", "fp16") == [torch.float16]


@pytest.mark.parametrize(
    ("ampere", "expected"), [(True, [torch.bfloat16, torch.float16]), (False, [torch.float16])]
)
def test_a_gpu_has_bf16_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, ampere: bool, expected: list[torch.dtype]
) -> None:
    gpu_here(monkeypatch, cuda=True, ampere=ampere)
    assert low_precisions("cuda") == expected


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_a_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    gpu_here(monkeypatch, cuda, mps)
    assert device_type("auto") == expected
    assert device_type("cpu") == "cpu"


@pytest.mark.parametrize(
    ("device", "ampere", "bf16_on_cpu", "expected"),
    [
        ("cuda", True, False, "bf16"),
        ("cuda", False, True, "fp16"),
        ("cpu", True, True, "bf16"),
        ("cpu", True, False, "fp32"),
        ("mps", True, True, "fp32"),
    ],
)
def test_auto_precision_is_settled_by_the_device_when_the_settings_are_read(
    monkeypatch: pytest.MonkeyPatch, device: str, ampere: bool, bf16_on_cpu: bool, expected: str
) -> None:
    gpu_here(monkeypatch, cuda=device == "cuda", mps=device == "mps", ampere=ampere)
    cpu_with(monkeypatch, avx512_bf16=bf16_on_cpu)
    assert load_config([f"device={device}", "precision=auto"]).precision == expected
    assert (
        load_config([f"device={'cpu' if device == 'cpu' else 'auto'}", "precision=auto"]).precision
        == expected
    )


def test_a_precision_that_is_named_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, avx512_bf16=True)
    assert load_config(["device=cpu"]).precision == "fp32"
    cpu_with(monkeypatch)
    assert load_config(["device=cpu", "precision=bf16"]).precision == "bf16"


def test_a_run_goes_on_in_its_precision_where_auto_is_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["device=cpu", "precision=auto", f"out={tmp_path}"]
    cpu_with(monkeypatch, avx512_bf16=True)
    (tmp_path / CONFIG_FILE).write_text(load_config(words).to_yaml())
    cpu_with(monkeypatch)
    assert load_config(words).precision == "bf16"
    assert (
        load_config([*words, "seed=1"]).precision == "bf16"
    )  # what else changed is said where it is taken up
    assert load_config([*words, f"out={tmp_path / 'other'}"]).precision == "fp32"
    (tmp_path / CONFIG_FILE).write_text("precision: [")
    assert load_config(words).precision == "fp32"


def test_nodes_of_a_cluster_may_be_unlike_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_with(monkeypatch, avx512_bf16=True)
    assert load_config(["device=cpu", "precision=auto", "engine=ray"]).precision == "fp32"


def test_a_config_made_without_words_is_settled_by_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpu_with(monkeypatch, amx_bf16=True)
    config = Config(precision="auto", device="cpu", out=tmp_path)
    assert settled(config).precision == "bf16"
    cpu_with(monkeypatch, bf16=True)  # ARM's
    assert settled(config).precision == "bf16"
