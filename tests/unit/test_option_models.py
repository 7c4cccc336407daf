"""An option is defined once: command line, Python client, docs and the worker's tables follow the models."""

from __future__ import annotations

import inspect
import re
from typing import get_args

import options_page
import pytest

from producer.client.client import Client
from producer.commands.submit import submit
from producer.input.read_options import ReadOptions
from producer.jobs.model import spec
from producer.jobs.model.errors import UsageError
from producer.jobs.model.options import parameters
from producer.jobs.model.spec import JobSpec
from producer.jobs.model.typed_spec import make_spec
from producer.submission.options import SubmitOptions
from worker.device.batches import PRECISIONS
from worker.engine.methods import METHODS
from worker.pictures.geometry import FILTERS, FITS
from worker.pictures.render import OUTPUTS

TYPED = parameters(JobSpec) | parameters(SubmitOptions)
ALL = TYPED | parameters(ReadOptions)


def test_the_client_takes_what_the_models_define_with_the_same_defaults() -> None:
    signature = inspect.signature(Client.submit).parameters
    own = {"self", "images", "reading", "progress", "waiting"}
    assert {name: each.default for name, each in signature.items() if name not in own} == {
        name: each.default for name, each in TYPED.items()
    }


def test_the_clients_docs_say_what_the_models_say() -> None:
    arguments = inspect.getdoc(Client.submit).partition("Args:\n")[2].partition("\n\nReturns:")[0]  # type: ignore[union-attr]
    told = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", arguments, re.MULTILINE))
    for name, each in TYPED.items():
        assert " ".join(told[name].split()) == each.sentence


def test_the_command_has_every_option_of_the_models() -> None:
    with submit.make_context("submit", ["x"]) as context:
        options = {option.name: option for option in submit.get_params(context)}
    own = {"source", "image_path", "bad_rows", "dry_run", "wait", "output_dir", "as_json", "_click_default_help"}
    assert options.keys() - own == ALL.keys()
    assert all(each.flag in options[name].opts for name, each in ALL.items())


def test_no_option_is_defined_twice() -> None:
    models = (JobSpec, SubmitOptions, ReadOptions)
    assert sum(len(parameters(model)) for model in models) == len(ALL)


def test_every_option_has_a_sentence_of_help() -> None:
    assert [name for name, each in ALL.items() if not each.help.endswith(".")] == []


def test_the_page_of_options_is_made_of_the_models() -> None:
    assert options_page.PAGE.read_text(encoding="utf-8") == options_page.page(), "run `make docs`"


@pytest.mark.parametrize(
    ("of_the_worker", "of_the_model"),
    [
        (METHODS, spec.Method),
        (PRECISIONS, spec.Precision),
        (FITS, spec.Fit),
        ([*FILTERS, "own"], spec.ResizeFilter),
        ((*OUTPUTS, spec.MASK), spec.Output),
    ],
)
def test_the_workers_tables_have_the_names_of_the_model(of_the_worker: object, of_the_model: object) -> None:
    assert sorted(of_the_worker) == sorted(get_args(of_the_model))  # type: ignore[call-overload]


@pytest.mark.parametrize("name", [name for name, each in parameters(JobSpec).items() if each.choices])
def test_what_is_none_of_the_choices_is_refused_with_all_of_them(name: str) -> None:
    each = TYPED[name]
    with pytest.raises(UsageError, match=f"{each.flag} must be ") as caught:
        make_spec(**{each.field: "nonsense"})
    assert all(choice in str(caught.value) for choice in each.choices)
