"""Laws of settings to and from plain mappings."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptembedder.errors import ConfigError
from promptembedder.method import ModelConfig
from promptembedder.storage import from_mapping, to_mapping


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A nested settings class."""

    rate: float = 0.5
    steps: int = 3


@dataclass(frozen=True, kw_only=True)
class Outer:
    """One field of each kind that settings use."""

    name: str
    on: bool = False
    inner: Inner = field(default_factory=Inner)
    limit: int | None = 4
    sizes: tuple[int, ...] = (1, 2)
    scores: dict[str, float] = field(default_factory=dict)


OUTERS = st.builds(
    Outer,
    name=st.text(),
    on=st.booleans(),
    inner=st.builds(Inner, rate=st.floats(allow_nan=False), steps=st.integers()),
    limit=st.none() | st.integers(),
    sizes=st.lists(st.integers()).map(tuple),
    scores=st.dictionaries(st.text(), st.floats(allow_nan=False)),
)

_BACKBONES = st.fixed_dictionaries(
    {"source": st.sampled_from(["random:tiny-llama", "org/name"]), "layers": st.none() | st.integers(1, 40)}
)
MODEL_SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "prompter": st.fixed_dictionaries(
            {},
            optional={
                "backbone": _BACKBONES,
                "tuning": st.sampled_from(["lora", "full"]),
                "lora_rank": st.integers(1, 64),
            },
        ),
        "reader": _BACKBONES,
        "alignment": st.fixed_dictionaries(
            {"kind": st.sampled_from(["linear", "vocabulary"]), "ridge": st.floats(1e-9, 1)}
        ),
        "relaxation": st.fixed_dictionaries(
            {"kind": st.sampled_from(["softmax", "gumbel"]), "temperature": st.floats(0.1, 9)}
        ),
        "num_soft_tokens": st.integers(1, 20),
        "default_instruction": st.text(min_size=1).filter(str.strip),
    },
)


@given(OUTERS)
def test_to_a_mapping_and_back_is_identity(settings: Outer) -> None:
    assert from_mapping(Outer, to_mapping(settings)) == settings


@given(OUTERS)
def test_through_json_and_back_is_identity(settings: Outer) -> None:
    assert from_mapping(Outer, json.loads(json.dumps(to_mapping(settings)))) == settings


@given(MODEL_SETTINGS)
def test_a_whole_model_configuration_survives_json(mapping: dict[str, Any]) -> None:
    config = from_mapping(ModelConfig, mapping)
    assert from_mapping(ModelConfig, json.loads(json.dumps(to_mapping(config)))) == config


def test_absent_keys_keep_their_defaults() -> None:
    assert from_mapping(Outer, {"name": "a", "inner": {"steps": 9}}) == Outer(name="a", inner=Inner(steps=9))
    assert from_mapping(ModelConfig, {}) == ModelConfig()


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"readr": {}}, r"unknown setting 'readr'. Did you mean 'reader'\? Known here: prompter, reader"),
        ({"prompter": {"lora_ranks": 3}}, r"unknown setting 'prompter.lora_ranks'. Did you mean 'lora_rank'\?"),
        (
            {"prompter": {"backbone": {"sauce": "a"}}},
            r"unknown setting 'prompter.backbone.sauce'. Did you mean 'source'\?",
        ),
        ({"zzz": 1}, r"unknown setting 'zzz'. Known here"),
        ({7: 1}, r"unknown setting '7'"),
    ],
)
def test_an_unknown_key_is_named_with_its_path_and_the_nearest_known_one(mapping: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(ModelConfig, mapping)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"num_soft_tokens": "5"}, "num_soft_tokens must be of type int, got '5'"),
        ({"num_soft_tokens": 5.0}, "num_soft_tokens must be of type int, got 5.0"),
        ({"num_soft_tokens": True}, "num_soft_tokens must be of type int, got True"),
        ({"num_soft_tokens": None}, "num_soft_tokens must be of type int, got None"),
        ({"reader": {"layers": False}}, "reader.layers must be of type int, got False"),
        ({"relaxation": {"temperature": True}}, "relaxation.temperature must be of type float, got True"),
        ({"relaxation": {"temperature": "warm"}}, "relaxation.temperature must be of type float, got 'warm'"),
        ({"placement": 3}, "placement must be of type str, got 3"),
        ({"reader": "smollm2-135m"}, "reader must be a mapping, got str"),
        ({"reader": None}, "reader must be a mapping, got NoneType"),
        ([1], "the configuration must be a mapping, got list"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_path(mapping: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(ModelConfig, mapping)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"name": "a", "on": 1}, "on must be of type bool, got 1"),
        ({"name": "a", "sizes": 3}, "sizes must be a list, got 3"),
        ({"name": "a", "sizes": [1, "2"]}, r"sizes\[1\] must be of type int, got '2'"),
        ({"name": "a", "scores": [1]}, r"scores must be a mapping, got \[1\]"),
        ({"name": "a", "scores": {"x": "y"}}, "scores.x must be of type float, got 'y'"),
        ({}, "the configuration lacks: name"),
    ],
)
def test_a_value_inside_a_list_or_mapping_is_named_too(mapping: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(Outer, mapping)


def test_a_missing_field_of_a_nested_class_is_named_with_its_path() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Whole:
        part: Outer

    Whole.__annotations__["part"] = Outer  # the class is local: its hint cannot be looked up by name
    with pytest.raises(ConfigError, match="part lacks: name"):
        from_mapping(Whole, {"part": {"on": True}})


@pytest.mark.parametrize("written", ["1e-4", 1e-4])
def test_a_float_may_be_written_as_yaml_reads_it(written: str | float) -> None:
    """YAML 1.1 reads 1e-4, without a point, as a string."""
    assert from_mapping(ModelConfig, {"alignment": {"ridge": written}}).alignment.ridge == 1e-4


def test_an_integer_is_a_float_where_a_float_is_meant() -> None:
    temperature = from_mapping(ModelConfig, {"relaxation": {"temperature": 2}}).relaxation.temperature
    assert (temperature, type(temperature)) == (2.0, float)


def test_a_value_out_of_range_keeps_the_message_of_the_class() -> None:
    with pytest.raises(ConfigError, match="num_soft_tokens must be at least 1, got 0. Try 5"):
        from_mapping(ModelConfig, {"num_soft_tokens": 0})


def test_what_to_mapping_gives_is_plain() -> None:
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(type(key) is str and plain(item) for key, item in value.items())
        return value is None or type(value) in (str, int, float, bool)

    assert plain(to_mapping(ModelConfig()))
    assert to_mapping(ModelConfig()).keys() == {each.name for each in dataclasses.fields(ModelConfig)}


def test_a_number_larger_than_any_float_is_refused_and_no_value_is_told_whole() -> None:
    """Fuzzing: OverflowError; and messages of thousands of characters."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Rate:
        rate: float = 0.0

    for value in (10**400, "x" * 5000, [[1] * 500] * 500):
        with pytest.raises(ConfigError) as refused:
            from_mapping(Rate, {"rate": value})
        assert len(str(refused.value)) < 200
