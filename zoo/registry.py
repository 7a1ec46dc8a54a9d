"""A registry: the files of a package that call `register`, each under its file's name."""

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from pathlib import Path

from zoo.errors import ZooError, explained, require, unknown


class Registry:
    """Names to `build` functions; nothing is built until it is asked for."""

    def __init__(self, kind, package):
        self.kind = kind
        self.package = package
        self._builds = {}
        self._own = {}

    def register(self, build):
        """Decorator: register `build` under the name of the file that defines it.

        A file outside the package is known by its path alone.
        """
        path = Path(inspect.getfile(build)).resolve()
        if path.parent == self._folder():
            self._builds[path.stem] = build
            return build
        if path.stem in self.names():
            raise ZooError(
                f"{self.kind} {path.stem!r} is registered twice: in {self.package}, and by {path}"
            )
        self._own[path] = build
        return build

    def names(self):
        """Sorted names of everything registered."""
        for module in pkgutil.iter_modules([str(self._folder())]):
            if not module.ispkg and not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
        return sorted(self._builds)

    def find(self, name):
        """The `build` function of a name, or of a Python file given by its path."""
        if str(name).endswith(".py"):
            return self._from_file(Path(name).resolve())
        if name not in self.names():
            raise unknown(self.kind, name, self.names())
        return self._builds[name]

    def has_loaded(self, name):
        """Whether `name` is a Python file's path, loaded before, that registered something here."""
        return str(name).endswith(".py") and Path(name).resolve() in self._own

    def resolve(self, name, build, options, skip=0):
        """The options of `build` with its defaults written out.

        The first `skip` arguments of `build` are not options.  Raises ZooError for an option that
        it does not take.
        """
        parameters = list(inspect.signature(build).parameters.values())[skip:]
        known = [parameter.name for parameter in parameters]
        for option in options:
            if option not in known:
                if not known:
                    raise ZooError(f"{self.kind} {name!r} takes no options, got {option!r}")
                raise unknown(f"option of {self.kind} {name!r}:", option, known)
        return {p.name: p.default for p in parameters if p.default is not p.empty} | options

    def _from_file(self, path):
        require(path.is_file(), f"no such file: {path}")
        self._own.pop(path, None)
        spec = importlib.util.spec_from_file_location(f"zoo_file_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        before = sys.modules.get(spec.name)
        sys.modules[spec.name] = module  # where dataclasses and pickles look for its names
        try:
            with explained(f"{path} cannot be imported"):
                spec.loader.exec_module(module)
        except ZooError:
            sys.modules.pop(spec.name)
            if before is not None:
                sys.modules[spec.name] = before
            raise
        if path not in self._own:
            raise ZooError(f"{path} registers no {self.kind}; decorate its `build` with @register")
        return self._own[path]

    def _folder(self):
        return Path(sys.modules[self.package].__file__).resolve().parent
