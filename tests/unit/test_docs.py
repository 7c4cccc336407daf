"""What the documentation tells users to type exists, and what exists is in the documentation."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import command_docs
import error_docs
import pytest
import settings_page
import website
from pydantic_settings import BaseSettings

from gradcam_queue import Client
from producer.jobs.model.settings import Connections
from worker.settings import WorkerSettings

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]}
#: What was true of an earlier release may be told of it.
CURRENT = {name: text for name, text in PAGES.items() if name != "CHANGELOG.md"}
COMMANDS = dict(command_docs.commands())
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
#: Options in the docs that are those of other programs.
OTHERS = {"--strict", "--hook-type", "--index-url", "--build-arg", "--label", "--scale"}
#: Packages of ours.
OURS = {"gradcam_queue", "producer", "worker", "deploy"}
#: What ends a command of ours in a shell, or in a row of alternatives.
_END = {"|", "||", "&&", ";", "#", ">", ">>", "2>", "…"}


def code_of(text: str) -> Iterator[str]:
    """The lines of blocks of code, and what stands between backticks."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from block.replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`([^`]+)`", prose):
        yield span.replace("\\|", "|").replace("\n", " ")


def words_of(line: str) -> list[str]:
    words = shlex.shlex(line, posix=True, punctuation_chars="|&;>")
    words.whitespace_split, words.commenters = True, "#"
    try:
        return list(words)
    except ValueError:  # an apostrophe: prose
        return line.split()


def typed(line: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of ours in a line, and what stands behind each."""
    words = words_of(line)
    for at, word in enumerate(words):
        if word not in command_docs.ROOTS or (at and "=" not in words[at - 1] and words[at - 1] not in {"$", *_END}):
            continue
        end = next((n for n in range(at, len(words)) if words[n] in _END), len(words))
        yield word, words[at + 1 : end]


def problems_of(line: str) -> Iterator[str]:
    for name, words in typed(line):
        root = COMMANDS[name]
        found = f"{name} {words[0]}" if words and words[0][0] not in "-[" else name
        if found != name and isinstance(root, click.Group) and found not in COMMANDS:
            yield f"{line!r}: there is no `{found}`"
            continue
        known = command_docs.options_of(COMMANDS[found])
        for word in words:
            option = word.split("=", 1)[0]
            if option.startswith("--") and option not in known:
                yield f"{line!r}: `{found}` has no {option}"


@pytest.mark.parametrize("page", sorted(CURRENT))
def test_commands_of_the_documentation_exist(page: str) -> None:
    assert [problem for line in code_of(CURRENT[page]) for problem in problems_of(line)] == []


def test_commands_that_do_not_exist_are_found() -> None:
    """The test above can fail: on verbs, on options, behind variables and pipes."""
    wrong = ["gradcam explain x", "gradcam status JOB --wacht", "A=b gradcam submit --outptus cam", "x | gradcam lost"]
    assert all(list(problems_of(line)) for line in wrong)
    right = [
        "gradcam submit - --name x",
        "gradcam-worker --devices cpu",
        "gradcam status JOB | jq --raw",
        "the gradcam x",
    ]
    assert not any(list(problems_of(line)) for line in right)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_examples_of_the_help_exist(name: str) -> None:
    command = COMMANDS[name]
    lines = command.get_help(click.Context(command, info_name=name)).splitlines()
    assert [problem for line in lines for problem in problems_of(line.strip())] == []


def blocks_of(text: str, language: str) -> list[str]:
    return [
        textwrap.dedent(block)
        for block in re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    ]


#: By page and number, so that a failure says which.
PROGRAMS = [
    pytest.param(block, id=f"{page}-{number}")
    for page, text in sorted(CURRENT.items())
    for number, block in enumerate(blocks_of(text, "python"), 1)
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_of_the_documentation_use_what_is_there(program: str) -> None:
    """They are Python; what they import of ours exists, and what they call of the client; so do commands in texts."""
    parsed = ast.parse(program)
    for node in ast.walk(parsed):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert list(problems_of(node.value)) == []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = node.func
            if isinstance(called.value, ast.Name) and called.value.id == "client":
                assert not faults_of_call(called.attr, {keyword.arg for keyword in node.keywords if keyword.arg})


def faults_of_call(verb: str, keywords: set[str]) -> set[str]:
    """What `client.verb(keyword=…)` names that is not there."""
    method = getattr(Client, verb, None)
    if method is None:
        return {verb}
    known = inspect.signature(method).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    return set() if takes_all else keywords - set(known)


def test_programs_that_use_what_is_not_there_are_found() -> None:
    assert len(PROGRAMS) > 8
    assert faults_of_call("explain", set()) == {"explain"}
    assert faults_of_call("wait", {"timeout", "timeout_s"}) == {"timeout"}
    assert list(problems_of("gradcam wait audit --until 6h || [ $? -eq 1 ]"))


@pytest.mark.parametrize("page", sorted(CURRENT))
def test_a_shell_reads_the_commands_of_the_documentation(page: str) -> None:
    for block in blocks_of(CURRENT[page], "sh"):
        ended = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, ""), block


def test_options_that_stand_alone_exist() -> None:
    known = {option for command in COMMANDS.values() for option in command_docs.options_of(command)} | OTHERS
    alone = {
        (page, span.split()[0].split("=")[0].rstrip(","))
        for page, text in CURRENT.items()
        for span in code_of(text)
        if span.startswith("--")
    }
    assert {(page, option) for page, option in alone if option not in known} == set()


def test_every_command_and_option_is_on_the_page_that_help_makes() -> None:
    """`python tests/support/command_docs.py > docs/commands.md` brings it up to date."""
    page = PAGES["docs/commands.md"]
    assert page == command_docs.page()
    sections = dict(re.findall(r"^## `([^`]+)`\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    assert set(sections) == set(COMMANDS)
    for name, command in COMMANDS.items():
        told = set(re.findall(r"`(--[a-z-]+)`", "\n".join(re.findall(r"^\| (.*?) \|", sections[name], re.MULTILINE))))
        assert told == {option for option in command_docs.options_of(command) if option.startswith("--")} - {"--help"}


def settings() -> set[str]:
    models: tuple[type[BaseSettings], ...] = (Connections, WorkerSettings)
    return {f"{model.model_config['env_prefix']}{name}".upper() for model in models for name in model.model_fields}


def test_every_setting_is_in_the_tables_of_the_documentation_as_the_code_has_it() -> None:
    """`make docs` brings them up to date."""
    assert settings_page.renewed() == PAGES["docs/operations.md"]
    rows = re.findall(r"^\| (`GRADCAM_.*?) \|", PAGES["docs/operations.md"], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(GRADCAM_\w+)`", row)} == settings()


@pytest.mark.parametrize("page", sorted(CURRENT))
def test_settings_of_the_documentation_exist(page: str) -> None:
    tests = {name for path in ROOT.glob("tests/**/*.py") for name in re.findall(r"GRADCAM_TEST_\w+", path.read_text())}
    told = set(re.findall(r"\bGRADCAM_[A-Z0-9_]*[A-Z0-9](?![A-Z0-9_]*\*)", CURRENT[page]))
    files = {f"{name}_FILE" for name in settings()}
    assert told <= settings() | files | tests | {"GRADCAM_WORKER", "GRADCAM_S3"}


def test_every_target_is_in_the_documentation_and_those_there_exist() -> None:
    explained = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    assert explained == TARGETS
    told = {
        target
        for text in CURRENT.values()
        for line in code_of(text)
        for words in re.findall(r"^(?:\$ )?make((?: [a-z-]+)+)", line)
        for target in words.split()
    }
    assert told - {"help"} == TARGETS - {"help"}


def test_many_commands_are_looked_at() -> None:
    assert sum(len(list(typed(line))) for text in CURRENT.values() for line in code_of(text)) > 100


@pytest.mark.parametrize("name", sorted(PAGES))
def test_files_that_the_documentation_names_exist(name: str) -> None:
    found = re.findall(r"`((?:producer|worker|deploy|tests|gradcam_queue)/[\w/.]+?)`", PAGES[name])
    assert [path for path in found if not (ROOT / path).exists()] == []


def test_an_image_passes_at_most_fifteen_files() -> None:
    rows = re.findall(r"^\| (\d+) \| `[\w/.]+`", PAGES["docs/follow-an-image.md"], re.MULTILINE)
    assert [int(number) for number in rows] == list(range(1, len(rows) + 1))
    assert len(rows) <= 15


def anchors_of(text: str) -> set[str]:
    """What a page's headings are called in links, as GitHub makes it of them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file_or_a_heading_that_is_there(page: str) -> None:
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (folder / name) if name else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target.read_text()), link


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


def test_what_links_promise_of_redis_stands_under_its_heading() -> None:
    """A merge once moved its parameters and its rights under the object store, where no link led."""
    page = PAGES["docs/operations.md"]
    promised = ("ACL SETUSER", "ssl_ca_certs", "GRADCAM_ALLOW_EVICTION", "maxmemory-policy noeviction")
    assert [words for words in promised if words not in section(page, "Redis")] == []
    assert "Redis" not in section(page, "The object store")


@pytest.mark.parametrize("page", sorted(PAGES))
def test_no_paragraph_goes_on_with_a_list_that_stands_before_it(page: str) -> None:
    """Markdown takes a paragraph that follows a list without an empty line for a part of the last item."""
    prose = re.sub(r"^ *```.*?^ *```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", prose)]
    item = re.compile(r"\s*(?:[-*]|\d+\.) ")
    glued = [
        line
        for block in blocks
        if item.match(block[0] if block else "")
        for line in block
        if not item.match(line) and not line.startswith(" ")
    ]
    assert glued == []


def test_every_sentence_of_an_error_is_on_the_page_of_errors() -> None:
    """`python tests/support/error_docs.py > docs/troubleshooting.md` brings it up to date."""
    assert error_docs.page() == PAGES["docs/troubleshooting.md"]
    assert set(error_docs.MEANING) == error_docs.classes()
    assert sum(map(len, error_docs.sentences().values())) > 150


def test_the_website_is_built_of_every_page_without_a_broken_link() -> None:
    command = [sys.executable, str(ROOT / "tests" / "support" / "website.py")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")
    made = {path.stem for path in (ROOT / "build" / "site").glob("*.html")}
    assert made >= {path.stem for path in ROOT.glob("docs/*.md")} | {"index", "CHANGELOG", "SECURITY"}


def test_a_broken_link_ends_the_building_of_the_website(monkeypatch: pytest.MonkeyPatch) -> None:
    def staged(folder: Path) -> None:
        stage(folder)
        (folder / "recipes.md").write_text("[nowhere](nowhere.md)")

    stage = website.stage
    monkeypatch.setattr(website, "stage", staged)
    assert website.main() != 0
