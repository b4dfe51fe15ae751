"""Things by name: those of this package, those that register themselves, and any other as `package.module:Name`."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name: the nearest of the known ones, or all of them where none is near.

    For a key that sections have, such as `seed` for `data.seed`, the keys of the sections are the nearest.
    """
    names = list(known)
    close = [one for one in names if one.endswith(f".{name}")] or get_close_matches(name, names, n=1, cutoff=0.4)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"known are {', '.join(names)}"


class UntrustedError(ValueError):
    """Something would run code that was not asked for; the message says how to allow it."""


class Registry(Generic[T]):
    """Things of one kind by name.

    Args:
        kind: what they are, for messages: "head".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that gives a thing a name; raises ValueError where something else has it."""

        def add(thing: T) -> T:
            there = self._things.get(name)
            # A module that is reloaded, or a notebook cell that is run again, registers the same thing again.
            if there is not None and _place(there) != _place(thing):
                raise ValueError(f"there is a {self.kind} called {name!r} already")
            self._things[name] = thing
            return thing

        return add

    def check(self, name: Any, option: str, *, listed: Iterable[str] | None = None) -> None:
        """Raises ValueError for a value that cannot be the name of such a thing; nothing is imported.

        Args:
            name: a name, or `package.module:Name`.
            option: the option that has this value, for the message.
            listed: the names that the message lists, where others do not suit; all when None.
        """
        if not isinstance(name, str) or (name not in self._things and not _is_path(name)):
            known = ", ".join(self._things if listed is None else listed)
            raise ValueError(
                f"{option} must be one of {known}, or one of your own as package.module:Name, got {name!r}"
            )

    def find(self, name: str) -> T:
        """The thing with a name; `package.module:Name` is imported.

        Raises:
            ValueError: there is none.
            ImportError: the module cannot be imported.
        """
        if name in self._things:
            return self._things[name]
        if not _is_path(name):
            raise ValueError(f"unknown {self.kind} {name!r}; {did_you_mean(name, self._things)}")
        module, _, attribute = name.partition(":")
        try:
            thing: Any = importlib.import_module(module)
        except ImportError as error:
            raise ImportError(
                f"the {self.kind} {name} cannot be imported: {error}. Its module must be installed, or lie in a folder "
                "of PYTHONPATH"
            ) from error
        for part in attribute.split("."):
            if not hasattr(thing, part):
                raise ValueError(f"{module} has no {attribute}, so there is no {self.kind} {name}")
            thing = getattr(thing, part)
        found: T = thing
        return found

    def check_trusted(self, name: str, trust: str | Iterable[str] = ()) -> None:
        """Raises UntrustedError where a name from a file would run code that was not asked for.

        Registered names are known, and so are the paths of registered things. That a module has been imported is not
        enough: `subprocess` has been, too.

        Args:
            name: as the file has it.
            trust: packages or modules whose code may run.
        """
        if not _is_path(name) or self._registered(name) is not None:
            return
        module = name.partition(":")[0]
        trusted = [trust] if isinstance(trust, str) else list(trust)
        if not any(module == one or module.startswith(f"{one}.") for one in trusted):
            packages = [*trusted, module.partition(".")[0]]
            raise UntrustedError(
                f"the {self.kind} {name} is code that does not belong to this package, and using it would run this "
                f"code: allow it with trust={packages if trusted else packages[0]!r} (--trust {' '.join(packages)}), "
                "or register it first"
            )

    def find_trusted(self, name: str, trust: str | Iterable[str] = ()) -> T:
        """As `find`, for a name from a file.

        Raises:
            UntrustedError: as `check_trusted`, or the module only imported the thing from elsewhere.
            ValueError, ImportError: as `find`.
        """
        self.check_trusted(name, trust)
        found = self._registered(name)
        if found is not None:
            return found
        found = self.find(name)
        module = name.partition(":")[0]
        if _is_path(name) and getattr(found, "__module__", "").partition(".")[0] != module.partition(".")[0]:
            raise UntrustedError(f"{name} is not of {module}, but of {getattr(found, '__module__', 'elsewhere')}")
        return found

    def _registered(self, path: str) -> T | None:
        """The thing that is defined at a path, where it has registered itself."""
        return next((thing for thing in self._things.values() if _place(thing) == path), None)


def path_of(thing: Any, kind: str) -> str:
    """`package.module:Name` of a class or function, by which `Registry.find` gives it back.

    Args:
        thing: the class or function.
        kind: what it is, for the message.

    Raises:
        ValueError: it cannot be found again, since it was defined in a function or in a script.
    """
    if thing.__module__ == "__main__" or "<" in thing.__qualname__:
        raise ValueError(
            f"the {kind} {thing.__qualname__} cannot be found again by its name: define it at the top of a module that "
            "can be imported"
        )
    return f"{thing.__module__}:{thing.__qualname__}"


def _place(thing: Any) -> str:
    """Where a class or function is defined, as `path_of`; for other things, a text that tells them apart."""
    return f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', id(thing))}"


def _is_path(name: str) -> bool:
    module, colon, attribute = name.partition(":")
    words = [*module.split("."), *attribute.split(".")]
    return bool(colon) and all(word.isidentifier() for word in words)
