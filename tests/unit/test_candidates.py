from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from worker.models import candidates
from worker.models.candidates import Choice


class Net(nn.Module):
    """A small network with the shape of large ones: parts with layers in them, and a head."""

    def __init__(self, classes: int = 10, depth: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(depth)), nn.BatchNorm2d(3))
        self.fc = nn.Linear(3, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x).mean((2, 3)))
        return logits


def state_of(classes: int = 10, depth: int = 2) -> dict[str, Tensor]:
    return {key: torch.rand(value.shape) for key, value in Net(classes, depth).state_dict().items()}


STATE = state_of()
ONE = torch.ones(1)


def choose(content: Any, **options: Any) -> Choice:
    choice = candidates.choose_state_dict(content, Net().state_dict(), classes=10, head="fc.weight", **options)
    assert choice is not None
    return choice


def holds(choice: Choice, state: Mapping[str, Tensor] = STATE) -> bool:
    taken = choice.taken
    return taken.fits and set(taken.state) == set(state) and all(taken.state[key] is state[key] for key in state)


def prefixed(prefix: str, state: Mapping[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def within(old: str, new: str) -> dict[str, Tensor]:
    return {key.replace(old, new, 1): value for key, value in STATE.items()}


PREFIXES = [
    *("module.", "model.", "net.", "backbone.", "encoder.", "_orig_mod.", "_forward_module.", "anything.at.all."),
    *("module.model.", "model.module.", "_orig_mod.module.", "model._orig_mod.", "_forward_module.model.net."),
]
WRAPPERS = [
    *("state_dict", "model", "model_state_dict", "net", "network", "params", "weights", "ema", "model_ema", "teacher"),
    *("student", "state_dict_ema", "generator", "best model so far"),
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_whatever_stands_before_every_name_is_taken_off(prefix: str) -> None:
    assert holds(choose(prefixed(prefix)))
    assert choose({"state_dict": prefixed(prefix)}).taken.prefix == f"state_dict.{prefix}"


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_under_whatever_the_weights_are_they_are_found_beside_rates_and_epochs(wrapper: str) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.ones(3), "step": ONE}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    choice = choose({"epoch": 3, "acc": 93.1, wrapper: STATE, "optimizer": optimizer, "losses": [0.1, 0.2]})
    assert holds(choice)
    assert choice.taken.prefix == f"{wrapper}."
    assert "left: optimizer.state.0.exp_avg and 1 more" in choice.words


@pytest.mark.parametrize(
    "state",
    [
        within("features.", "features.module."),
        within("fc.", "fc._orig_mod."),
        within("features.1.", "features.1._checkpoint_wrapped_module."),
        {"module." + key: value for key, value in within("features.", "features._orig_mod.").items()},
        {f"backbone.{key}" if key.startswith("features.") else key: value for key, value in STATE.items()},
        {f"model.backbone.{k}" if k.startswith("features.") else f"model.{k}": v for k, v in STATE.items()},
    ],
)
def test_words_before_a_part_of_the_names_are_taken_out(state: dict[str, Tensor]) -> None:
    assert holds(choose(state))
    assert holds(choose({"net": state, "epoch": 1}))


def test_a_backbone_and_a_head_in_two_mappings_are_one_network() -> None:
    parts: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    for key, value in STATE.items():
        parts[key.startswith("fc.")][key] = value
    assert holds(choose({"backbone": parts[False], "fc": {key[3:]: value for key, value in parts[True].items()}}))


@pytest.mark.parametrize(
    "beside",
    [
        {"criterion.weight": torch.ones(10)},
        {
            "loss_fn.pos_weight": ONE,
            "train_acc.correct": ONE,
            "val_f1.confmat": torch.ones(10, 10),
            "valAUROC.preds": ONE,
        },
        {"n_averaged": torch.tensor(3)},
        {"total_ops": ONE, "total_params": ONE, "features.total_ops": ONE, "features.0.total_params": ONE},
    ],
)
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_losses_metrics_and_counters_beside_the_network_are_left_and_told(
    beside: dict[str, Tensor], prefix: str
) -> None:
    """Behind the prefix, as in a class that is the network, and before it, as in a class that has one."""
    for content in (prefixed(prefix) | prefixed(prefix, beside), prefixed(prefix) | beside):
        choice = choose(content)
        assert holds(choice)
        assert len(choice.taken.beside) == len(beside)
        assert choice.taken.beside[0] in choice.words


def test_averages_of_torch_are_read() -> None:
    average = AveragedModel(Net())
    choice = choose(average.state_dict())
    assert choice.taken.fits
    assert choice.taken.prefix == "module."
    assert torch.equal(choice.taken.state["fc.weight"], average.module.get_parameter("fc.weight"))


@pytest.mark.parametrize(
    ("plain", "copy"),
    [
        ("state_dict", "state_dict_ema"),
        ("model", "model_ema"),
        ("net", "ema"),
        ("student", "teacher"),
        ("model", "ema_model.module"),
        ("encoder_q", "encoder_k"),
        ("online_network", "target_network"),
        ("state_dict", "best_state_dict"),
        ("a", "b"),
        ("net", "run.net"),
    ],
)
def test_of_several_that_fit_the_plain_one_is_taken_and_the_others_are_told(plain: str, copy: str) -> None:
    for order in (1, -1) if plain != "a" else (1,):
        wrapped = {plain: STATE, copy: state_of()}
        choice = choose(dict(list(wrapped.items())[::order]))
        assert holds(choice)
        assert choice.words.startswith(f"taken: {plain}.*; as well would fit: {copy}.*")
        one_mapping = prefixed(f"{plain}.") | prefixed(f"{copy}.", wrapped[copy])
        assert holds(choose({"state_dict": dict(list(one_mapping.items())[::order])}))


def test_weights_that_lie_in_a_file_twice_are_told_once() -> None:
    assert choose({"model": STATE, "state_dict": STATE}).others == []


def test_the_candidate_that_fits_is_taken_and_not_the_one_with_the_usual_name() -> None:
    deeper = state_of(depth=3)
    assert holds(choose({"state_dict": deeper, "odd": STATE}))
    assert holds(choose({"model": {key: value for key, value in STATE.items() if "fc" not in key}, "ema": STATE}))
    assert holds(choose({"discriminator": {"fc.weight": torch.ones(3, 3)}, "generator": STATE}))


def test_another_number_of_classes_fits_and_other_shapes_do_not() -> None:
    five = state_of(classes=5)
    assert holds(choose(five), five)
    wide = STATE | {"features.0.weight": torch.ones(3, 4, 1, 1)}
    assert choose({"state_dict": wide}).taken.misshapen == ["features.0.weight"]
    assert holds(choose({"state_dict": wide, "odd": STATE}))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": prefixed("module.", s)}])
@pytest.mark.parametrize(
    ("more", "unexpected"),
    [
        ({"features.3.weight": ONE}, "features.3.weight"),
        ({"features.0.gate.weight": ONE}, "features.0.gate.weight"),
        ({"attention.weight": ONE}, "attention.weight"),
        ({"reg_token": ONE}, "reg_token"),
    ],
)
def test_layers_that_the_network_has_not_are_never_left_out(
    wrap: Callable[[dict[str, Tensor]], Any], more: dict[str, Tensor], unexpected: str
) -> None:
    """The weights of a deeper network hold all of a shallower one's: explained so, they would say something else."""
    taken = choose(wrap(STATE | more)).taken
    assert not taken.fits
    assert taken.unexpected == [unexpected]


def test_a_layer_that_reads_the_answers_of_the_network_makes_it_a_part_of_a_larger_one() -> None:
    taken = choose(prefixed("backbone.") | {"classifier.weight": torch.ones(5, 10), "classifier.bias": ONE}).taken
    assert taken.unexpected == ["classifier.weight"]


def test_what_is_missing_is_told_of_the_nearest_candidate() -> None:
    state = {key: value for key, value in STATE.items() if not key.startswith("features.1.")}
    taken = choose({"optimizer": {"fc.weight": ONE}, "net": prefixed("module.", state)}).taken
    assert (taken.prefix, taken.missing) == ("net.module.", ["features.1.weight", "features.1.bias"])


def test_weights_of_another_network_keep_their_names() -> None:
    choice = choose({"model": {"stem.kernel": ONE, "stem.scale": ONE}, "epoch": 1})
    assert choice.taken.unexpected == ["stem.kernel", "stem.scale"]
    assert list(choice.largest) == ["stem.kernel", "stem.scale"]


def test_parts_that_a_network_needs_not_have_are_left_without_a_word() -> None:
    choice = choose({"model": STATE | {"aux.conv.weight": ONE}}, auxiliary=("aux.",))
    assert holds(choice)
    assert choice.words == "taken: model.*"


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, torch.ones(2), {"state_dict": {}}, None, [ONE, ONE]])
def test_a_file_without_a_state_dict_has_no_candidates(content: Any) -> None:
    assert candidates.choose_state_dict(content, STATE) is None


def test_a_file_that_holds_itself_or_one_thing_many_times_is_read_once() -> None:
    content: dict[str, Any] = {"state_dict": STATE}
    content["again"] = content
    for _ in range(60):
        content = {"left": content, "right": content, "row": [content, content]}
    assert candidates.choose_state_dict(content, STATE) is None  # too deep
    content = {"left": {"state_dict": STATE}, "self": {}}
    content["self"]["self"] = content
    assert holds(choose(content))


def test_old_names_of_densenet_and_of_torchvisions_transformers_become_todays() -> None:
    today = {
        "features.denseblock1.denselayer2.norm1.weight": ONE,
        "features.denseblock1.denselayer2.conv2.weight": ONE,
        "encoder.layers.encoder_layer_0.mlp.0.weight": ONE,
        "encoder.layers.encoder_layer_0.mlp.3.bias": ONE,
    }
    old = {
        "module.features.denseblock1.denselayer2.norm.1.weight": ONE,
        "module.features.denseblock1.denselayer2.conv.2.weight": ONE,
        "module.encoder.layers.encoder_layer_0.mlp.linear_1.weight": ONE,
        "module.encoder.layers.encoder_layer_0.mlp.linear_2.bias": ONE,
    }
    choice = candidates.choose_state_dict({"state_dict": old}, today)
    assert choice is not None
    assert choice.taken.fits
