from __future__ import annotations

import re
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from producer.jobs.model import keys
from producer.jobs.model.errors import UsageError
from producer.jobs.model.items import Chunk, Item, compress_items, decompress_items, uri_line
from producer.jobs.model.spec import JobSpec, check_threshold, checked_name, new_job_id
from producer.jobs.model.typed_spec import make_spec, spec_fields

ITEMS = [
    Item(uri="s3://b/a.jpg", id="first", keep={"split": "val"}),
    Item(uri="https://example.org/b.png", class_id=281),
]
LINES = [item.line for item in ITEMS]


def test_a_chunk_gives_its_items_back() -> None:
    assert decompress_items(Chunk.compress(3, LINES).payload) == dict(enumerate(ITEMS))


@given(st.text(min_size=1, max_size=200).filter(lambda text: not re.search("[\\x00-\\x1f\\x7f\\ud800-\\udfff]", text)))
def test_the_quick_way_to_write_an_address_is_the_usual_one(uri: str) -> None:
    assert uri_line(uri) == Item(uri=uri).line


def test_some_items_of_a_chunk_keep_their_places() -> None:
    some = {1: ITEMS[0], 4: ITEMS[1]}
    assert decompress_items(compress_items(some)) == some


def test_the_same_items_make_the_same_digest_and_others_do_not() -> None:
    assert Chunk.compress(0, LINES).digest == Chunk.compress(0, list(LINES)).digest
    assert Chunk.compress(0, LINES).digest != Chunk.compress(0, LINES[::-1]).digest


@pytest.mark.parametrize(
    "text", ['{"version": 2}', '{"color": "red"}', '{"chunk_size": 0}', '{"outputs": ["gb", "x"]}']
)
def test_specs_of_other_versions_or_shapes_are_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        JobSpec.model_validate_json(text)


def test_parameters_that_cannot_be_used_are_all_named() -> None:
    with pytest.raises(UsageError) as caught:
        make_spec(network="no such", class_id=-1, outputs=("cam", "camm"))
    assert all(word in str(caught.value) for word in ("--network", "--class-id", "--outputs"))


@pytest.mark.parametrize(
    ("typed", "threshold", "top_k"),
    [
        ({}, None, 1),
        ({"classes": "above:0.5"}, 0.5, 5),
        ({"classes": "above:.25", "top_k": 12}, 0.25, 12),
        ({"classes": "above:-3", "top_k": 2}, -3.0, 2),
    ],
)
def test_classes_above_a_threshold_are_five_at_most_or_as_many_as_asked_for(
    typed: dict[str, Any], threshold: float | None, top_k: int
) -> None:
    spec = make_spec(**spec_fields(**typed))
    assert (spec.threshold, spec.top_k) == (threshold, top_k)


@pytest.mark.parametrize(
    ("classes", "activation", "is_one"),
    [
        ("above:0", None, True),
        ("above:0.999", "sigmoid", True),
        ("above:1", None, False),
        ("above:50", "softmax", False),
        ("above:-0.1", None, False),
        ("above:50", "none", True),
        ("above:-0.1", "none", True),
    ],
)
def test_a_threshold_lies_between_no_probability_and_all(classes: str, activation: Any, is_one: bool) -> None:
    with nullcontext() if is_one else pytest.raises(UsageError, match=r"--classes .*between 0 and 1"):
        check_threshold(JobSpec(classes=classes, activation=activation))


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ({"mean": "0.5"}, {"mean": (0.5, 0.5, 0.5)}),
        ({"mean": "0.485, 0.456,0.406", "std": 0.25}, {"mean": (0.485, 0.456, 0.406), "std": (0.25, 0.25, 0.25)}),
        ({"std": [0.1, 0.2, 1]}, {"std": (0.1, 0.2, 1.0)}),
        ({"std": f"{1 / 255}", "mean": 0}, {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}),
        ({"input_size": 320}, {"input_size": (320, 320)}),
        ({"input_size": "224x320"}, {"input_size": (224, 320)}),
        ({"input_size": "224X320"}, {"input_size": (224, 320)}),
        ({"input_size": (224, 320)}, {"input_size": (224, 320)}),
        ({}, {"mean": None, "std": None, "input_size": None}),
    ],
)
def test_preprocessing_is_read_as_people_write_it(typed: dict[str, Any], read: dict[str, Any]) -> None:
    spec = make_spec(**spec_fields(**typed))
    assert spec.model_dump(include=set(read)) == read
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"mean": "123.675,116.28,103.53"}, "--mean must be .*divide by 255"),
        ({"std": "58.395,57.12,57.375"}, "--std must be .*divide by 255"),
        ({"std": "0"}, "--std must be"),
        ({"mean": "0.5,0.5"}, "--mean must be three numbers"),
        ({"mean": "nan"}, "--mean must be"),
        ({"mean": "gray"}, "--mean must be"),
        ({"mean": ""}, "--mean must be"),
        ({"input_size": "0"}, "--input-size must be"),
        ({"input_size": "224.5"}, "--input-size must be"),
        ({"input_size": "224x224x3"}, "--input-size must be"),
        ({"input_size": 10**23}, "--input-size must be"),
        ({"input_size": "large", "mean": "x", "std": "y"}, "--input-size.*--mean.*--std"),
    ],
)
def test_preprocessing_that_no_network_has_is_refused(typed: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make_spec(**spec_fields(**typed))


def test_job_ids_sort_by_time_and_may_name_jobs() -> None:
    first, second = new_job_id(), new_job_id()
    assert first != second
    assert first[:15] <= second[:15]
    assert checked_name(first) == first


@pytest.mark.parametrize("name", ["", "a/b", "../up", "-x", "a" * 64, "a b", "a\n"])
def test_names_that_would_break_keys_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a job"):
        checked_name(name)


def test_no_text_of_a_user_leaves_its_place_in_a_key() -> None:
    name = keys.picture_name("../../etc/passwd", "timm/resnet18", "cam", "jpg")
    assert name == "_.._etc_passwd-timm_resnet18-cam.jpg"
    assert keys.uploaded_input("p", "job", 7, "a b/c.jpg") == "p/job/inputs/00000007/a_b_c.jpg"
    assert keys.summary("", "job") == "job/job.json"


def test_no_job_has_the_name_under_which_the_weights_of_all_jobs_lie() -> None:
    with pytest.raises(UsageError, match="which all jobs share"):
        checked_name("weights")
    assert checked_name("weights-2") == "weights-2"
