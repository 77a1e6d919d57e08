__version__ = "0.1.0"

# Public names are loaded on first use, so that `import film` and `film --help` do not wait for torch.
_PUBLIC = {
    "TASKS": "film.core", "FilmError": "film.core",
    "describe": "film.text", "encode": "film.encoding", "Film": "film.network", "fuse": "film.fusion", "load": "film.fusion", "metrics": "film.evaluation",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name):
    if name in _PUBLIC:
        from importlib import import_module
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'film' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_PUBLIC])
