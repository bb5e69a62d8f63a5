"""What a config chooses by name, and how a user's own modules add to it."""

import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import NoReturn, TypeVar, cast

from smallobj_d2.errors import SmallObjError

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., object])


class Registry(dict[str, T]):
    """Things that a config chooses by name.

    Args:
        kind: what they are, for messages: "strategy".
        key: the config key or flag that chooses one: "SMALLOBJ.STRATEGY".
    """

    def __init__(self, kind: str, key: str) -> None:
        super().__init__()
        self.kind, self.key = kind, key

    def add(self, name: str, thing: T) -> None:
        """Add a thing.

        Raises:
            SmallObjError: if the name is taken.
        """
        if name in self:
            raise SmallObjError(f"There is a {self.kind} {name!r} already; choose another name.")
        self[name] = thing

    def register(self, name: str | None = None) -> Callable[[F], F]:
        """A decorator that adds what it decorates, under its own name unless another is given."""

        def decorate(thing: F) -> F:
            self.add(name or thing.__name__, cast(T, thing))
            return thing

        return decorate

    def __missing__(self, name: str) -> NoReturn:
        """Refuse a name that there is not, and list those that there are."""
        raise SmallObjError(
            f"{self.key} is {name!r}, but there is no {self.kind} of that name; there are: "
            f"{', '.join(sorted(self))}. A module that adds one belongs in SMALLOBJ.IMPORTS."
        )


def import_modules(names: Iterable[str]) -> None:
    """Import what ``SMALLOBJ.IMPORTS`` lists, so that it can register what it adds.

    The folder of a file is put at the end of Python's search path, where spawned processes find it,
    too. What is imported already is left alone.

    Args:
        names: names of modules, or paths of ``.py`` files.

    Raises:
        SmallObjError: if one cannot be imported, or has the name of another module.
    """
    for name in names:
        path = Path(name).expanduser().resolve() if name.endswith(".py") else None
        if path and str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        try:
            module = import_module(path.stem if path else name)
        except SmallObjError:
            raise
        except Exception as e:
            what = " ".join(f"{type(e).__name__}: {e}".split())
            raise SmallObjError(f"SMALLOBJ.IMPORTS: {name} cannot be imported ({what}).") from e
        if path and Path(module.__file__ or "").resolve() != path:
            raise SmallObjError(
                f"SMALLOBJ.IMPORTS: {name} has the name of another module, "
                f"{module.__file__ or module.__name__}. Rename the file."
            )
