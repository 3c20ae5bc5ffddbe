"""YAML as settings need it: names, numbers, texts, lists and mappings, each key once, and no more than people write.

PyYAML's safe loader runs no code. Beyond that it lets the last of two equal keys win, turns ``2019-05-26`` into a date
and the key ``on`` into true, and can be made to fill the memory by a few lines of aliases. Here keys are always what is
written, dates are text, and what has no sane reading is refused.
"""

from collections.abc import Hashable
from typing import Any

import yaml
from yaml.composer import ComposerError

from leukofold.containment import shown

MOST_CHARACTERS = 1_000_000
MOST_NESTED = 50
MOST_VALUES = 100_000  # with every alias written out
LONGEST_NUMBER = 100  # characters

_TAG = "tag:yaml.org,2002:"
_KINDS = {
    **{f"{_TAG}{name}": yaml.ScalarNode for name in ("null", "bool", "int", "float", "str", "merge")},
    f"{_TAG}seq": yaml.SequenceNode,
    f"{_TAG}map": yaml.MappingNode,
}


class PlainYamlError(ValueError):
    """A text that is no YAML, or none of this kind; says what and where in one line."""


def read_yaml(text: str) -> Any:
    """Reads one YAML document.

    Args:
        text: The document.

    Returns:
        Mappings with text as keys, lists, texts, numbers, booleans and None.

    Raises:
        PlainYamlError: It is not valid, is several documents, is too long or too deep, names a key twice in one mapping
            or has a tag other than those of the values above.
    """
    if len(text) > MOST_CHARACTERS:
        raise PlainYamlError(f"{len(text):,} characters, {MOST_CHARACTERS:,} are the most")
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise PlainYamlError(where + shown(error.problem or error.context or "", 200)) from None
    except yaml.YAMLError as error:
        raise PlainYamlError(" ".join(str(error).split())) from None
    except (ValueError, KeyError, IndexError):  # such as !!int x
        raise PlainYamlError("a value that is not what its tag (!!...) says") from None


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader, with bounds that hold before anything is built."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as its base declares it
        first: [(tag, pattern) for tag, pattern in found if tag in _KINDS]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._nested = 0
        self._extents: dict[int, tuple[int, int]] = {}  # of a whole node: values and depth, aliases written out

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Composes a node and bounds what it holds."""
        alias = self.check_event(yaml.AliasEvent)
        self._nested += 1
        if self._nested > MOST_NESTED:
            raise ComposerError(None, None, f"more than {MOST_NESTED} levels", parent.start_mark if parent else None)
        node = super().compose_node(parent, index)
        self._nested -= 1
        if node is None:
            return None
        if alias and id(node) not in self._extents:
            raise ComposerError(None, None, "an alias that holds itself", node.start_mark)
        self._bound(node)
        return node

    def _bound(self, node: yaml.Node) -> None:
        """Notes how much a node holds.

        Raises:
            ComposerError: It is too much, or of another kind than its tag says.
        """
        if not isinstance(node, _KINDS.get(node.tag, ())):
            raise ComposerError(None, None, f"the tag {shown(node.tag)}, which is not read here", node.start_mark)
        if node.tag in (f"{_TAG}int", f"{_TAG}float") and len(node.value) > LONGEST_NUMBER:
            raise ComposerError(None, None, f"a number of {len(node.value):,} characters", node.start_mark)
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            self._need_names(node)
            inner = [each for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        extents = [self._extents[id(each)] for each in inner]
        values, depth = 1 + sum(n for n, _ in extents), 1 + max((n for _, n in extents), default=0)
        if values > MOST_VALUES or depth > MOST_NESTED:
            what = f"more than {MOST_VALUES:,} values or {MOST_NESTED} levels, aliases written out"
            raise ComposerError(None, None, what, node.start_mark)
        self._extents[id(node)] = values, depth

    def _need_names(self, node: yaml.MappingNode) -> None:
        """Refuses keys that are no names, and equal ones.

        Raises:
            ComposerError: There is one.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ComposerError(None, None, "a list or mapping as a key", key.start_mark)
            if key.value in seen:
                raise ComposerError(None, None, f"the key '{shown(key.value)}' a second time", key.start_mark)
            seen.add(key.value)

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        """Builds a mapping whose keys are as they are written; those of ``<<`` come first, so that its own win."""
        assert isinstance(node, yaml.MappingNode)
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}
