"""Names under which Hydra takes what pancseg adds to it."""

import sys
from importlib import import_module
from types import ModuleType

from hydra.core.plugins import Plugins

NAMESPACE = "hydra_plugins"


def make_known(plugin: type) -> None:
    """Make a sweeper or launcher known to Hydra as ``hydra_plugins.pancseg.<its name>``.

    Hydra takes them of that namespace alone, and imports all that lies in it at each start of each
    command; so the name is made here, where it may be asked for.
    """
    try:
        import_module(NAMESPACE)
    except ImportError:  # no plugin is installed
        sys.modules[NAMESPACE] = ModuleType(NAMESPACE)
        sys.modules[NAMESPACE].__path__ = []
    name = f"{NAMESPACE}.pancseg"
    setattr(sys.modules.setdefault(name, ModuleType(name)), plugin.__name__, plugin)
    plugin.__module__ = name
    Plugins.instance().register(plugin)
