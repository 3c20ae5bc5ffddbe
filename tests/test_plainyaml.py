"""YAML that was not written by a friend: plain values as they are written, all else refused in one line."""

import random
import string
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from leukofold.config import CONFIG_FOLDER, Config, load_config
from leukofold.containment import has_control
from leukofold.errors import UserError
from leukofold.plainyaml import MOST_CHARACTERS, PlainYamlError, read_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED_LAUGHS = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 10)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP_BY_ALIASES = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 2000))


class Ran:
    """Stands for what a tag of Python's would call."""

    def __init__(self, *_: object) -> None:
        raise AssertionError("code of a document was run")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' a second time"),
        ("{a: {b: 1, 'b': 2}}", "the key 'b' a second time"),
        ("{<<: {a: 1}, <<: {a: 2}}", "the key '<<' a second time"),
        ("{1: a, '1': b}", "the key '1' a second time"),
        (LAUGHS, "more than 100,000 values or 50 levels, aliases written out"),
        (MERGED_LAUGHS, "more than 100,000 values or 50 levels, aliases written out"),
        (DEEP_BY_ALIASES, "more than 100,000 values or 50 levels, aliases written out"),
        ("&a [*a]", "an alias that holds itself"),
        ("a: &a {b: {c: *a}}", "an alias that holds itself"),
        ("[" * 5000, "more than 50 levels"),
        ("[" * 60 + "]" * 60, "more than 50 levels"),
        ("".join(f"{' ' * n}a:\n" for n in range(500)), "more than 50 levels"),
        ("a: " + "9" * 5000, "a number of 5,000 characters"),
        ("a: 0x" + "f" * 5000, "a number of 5,002 characters"),
        ("a: 1" + ":59" * 5000, "a number of 15,001 characters"),
        ("a: 1" + ":59" * 5000 + ".0", "a number of 15,003 characters"),
        ("a: !!python/object/apply:tests.test_plainyaml.Ran [1]", "the tag tag:yaml.org,2002:python/object/apply"),
        ("!!python/name:os.system : 1", "the tag tag:yaml.org,2002:python/name:os.system, which is not read"),
        ("a: !mine x", "the tag !mine, which is not read here"),
        ("a: !!binary aGk=", "the tag tag:yaml.org,2002:binary"),
        ("a: !!set {b, c}", "the tag tag:yaml.org,2002:set"),
        ("a: !!timestamp 2024-13-45", "the tag tag:yaml.org,2002:timestamp"),
        ("a: !!str [b]", "the tag tag:yaml.org,2002:str"),
        ("a: !!int x", "a value that is not what its tag"),
        ("a: !!bool x", "a value that is not what its tag"),
        ("a: !!int ''", "a value that is not what its tag"),
        ("a: 1\n---\na: 2\n", "line 2: but found another document"),
        ("{[a]: 1}", "a list or mapping as a key"),
        ("? {a: 1}\n: 2", "a list or mapping as a key"),
        ("a: *b", "found undefined alias"),
        ("a: <<", "could not determine a constructor"),
        ("<<: 3", "expected a mapping or list of mappings for merging"),
        ("a: \0", "special characters are not allowed"),
        ("a: b: c", "mapping values are not allowed here"),
        ("#" * (MOST_CHARACTERS + 1), "1,000,001 characters, 1,000,000 are the most"),
    ],
)  # fmt: skip
def test_what_has_no_sane_reading_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(PlainYamlError) as caught:
        read_yaml(text)
    assert said in str(caught.value)
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        load_config([path])
    assert str(refused.value) == f"{path}: not valid YAML: {caught.value}"
    with pytest.raises(UserError, match=r"--set training.epochs=.*: the value is not valid YAML: "):
        load_config([], [f"training.epochs={text}"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("3", 3), ("0.5", 0.5), ("yes", True), ("'3'", "3"), ("=", "="),
        ("2019-05-26", "2019-05-26"), ("2024-13-45", "2024-13-45"), ("20190526_163446", 20190526163446),
        ("{on: a, 1: b, 1.50: c, no: d, ~: e, 2019-05-26: f}",
         {"on": "a", "1": "b", "1.50": "c", "no": "d", "~": "e", "2019-05-26": "f"}),
        ("[&a {b: 1, c: 2}, {<<: *a, c: 3}]", [{"b": 1, "c": 2}, {"b": 1, "c": 3}]),
        ("[{<<: [&a {b: 1}, &c {b: 2, d: 4}]}, *a, *c]", [{"b": 1, "d": 4}, {"b": 1}, {"b": 2, "d": 4}]),
        ("a: {b: &b {<<: &c {x: 1}, x: 2}}\nd: {<<: *b}\n", {"a": {"b": {"x": 2}}, "d": {"x": 2}}),
        ("!!str 3", "3"), ("!!float 3", 3.0), ("[]", []), ("{}", {}),
    ],
)  # fmt: skip
def test_plain_values_are_read_as_they_are_written(text: str, value: object) -> None:
    found = read_yaml(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("path", sorted(CONFIG_FOLDER.rglob("*.yaml")), ids=lambda path: path.stem)
def test_all_configurations_of_the_project_are_read_as_pyyaml_reads_them(path: Path) -> None:
    def named(value: Any) -> Any:
        """The same with ``on``, which PyYAML takes for true, as a key."""
        if isinstance(value, dict):
            return {"on" if key is True else str(key): named(each) for key, each in value.items()}
        return [named(each) for each in value] if isinstance(value, list) else value

    text = path.read_text(encoding="utf-8")
    assert read_yaml(text) == named(yaml.safe_load(text))


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=5)  # which PyYAML writes well


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(allow_nan=False) | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=8,
    ),
    st.booleans(),
)  # fmt: skip
def test_what_pyyaml_writes_is_read_back(value: object, flow: bool) -> None:
    assert read_yaml(yaml.safe_dump(value, default_flow_style=flow, allow_unicode=True)) == value


def test_a_configuration_may_begin_with_a_byte_order_mark_but_has_to_be_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbftraining: {epochs: 3}\n")
    assert load_config([path]).training.epochs == 3
    path.write_bytes("training: {epochs: 3}\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"a\.yaml: not valid YAML: not UTF-8; save it as UTF-8"):
        load_config([path])


@pytest.mark.parametrize("name", ["x" * 300, "a\\0b", "loop.yaml"])
def test_a_file_to_build_on_that_cannot_be_one_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    path = tmp_path / "a.yaml"
    path.write_text(f'extends: "{name}"\n')
    with pytest.raises(UserError) as caught:
        load_config([path])
    assert not has_control(str(caught.value))


def test_an_override_as_deep_as_a_well_is_refused() -> None:
    with pytest.raises(UserError, match=r"--set a\.a\.a.*: write it as dotted\.key=value"):
        load_config([], [f"{'.'.join('a' * 3000)}=1"])


def test_messages_do_not_repeat_all_of_a_long_value() -> None:
    with pytest.raises(UserError) as caught:
        load_config([], [f"training.epochs={'x' * 50_000}"])
    assert len(str(caught.value)) < 1000


# --- any text -----------------------------------------------------------------------------------


def dotted(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All keys of some settings, sections included; sections under names of choice under the name x."""
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        pending = [field.annotation]
        while pending:
            kind = pending.pop()
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += dotted(kind, f"{prefix}{name}.x." if "dict" in str(field.annotation) else f"{prefix}{name}.")
            pending += [each for each in typing.get_args(kind) if each is not kind]
    return found


KEYS = dotted(Config)
VALUES = (
    "3", "-1", "1e400", ".nan", ".inf", "'a'", "[1, a]", "[]", "{}", "{a: 1}", "null", "true", "[[1]]", "2024-13-45",
    "9" * 90, "'\\0'", '"\\0"', '"\\n"', "split", "[a, a]", "{count: -1}", "[{name: [1]}]", "{name: 3}", "- a", "cnmc",
    "&a [*a]", "{? [a] : b}", "!!int x", "[0.1, 0.2, 0.3]", "{x: {y: 1}}", "folds", "[D4]",
)  # fmt: skip


def fault_of(paths: list[Path], overrides: list[str]) -> str:
    """What the user is told; "" where all is well."""
    try:
        load_config(paths, overrides)
    except UserError as error:
        return str(error)
    return ""


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES) | st.text(max_size=8)), min_size=1, max_size=3)
)
def test_of_any_overrides_comes_a_configuration_or_a_line_for_the_user(pairs: list[tuple[str, str]]) -> None:
    assert not has_control(fault_of([], [f"{key}={value}" for key, value in pairs]))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20))
def test_of_any_text_for_an_override_comes_a_line_for_the_user(text: str) -> None:
    assert not has_control(fault_of([], [text]))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | st.text("{}[]:,&*!|>-?\"'#\n ab1.~<=%@", max_size=40).map(str.encode))
def test_of_any_bytes_comes_a_configuration_or_a_line_for_the_user(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    assert not has_control(fault_of([path], []))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_of_a_mutated_configuration_comes_a_configuration_or_a_line_for_the_user(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    rng = random.Random(seed)
    text = (CONFIG_FOLDER / rng.choice(["demo.yaml", "cnmc/paper004/svm.yaml", "demo_cnmc.yaml"])).read_text()
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(text))
        new = rng.choice([rng.choice(string.printable), rng.choice(VALUES), "\n", "  ", ": "])
        text = text[:place] + new + text[place + rng.randint(0, 5) :]
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_text(text)
    assert not has_control(fault_of([path], []))
