"""Dicts and tuples of tensors: taken apart into named leaves, and put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["LEAF", "NOTHING", "Structure", "flatten"]


@dataclass(frozen=True)
class Structure:
    """The shape of a nest of dicts and tuples, without its leaves.

    Attributes
    ----------
    kind : str
        ``"leaf"``, ``"nothing"``, ``"dict"`` or ``"tuple"``.
    keys : tuple
        The keys of a dict, in its own order.
    children : tuple of Structure
        What is inside.
    """

    kind: str
    keys: tuple[Any, ...] = ()
    children: tuple[Structure, ...] = ()

    def rebuild(self, leaves: Sequence[Any]) -> Any:
        """Return the nest with these leaves, taken in order."""
        return self.take_leaves(iter(leaves))

    def take_leaves(self, leaves: Iterator[Any]) -> Any:
        """Return the nest with the next leaves of an iterator."""
        if self.kind == "leaf":
            return next(leaves)
        if self.kind == "nothing":
            return None
        values = [child.take_leaves(leaves) for child in self.children]
        return dict(zip(self.keys, values, strict=True)) if self.kind == "dict" else tuple(values)

    def take(self, value: Any, name: str) -> list[Any]:
        """Return the leaves of a nest that has this structure; a missing one is None.

        Parameters
        ----------
        value : object
            The nest, as a user's function returned it.
        name : str
            How to call it in an error.
        """
        if self.kind == "leaf":
            return [value]
        if self.kind == "nothing":
            return []
        if value is None:
            return [None] * self.n_leaves
        if self.kind == "dict":
            if not isinstance(value, dict):
                raise TypeError(
                    f"{name} should be a dict with the keys {list(self.keys)}, but "
                    f"is {type(value).__name__}"
                )
            if unknown := [key for key in value if key not in self.keys]:
                raise TypeError(
                    f"{name} has the keys {unknown}, which are not among {list(self.keys)}"
                )
            items = [value.get(key) for key in self.keys]
            names = [f"{name}[{key!r}]" for key in self.keys]
        else:
            if not isinstance(value, (tuple, list)) or len(value) != len(self.children):
                raise TypeError(
                    f"{name} should be a tuple of {len(self.children)} entries, but "
                    f"is {value!r:.80}"
                )
            items, names = list(value), [f"{name}[{i}]" for i in range(len(value))]
        return [
            leaf
            for child, item, label in zip(self.children, items, names, strict=True)
            for leaf in child.take(item, label)
        ]

    @property
    def n_leaves(self) -> int:
        """The number of leaves."""
        return 1 if self.kind == "leaf" else sum(child.n_leaves for child in self.children)


LEAF = Structure("leaf")
NOTHING = Structure("nothing")


def flatten(
    value: Any, name: str, is_leaf: Callable[[Any], bool] = lambda _: False
) -> tuple[list[tuple[str, Any]], Structure]:
    """Take a nest of dicts and tuples apart.

    Parameters
    ----------
    value : object
        A leaf, a dict or tuple of nests, or None (no leaf at all).
    name : str
        How the user wrote it; leaves are named from it, as in ``theta['ka']``.
    is_leaf : callable
        Says of a dict or tuple that it is to stay whole.

    Returns
    -------
    leaves : list of (name, leaf)
    structure : Structure

    Examples
    --------
    >>> leaves, structure = flatten({"a": 1, "b": (2, 3)}, "theta")
    >>> leaves
    [("theta['a']", 1), ("theta['b'][0]", 2), ("theta['b'][1]", 3)]
    >>> structure.rebuild([10, 20, 30])
    {'a': 10, 'b': (20, 30)}
    """
    if value is None:
        return [], NOTHING
    if isinstance(value, dict) and not is_leaf(value):
        pairs = [(key, f"{name}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, tuple) and not is_leaf(value):
        pairs = [(i, f"{name}[{i}]", item) for i, item in enumerate(value)]
    else:
        return [(name, value)], LEAF
    parts = [flatten(item, label, is_leaf) for _, label, item in pairs]
    leaves = [leaf for part, _ in parts for leaf in part]
    kind = "dict" if isinstance(value, dict) else "tuple"
    return leaves, Structure(
        kind, tuple(key for key, _, _ in pairs), tuple(structure for _, structure in parts)
    )
