"""What a person waits for: lists and help come without torch, and say the same as the libraries themselves."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import resclip_kernels.ops
from resclip.models import listing

HEAVY = ("torch", "open_clip", "timm", "triton", "transformers", "numpy", "PIL")


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["methods"], 0),
        (["models"], 0),
        (["--version"], 0),
        (["segment", "--help"], 0),
        (["segment", "a.png", "--classes", "sky", "--metod", "clip"], 2),
    ],
)
def test_lists_and_help_load_no_heavy_library(command: list[str], status: int) -> None:
    program = (
        "import sys\n"
        "from resclip.cli import main\n"
        f"status = main({command!r})\n"
        f"found = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print('loaded:', *found, 'status:', status, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert f"loaded: status: {status}" in done.stderr
    assert (done.stdout != "") == (status == 0)


def test_the_models_that_are_read_are_those_of_the_libraries() -> None:
    # In a process of its own: other tests register small models.
    program = (
        "from resclip.models import listing\n"
        "read, listed = listing.read_models(), listing.list_models()\n"
        "assert read == listed == listing.import_models()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_files_that_cannot_be_read_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of open_clip may keep its table in another way; the list is the same."""
    expected = listing.import_models()
    monkeypatch.delitem(sys.modules, "open_clip")
    monkeypatch.setattr(listing, "stands_alone", lambda statement: False)
    with pytest.raises(KeyError):
        listing.read_models()
    monkeypatch.setattr(listing, "import_models", lambda: expected)
    assert listing.list_models() is expected


def test_the_kernels_names_load_on_first_use() -> None:
    assert sorted(resclip_kernels.HOME_OF) == sorted(resclip_kernels.__all__)
    assert all(getattr(resclip_kernels, name) is not None for name in resclip_kernels.__all__)
    # Else a module would hide what it defines, once something has imported it.
    modules = {module.name for module in pkgutil.iter_modules(resclip_kernels.__path__)}
    assert not modules & set(resclip_kernels.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        resclip_kernels.no_such_name  # noqa: B018


def test_all_ops_are_known_to_who_asks_for_their_trials() -> None:
    program = "from resclip_kernels import TRIALS; print(*sorted(TRIALS))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    folders = [module.name for module in pkgutil.iter_modules(resclip_kernels.ops.__path__)]
    assert set(folders) <= set(done.stdout.split())
