"""doctor: each check on machines that are well and that are not."""

import urllib.error
from importlib import metadata
from types import SimpleNamespace

import pytest

from lite_align.train import doctor


def test_examine_answers_for_this_machine(tmp_path):
    checks = doctor.examine(tmp_path)
    assert {check.label for check in checks} >= {
        "python",
        "library",
        "gpu",
        "4-bit",
        "disk",
        "hub cache",
        "hub",
    }
    assert all(check.remedy for check in checks if check.grade in ("mend", "stop"))


def test_a_real_nf4_layer_has_right_gradients():
    assert doctor.nf4_error("cpu") < 1e-3


def test_wrong_gradients_and_broken_builds_are_told(monkeypatch):
    monkeypatch.setattr(doctor, "nf4_error", lambda device: 0.5)
    assert doctor.four_bit().grade == "mend"
    monkeypatch.setattr(doctor, "nf4_error", lambda device: float("nan"))
    assert doctor.four_bit().grade == "mend"

    def broken(device):
        raise RuntimeError("no kernel image\nmore")

    monkeypatch.setattr(doctor, "nf4_error", broken)
    assert "RuntimeError: no kernel image" in doctor.four_bit().text


def test_libraries_are_compared_with_the_tested_ranges():
    def version(name: str) -> str:
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return "2.99.0" if name == "torch" else "5.0"

    checks = doctor.libraries(lambda name: ["torch<2.14,>=2.11", "transformers>=4"], version)
    by_name = {check.text.split()[0]: check for check in checks}
    assert by_name["torch"].grade == "mend"
    assert by_name["torch"].remedy == 'pip install "torch<2.14,>=2.11"'
    assert by_name["transformers"].grade == "ok"
    assert by_name["peft"].grade == "stop"


def test_a_driver_without_a_working_torch_is_told(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.gpus(None)[0].grade == "note"
    (check,) = doctor.gpus("555.1")
    assert check.grade == "mend"
    assert "driver 555.1 is there" in check.text


@pytest.mark.parametrize(("major", "free", "grade"), [(9, 20e9, "ok"), (9, 5e9, "mend"), (6, 20e9, "mend")])
def test_gpus_are_described(monkeypatch, major, free, grade):
    import torch

    card = SimpleNamespace(name="Card", major=major, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (int(free), int(24e9)))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    (check,) = doctor.gpus("555.1")
    assert check.grade == grade
    assert f"Card · {free / 1e9:.1f} of 24.0 GB free" in check.text


def test_disk_and_hub(tmp_path, monkeypatch):
    assert doctor.disk("disk", tmp_path / "not" / "there").grade == "ok"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    assert doctor.disk("disk", tmp_path).grade == "mend"
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert doctor.disk("disk", tmp_path).grade == "stop"

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in doctor.hub().text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for error in (urllib.error.URLError("no route"), TimeoutError("slow")):

        def fail(request, timeout, error=error):
            raise error

        monkeypatch.setattr(doctor.urllib.request, "urlopen", fail)
        check = doctor.hub()
        assert check.grade == "note"
        assert "cannot be reached" in check.text
    monkeypatch.setattr(
        doctor.urllib.request, "urlopen", lambda r, timeout: SimpleNamespace(close=lambda: None)
    )
    assert doctor.hub().grade == "ok"
