"Packaging of film; every fact comes from settings.ini."
import platform
from configparser import ConfigParser
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]

extras = {name: settings[f"{name}_requirements"].split() for name in ("text", "train", "export", "notebooks", "docs", "dev")}
extras["dev"] = sorted({requirement for group in extras.values() for requirement in group})  # dev: all of them


class BuildKernels(build_ext):
    "The native kernels of film.fast: the arithmetic once for each instruction set, csrc/film.cpp chooses when it runs."
    def build_extension(self, ext):
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        sets = [("plain", "plain", [])] + [("avx2", "AVX2", ["-mavx2", "-mfma"]), ("avx512", "AVX-512", ["-mavx512f", "-mfma"])] * x86
        flags = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wno-psabi", "-g0"]
        objects = self.compiler.compile(["csrc/film.cpp"], self.build_temp, [("FILM_X86", "1")] if x86 else [], extra_postargs=flags)
        for key, name, instructions in sets:
            objects += self.compiler.compile(["csrc/kernels.cpp", "csrc/gradients.cpp"], f"{self.build_temp}/{key}",
                                             [("FILM_SET", key), ("FILM_NAME", f'"{name}"')], extra_postargs=flags + instructions)
        self.compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), extra_postargs=["-pthread"], target_lang="c++")


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license="Apache-2.0",
    keywords=settings["keywords"],
    python_requires=f">={settings['min_python']}",
    packages=find_packages(include=["film", "film.*"]),
    package_data={"film": ["py.typed", "weights/*", *(f"weights/*/{name}" for name in ("config.json", "model.safetensors", "settings.json", "README.md")), "stages/*"]},  # logs and histories stay in the repository
    # optional: without a C++ compiler nothing is built and film.fast uses torch
    ext_modules=[Extension("film._native", ["csrc/film.cpp", "csrc/kernels.cpp", "csrc/gradients.cpp"], depends=["csrc/film.h", "csrc/vectors.h"], language="c++", optional=True)],
    cmdclass={"build_ext": BuildKernels},
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": settings["console_scripts"].split(), "nbdev": [f"{settings['lib_path']}={settings['lib_path']}._modidx:d"]},
    zip_safe=False,
)
