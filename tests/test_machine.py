"""What the machine is called and how much memory is used, on systems that say so in different ways."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from resclip.evaluation import distributed as machine


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        ("processor\t: 0\nmodel name\t: Fast CPU: 3 GHz \nflags: fpu\nmodel name\t: Other\n", "Fast CPU: 3 GHz"),
        ("processor\t: 0\nmodel name\t:\n", "arm"),  # as in some virtual machines
        ("processor\t: 0\n", "arm"),  # Linux on ARM names no model
        (None, "arm"),  # another system
    ],
)  # fmt: skip
def test_a_cpu_is_called_what_the_system_calls_it(
    facts: str | None, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    if facts is not None:
        path.write_text(facts)
    monkeypatch.setattr(machine, "CPU_FACTS", path)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm")
    assert machine.machine_name(torch.device("cpu")) == wanted


def test_memory_is_counted_in_bytes_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(sys, "platform", "darwin")
    there = machine.peak_memory(cpu)
    monkeypatch.setattr(sys, "platform", "linux")
    assert machine.peak_memory(cpu) == pytest.approx(1024 * there, rel=0.01)
    monkeypatch.setitem(sys.modules, "resource", None)
    assert machine.peak_memory(cpu) == 0
