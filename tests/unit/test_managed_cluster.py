"""The recipe for a managed cluster in docs/deploy.md, typed as it stands there, with the programs of others replaced.

They write down what they are asked and give an answer of the usual form. What is asked of AWS exists in AWS' own
description of its services; what the recipe writes is read by JSON, by the chart and by our settings.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import botocore.session
import pytest
import yaml
from botocore import xform_name
from charts import ROOT, VERSIONS, manifests, pods_of, validate
from stacks import set_only

from producer.jobs.model.settings import Connections, read

PAGE: Final = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
RECIPE: Final = PAGE[PAGE.index("### On a managed cluster, without Terraform") :]
BLOCKS: Final = re.findall(r"^```sh\n(.*?)^```", RECIPE, re.DOTALL | re.MULTILINE)
PROGRAMS: Final = ("aws", "eksctl", "helm", "kubectl", "docker", "openssl")
ACCOUNT: Final = "111122223333"
HOST: Final = "master.gradcam.abc.euc1.cache.amazonaws.com"
#: What they answer where it is used, by words of the command.
ANSWERS: Final = {
    "get-caller-identity": ACCOUNT,
    "cluster.resourcesVpcConfig.subnetIds": "subnet-1\tsubnet-2",
    "cluster.resourcesVpcConfig.clusterSecurityGroupId": "sg-1",
    "describe-replication-groups": HOST,
    "get-login-password": "token",
    "rand": "0123456789abcdef" * 4,
}
_PROGRAM: Final = """\
import json, os, sys
from pathlib import Path
told = sys.stdin.read()  # also what this test does not look at: who writes it must not find the pipe closed
with open(os.environ["TOLD"], "a") as file:
    file.write(json.dumps([Path(sys.argv[0]).name, *sys.argv[1:], told]) + chr(10))
print(next((answer for word, answer in json.loads(os.environ["ANSWERS"]).items() if word in sys.argv), ""))
"""


class Typed:
    """What was done: each command's words, and the text that came to it by a pipe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        lines = (folder / "told").read_text(encoding="utf-8").splitlines()
        self.commands: list[list[str]] = [json.loads(line) for line in lines]

    def of(self, *words: str) -> list[list[str]]:
        """The commands that have these words."""
        return [command for command in self.commands if set(words) <= set(command)]


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Typed:
    """All blocks in one shell that refuses variables which nobody set."""
    folder = tmp_path_factory.mktemp("recipe")
    programs = folder / "bin"
    programs.mkdir()
    for name in PROGRAMS:
        (programs / name).write_text(f"#!{sys.executable} -IS\n{_PROGRAM}", encoding="utf-8")
        (programs / name).chmod(0o755)
    (folder / "told").touch()
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "TOLD": str(folder / "told"), "ANSWERS": json.dumps(ANSWERS)}
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "".join(BLOCKS)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return Typed(folder)


def test_every_program_of_the_recipe_is_one_that_the_test_knows(typed: Typed) -> None:
    assert {command[0] for command in typed.commands} == set(PROGRAMS)
    assert len(typed.commands) > 20


def test_no_word_of_the_recipe_is_empty_or_left_to_be_filled_in(typed: Typed) -> None:
    words = [word for command in typed.commands for word in command[1:-1]]
    assert "" not in words
    assert [word for word in words if re.search(r"\$|\b(REGION|ACCOUNT|BUCKET|HOST|USER|REGISTRY)\b", word)] == []


def test_the_policy_has_the_rights_that_producer_and_workers_need(typed: Typed) -> None:
    def rights(policy: dict[str, Any]) -> set[tuple[str, str]]:
        return {
            (
                action,
                re.sub(
                    r"^arn:aws:s3:::[^/]+(/.*)?$", lambda found: "objects" if found[1] else "bucket", one["Resource"]
                ),
            )
            for one in policy["Statement"]
            for action in one["Action"]
        }

    security = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    tested = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", security, re.DOTALL)]
    needed = [policy for policy in tested if re.search("Producer|Worker", policy["Statement"][0]["Sid"])]
    policy = json.loads((typed.folder / "policy.json").read_text(encoding="utf-8"))
    assert rights(policy) == set().union(*map(rights, needed))
    assert {one["Resource"].split("/")[0] for one in policy["Statement"]} == {"arn:aws:s3:::my-pictures"}
    assert typed.of("create-policy", "file://policy.json")


def test_the_values_are_taken_by_the_chart(typed: Typed) -> None:
    values = yaml.safe_load((typed.folder / "values.yaml").read_text(encoding="utf-8"))
    rendered = manifests(values, "explainer")
    for one in rendered:
        validate(one, VERSIONS[-1])
    pods = dict(pods_of(rendered))
    pushed = {command[2] for command in typed.of("docker", "push")}
    assert {spec["containers"][0]["image"] for spec in pods.values()} == pushed
    (account,) = (one for one in rendered if one["kind"] == "ServiceAccount")
    role = account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
    (made,) = typed.of("eksctl", "iamserviceaccount")
    assert role == f"arn:aws:iam::{ACCOUNT}:role/{made[made.index('--role-name') + 1]}"
    assert account["metadata"]["name"] == made[made.index("--name") + 1]
    for command in typed.of("kubectl", "exec"):
        deployment = command[command.index("exec") + 1].removeprefix("deploy/")
        assert deployment in pods
    (secret,) = typed.of("kubectl", "secret")
    assert values["redis"]["existingSecret"] in secret


def test_nothing_but_workers_comes_onto_a_node_with_a_gpu(typed: Typed) -> None:
    """Such a node has no taint, and stays as long as a pod is on it."""
    values = yaml.safe_load((typed.folder / "values.yaml").read_text(encoding="utf-8"))
    (cluster,) = typed.of("eksctl", "create", "cluster")
    (nodes,) = typed.of("eksctl", "create", "nodegroup")
    small, large = (command[command.index("--node-type") + 1] for command in (cluster, nodes))
    of = {
        name.rpartition("-")[2]: spec["nodeSelector"]["node.kubernetes.io/instance-type"]
        for name, spec in pods_of(manifests(values, "explainer"))
    }
    assert of == {"worker": large, "client": small, "exporter": small}


def test_the_address_of_redis_is_one_that_our_settings_take(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    ((*words, address),) = typed.of("kubectl", "secret")
    assert "--from-file=redis-url=/dev/stdin" in words
    set_only(
        monkeypatch, {"PATH": os.environ["PATH"], "GRADCAM_REDIS_URL": address, "GRADCAM_S3_BUCKET": "my-pictures"}
    )
    url = read(Connections).redis_url.get_secret_value()
    assert url == f"rediss://:{ANSWERS['rand']}@{HOST}:6379/0"
    written = [path.read_text(encoding="utf-8") for path in typed.folder.glob("*.*")]
    assert written
    assert not [text for text in written if ANSWERS["rand"] in text], "the password is in no file"


def test_what_is_asked_of_aws_exists_there(typed: Typed) -> None:
    """Services, operations, their parameters and which of them are needed, by the description that boto3 works by."""
    session = botocore.session.get_session()
    of_the_command_line = {("s3", "mb"), ("ecr", "get-login-password")}
    asked = [command[1:-1] for command in typed.of("aws") if tuple(command[1:3]) not in of_the_command_line]
    assert len(asked) > 8
    for service, name, *words in asked:
        if name == "wait":
            client = session.create_client(service, "eu-central-1", aws_access_key_id="x", aws_secret_access_key="x")
            assert words[0].replace("-", "_") in client.waiter_names
            continue
        model = session.get_service_model(service)
        (operation,) = (one for one in model.operation_names if xform_name(one, "-") == name)
        shape = model.operation_model(operation).input_shape
        given = {word.removeprefix("--") for word in words if word.startswith("--")} - {"region", "query", "output"}
        if shape is None:
            assert not given
            continue
        known = {xform_name(member, "-") for member in shape.members}
        needed = {xform_name(member, "-") for member in shape.required_members}
        assert needed <= given <= known, f"aws {service} {name}"
