"""The package's page, and the files that say what a release is: they agree with the code and with each other."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import resclip
from resclip.methods.catalogue import RESCLIP_CITATION

ROOT = Path(__file__).parents[1]
TARGET = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def setup_arguments(monkeypatch: pytest.MonkeyPatch, repository: str) -> dict[str, Any]:
    """What setup.py hands to setuptools."""
    given: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: given.update(options))
    monkeypatch.setenv("RESCLIP_REPOSITORY", repository)
    given["described"] = runpy.run_path(str(ROOT / "setup.py"))["described"]
    return given


@pytest.mark.parametrize("repository", ["", "https://example.org/resclip/"])
def test_the_page_of_the_package_has_no_relative_link(
    monkeypatch: pytest.MonkeyPatch, repository: str
) -> None:
    given = setup_arguments(monkeypatch, repository)
    text = given["long_description"]
    targets = TARGET.findall(FENCED.sub("", text))
    assert targets
    assert all(re.match(r"https?://|#", target) for target in targets)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert FENCED.findall(text) == FENCED.findall(readme)
    version = f"v{resclip.__version__}"
    inside = [target for target in targets if target.startswith("https://example.org")]
    assert bool(inside) == bool(repository)
    for target in inside:
        kind, at, path = target.removeprefix("https://example.org/resclip/").split("/", 2)
        assert at == version
        assert kind == ("raw" if path.endswith(".png") else "blob")
        assert (ROOT / path).exists(), path
    assert ("![" in text) == bool(repository)
    assert all(url.startswith("https://") for url in given["project_urls"].values())
    assert "Paper" in given["project_urls"]
    assert ("Source" in given["project_urls"]) == bool(repository)


def test_links_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    described = setup_arguments(monkeypatch, "")["described"]
    text = "![two\nlines](a.png) [docs](docs/a.md#b) [out](https://a) [here](#b) `f[x](y)`\n"
    version = f"v{resclip.__version__}"
    assert described(text, "") == " docs [out](https://a) [here](#b) `f[x](y)`\n"
    assert described(text, "https://r") == (
        f"![two\nlines](https://r/raw/{version}/a.png) [docs](https://r/blob/{version}/docs/a.md#b) "
        "[out](https://a) [here](#b) `f[x](y)`\n"
    )


def test_the_citation_names_this_version_and_the_paper() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == resclip.__version__
    assert cited["license"] == "Apache-2.0"
    paper = cited["preferred-citation"]
    assert paper["title"] in RESCLIP_CITATION
    assert RESCLIP_CITATION.startswith(paper["authors"][0]["family-names"])
    assert str(paper["year"]) in RESCLIP_CITATION
    assert paper["identifiers"][0]["value"].removeprefix("arXiv:") in paper["url"]


def test_the_changelog_has_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (Unreleased|\d+\.\d+\.\d+)", text, re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert resclip.__version__ in versions
    parts = set(re.findall(r"^### (\w+)$", text, re.MULTILINE))
    assert parts <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("path", ["Dockerfile", "docker/cuda.Dockerfile"])
def test_a_container_gets_what_setup_needs(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    copied = {
        word for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for word in line.split()
    }
    needed = {"setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"}
    assert needed | {"resclip", "resclip_kernels"} <= copied
    assert all((ROOT / name).exists() for name in copied - {"./"})
    kept = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert copied - {"./"} <= kept
    for command in re.findall(r"^RUN ((?:.*\\\n)*.*)$", text, re.MULTILINE):
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)
    assert "not been built" in text


def test_the_workflow_runs_what_a_change_has_to_pass() -> None:
    (workflow,) = (ROOT / ".github/workflows").glob("*.yml")
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert any(step.get("run") == "bash .ci/run" for step in steps)
    assert (ROOT / ".ci/run").is_file()
    (python,) = [step["with"]["python-version"] for step in steps if "with" in step]
    assert python == "3.11"


def test_links_between_pages_lead_somewhere() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
    for page in [*pages, *(ROOT / "docs").glob("*.md")]:
        for target in TARGET.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
            if not re.match(r"[a-z]+:|#", target):
                assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"
