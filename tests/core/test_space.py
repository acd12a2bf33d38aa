import math
from itertools import product

import pytest

from autocompress.core.abilities import Abilities
from autocompress.core.plan import Plan
from autocompress.core.space import SearchSpace, SpaceTemplate
from autocompress.errors import ConfigError, SpaceError

ABLE = Abilities(w_bits=(2, 3, 4, 5, 6, 7, 8, 16, 32), a_bits=(8, 32))
LAYERS = ["stem", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "fc"]
UNITS = ["stem", "layer1.0.conv1", "layer2.0.conv1"]


def resolve(knobs, exclude=(), able=ABLE):
    return SpaceTemplate.of(knobs, exclude).resolve(LAYERS, UNITS, able)


def test_wildcards_later_rules_and_exclusions():
    space = resolve(
        {
            "*/w_bits": [8, 4],
            "layer1.*/w_bits": [2, 3, 4, 6, 8],
            "layer1.0.conv2/w_bits": [8],
            "*/keep": [0.5, 1.0],
        },
        exclude=["fc", "stem/keep"],
    )
    assert space.knobs["stem/w_bits"] == (4, 8)
    assert space.knobs["layer1.0.conv1/w_bits"] == (2, 3, 4, 6, 8)
    assert space.knobs["layer1.0.conv2/w_bits"] == (8,)
    assert "fc/w_bits" not in space.knobs
    assert "stem/keep" not in space.knobs
    assert "layer1.0.conv2/keep" not in space.knobs  # a layer, not a unit
    assert space.size == 2 * 5 * 1 * 2 * 2 * 2


@pytest.mark.parametrize(
    ("knobs", "word"),
    [
        ({"layer9.*/w_bits": [4]}, "Known"),
        ({"layer1.0.conv/w_bits": [4]}, "layer1.0.conv1"),
        ({"layer1.0.conv2x/keep": [0.5]}, "layer"),
        ({"fc/w_bit": [4]}, "fc/w_bits"),
        ({"fc/w_bits": [9, 40]}, "32"),
        ({"fc/w_bits": [9]}, "2, 3, 4"),
        ({"fc/a_bits": [4]}, "8, 32"),
        ({"fc/w_bits": []}, "list"),
        ({"fc/w_bits": 4}, "list"),
        ({}, "at least one"),
    ],
)
def test_bad_rules_name_what_is_known(knobs, word):
    with pytest.raises(SpaceError, match=word):
        resolve(knobs)


def test_an_exclusion_that_matches_nothing_is_an_error():
    with pytest.raises(SpaceError, match="matches nothing"):
        resolve({"*/w_bits": [4]}, exclude=["fcc"])


def test_a_target_that_cannot_prune_has_no_keep():
    assert not any(
        name.endswith("/keep")
        for name in resolve(
            {"*/keep": [0.5, 1.0], "*/w_bits": [8]}, able=Abilities((8,), (32,), keep=False)
        ).knobs
    )


def test_toml_errors_name_the_line(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text('# a space\n[knobs]\n"*/w_bits" = [4]\n"fc/w_bitz" = [4]\n')
    with pytest.raises(SpaceError, match="line 4"):
        SpaceTemplate.read(path)
    path.write_text('[knobs]\n"*/w_bits" = [4\n')
    with pytest.raises(ConfigError, match="line"):
        SpaceTemplate.read(path)
    path.write_text('[knob]\n"*/w_bits" = [4]\n')
    with pytest.raises(ConfigError, match=r"line 1.*knobs"):
        SpaceTemplate.read(path)


SMALL = SearchSpace({"a/w_bits": (2, 4, 8), "b/w_bits": (4, 8, 32), "a/keep": (0.5, 1.0)})


def test_contains_and_size_agree_with_enumeration():
    plans = {
        Plan(dict(zip(SMALL.knobs, values, strict=True)))
        for values in product(*SMALL.knobs.values())
    }
    assert len(plans) == SMALL.size == math.prod(len(v) for v in SMALL.knobs.values())
    assert all(SMALL.contains(plan) for plan in plans)
    assert not SMALL.contains(Plan({"a/w_bits": 3}))
    assert not SMALL.contains(Plan({"a/w_bits": 4, "c/w_bits": 4}))
    assert not SMALL.contains(Plan())  # a/w_bits = 32 is not in the space


def test_uniform_takes_the_next_higher_value_where_it_must():
    assert SMALL.uniform(w_bits=3) == Plan({"a/w_bits": 4, "b/w_bits": 4})
    assert SMALL.uniform() == Plan({"a/w_bits": 8})


def test_a_uniform_plan_says_what_its_codes_are():
    knobs = {"*/w_bits": [7, 8], "*/a_bits": [8, 32]}
    abilities = Abilities((7, 8, 32), (8, 32), code_limit=64)
    space = SpaceTemplate.of(knobs).resolve(["a"], [], abilities)
    labels = [label for label, _ in space.baselines()]
    assert labels[1] == "uniform 8-bit weights (codes to ±64), 8-bit activations"
    assert "uniform 8-bit weights" in labels
    assert "uniform 7-bit weights, 8-bit activations" in labels


def test_baselines_begin_with_the_promised_three():
    space = resolve({"*/keep": [0.5, 0.75, 1.0], "*/w_bits": [3, 4, 8], "*/a_bits": [8, 32]})
    named = space.baselines()
    labels = [label for label, _ in named]
    assert labels[0] == "uncompressed"
    assert named[0][1] == Plan()
    assert labels[1] == "uniform 8-bit weights, 8-bit activations"
    assert labels[2].startswith("uniform keep 0.5")
    assert "uniform 4-bit weights" in labels
    assert len(set(labels)) == len(labels)
    assert len({plan for _, plan in named}) == len(named)
    assert all(space.contains(plan) for _, plan in named[1:])


def test_values_must_ascend():
    with pytest.raises(SpaceError):
        SearchSpace({"a/w_bits": (8, 4)})
