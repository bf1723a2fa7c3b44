"""What jaxtyping checks signatures with."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

# As everywhere in Python's typing, an int will do for a float.
_CHECKED = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable) -> Callable:
    """Checks calls of a function whose signature gives shapes, but not the fields of a dataclass.

    JAX rebuilds dataclasses with shardings, shapes or None in place of arrays.
    """
    promises = any("jaxtyping." in repr(hint) for hint in function.__annotations__.values())
    return _CHECKED(function) if promises and function.__name__ != "__init__" else function
