__version__ = "0.1.0"

from typing import TYPE_CHECKING

# Public names are loaded on first use, so that `import film` and `film --help` do not wait for torch.
_PUBLIC = {
    "TASKS": "film.core", "FilmError": "film.core",
    "describe": "film.text", "encode": "film.encoding", "explore": "film.widgets", "Film": "film.network", "fuse": "film.fusion", "load": "film.fusion", "metrics": "film.evaluation",
    "widgets": "film.widgets",
}
__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:
    from . import widgets
    from .core import TASKS, FilmError
    from .encoding import encode
    from .evaluation import metrics
    from .fusion import fuse, load
    from .network import Film
    from .text import describe
    from .widgets import explore


def __getattr__(name):
    if name in _PUBLIC:
        from importlib import import_module
        module = import_module(_PUBLIC[name])
        return getattr(module, name, module)  # film.widgets is itself the module
    raise AttributeError(f"module 'film' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_PUBLIC])
