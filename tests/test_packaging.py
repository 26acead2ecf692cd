"""What is imported from where, and what a wheel holds: it must work without this directory."""

from __future__ import annotations

import email
import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import resclip

ROOT = Path(__file__).parents[1]
PACKAGES = ("resclip", "resclip_kernels")


def python(*arguments: str, path: Path = ROOT, cwd: Path | None = None) -> str:
    """Stdout of a fresh interpreter that finds the packages under `path`."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
        env=environment,
        timeout=300,
    ).stdout


def test_importing_resclip_loads_nothing_until_a_name_is_asked_for() -> None:
    code = (
        "import sys, resclip; heavy = ('torch', 'open_clip', 'numpy', 'PIL')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "resclip.Segmentation; print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    assert python("-c", code) == "[]\nFalse True\n"


def test_every_public_name_resolves_from_its_own_module() -> None:
    """Lazily: what a name brings is loaded when it is first used, whichever is first."""
    assert {*resclip.HOMES, "__version__"} == set(resclip.__all__)
    for name, module in resclip.HOMES.items():
        found = getattr(resclip, name)
        assert found is getattr(importlib.import_module(module), name)
        assert found.__module__ == module
        assert name in dir(resclip)
        assert name not in vars(resclip)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = resclip.no_such_name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that this directory stays as it is."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    for package in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, copy / package, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    python("-m", "pip", "wheel", *options, "--wheel-dir", str(folder), str(copy))
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_both_packages_but_for_the_training_and_nothing_else(wheel: Path) -> None:
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    training = {name for name in wanted if name.startswith("resclip/builtin/training/")}
    assert training
    wanted -= training
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in held if ".dist-info/" not in name} == wanted
    assert {f"{package}/py.typed" for package in PACKAGES} <= held


def test_the_wheel_s_description(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    folder = f"resclip-{resclip.__version__}.dist-info"
    fields = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
    assert fields["Name"] == "resclip"
    assert fields["Version"] == resclip.__version__
    assert set(fields["Requires-Python"].split(",")) == {">=3.10", "<3.14"}
    needed = [line for line in fields.get_all("Requires-Dist") or [] if "extra ==" not in line]
    assert any(line.startswith("torch") for line in needed)
    assert any(line.startswith("triton") and "Linux" in line for line in needed)
    assert b"resclip = resclip.cli:main" in archive.read(f"{folder}/entry_points.txt")
    assert any(name.endswith("LICENSE") for name in archive.namelist())


def test_the_wheel_alone_segments(wheel: Path, tmp_path: Path) -> None:
    """Every module can be imported, the kernels' without resclip, models or images; and the demo runs."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere.mkdir()
    code = (
        "import importlib, pkgutil, sys\n"
        "def load(package):\n"
        "    for module in pkgutil.walk_packages(package.__path__, f'{package.__name__}.'):\n"
        "        if not module.name.endswith('__main__'):\n"
        "            importlib.import_module(module.name)\n"
        "    print(package.__file__)\n"
        "import resclip_kernels; load(resclip_kernels)\n"
        "print([name for name in ('resclip', 'open_clip', 'PIL') if name in sys.modules])\n"
        "import resclip; load(resclip)\n"
        "sys.exit(resclip.cli.main(['demo', '--out', 'demo']))"
    )
    kernels, loaded, library, *shown = python("-c", code, path=site, cwd=elsewhere).splitlines()
    assert kernels.startswith(str(site))
    assert library.startswith(str(site))
    assert loaded == "[]"
    assert any("sky" in line for line in shown)
    assert {path.name for path in (elsewhere / "demo").iterdir()} == {"demo.png", "scene.png"}
