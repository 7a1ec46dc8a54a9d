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

    def register(self, build):
        """Decorator: register `build` under the name of the file that defines it."""
        path = Path(inspect.getfile(build)).resolve()
        known = self._builds.get(path.stem)
        if known is not None and Path(inspect.getfile(known)).resolve() != path:
            raise ZooError(
                f"{self.kind} {path.stem!r} is registered twice: {known.__module__} and {path}"
            )
        self._builds[path.stem] = build
        return build

    def names(self):
        """Sorted names of everything registered."""
        for module in pkgutil.iter_modules(sys.modules[self.package].__path__):
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

    def check_options(self, name, build, options, skip=0):
        """Refuse options that `build` does not take; its first `skip` arguments are not options."""
        known = list(inspect.signature(build).parameters)[skip:]
        for option in options:
            if option not in known:
                if not known:
                    raise ZooError(f"{self.kind} {name!r} takes no options, got {option!r}")
                raise unknown(f"option of {self.kind} {name!r}:", option, known)

    def _from_file(self, path):
        require(path.is_file(), f"no such file: {path}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        with explained(f"{path} cannot be imported"):
            spec.loader.exec_module(module)
        build = self._builds.get(path.stem)
        if build is None or Path(inspect.getfile(build)).resolve() != path:
            raise ZooError(f"{path} registers no {self.kind}; decorate its `build` with @register")
        return build
