"""Builds the site: the stored notebooks as chapters, a page for each module from its docstrings and docments, search, formulas; nothing is fetched when it is read.

    python tools/docs.py [FOLDER]     default _docs

Sphinx with MyST-NB and the book theme, the parts of which Jupyter Book 1 is made. Chapters are not run: their stored outputs are shown. A broken link, an unknown name or any other warning fails the build.
"""
import ast
import importlib
import inspect
import os
import re
import shutil
import sys
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import nbformat
from fastcore.docments import docments
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))
from notebooks import ROOT, Visible, chapters

SOURCES = ROOT / "build" / "docs"
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(?=\))")   # ](target) and ](target#anchor), not ](https://...)
CODE = re.compile(r"(?<![`\w\[])`([A-Za-z_][\w.]*)(\(\))?`(?![`\]])")

STYLE = """
html[data-theme=light] { --pst-color-primary: #0f5e9c; --pst-color-link: #0f5e9c; }
.bd-main .bd-content .bd-article-container .bd-article img { height: auto; max-width: 100%; }
.bd-article table { display: block; max-width: 100%; overflow-x: auto; width: max-content; }
.bd-article div.math, .bd-article div.output, .bd-article mjx-container[display=true] { overflow-x: auto; overflow-y: hidden; }
.bd-main .bd-content .bd-article-container { max-width: 72rem; }
.bd-article pre { font-size: .8em; }
.bd-article h1, .bd-article h2, .bd-article h3, .bd-article p, .bd-article li, .bd-article dt { overflow-wrap: anywhere; }
.bd-article th p, .bd-article td p { overflow-wrap: normal; }
.bd-article th, .bd-article td { min-width: 4.5rem; }
.bd-article dt.sig .pre { white-space: normal; overflow-wrap: anywhere; }
.bd-article dl.py { border-top: 1px solid var(--pst-color-border); padding-top: .6rem; }
.bd-article dl.py dl.py { border-top: 0; padding-top: 0; }
"""
ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><g fill-opacity=".75"><circle cx="11.5" cy="16" r="10.5" fill="#0f5e9c"/><circle cx="20.5" cy="16" r="10.5" fill="#e8883a"/></g></svg>"""


def public_names(path):
    "Of one module: its docstring and {public name: (statement, comment on its line)} in the order of the source."
    source = path.read_text()
    tree, lines = ast.parse(source), source.splitlines()
    named = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): named[node.name] = node
        elif isinstance(node, ast.Assign): named.update({target.id: node for target in node.targets if isinstance(target, ast.Name)})
    exported = {element.value for element in named["__all__"].value.elts}
    comment = lambda node: re.search(r"\s#\s(.*)$", lines[node.lineno - 1] if isinstance(node, ast.Assign) else "")
    return ast.get_docstring(tree), {name: (node, found[1] if (found := comment(node)) else "") for name, node in named.items() if name in exported}


class Names:
    "Which `name` in a text is which object: {written form: full name}, ambiguous ones left out."
    def __init__(self, modules):
        self.full = {}
        for module, (_, names) in modules.items():
            for name in names:
                self.full[f"{module}.{name}"] = f"{module}.{name}"
                self.full[name] = None if name in self.full else f"{module}.{name}"
        self.modules = modules
        for name, module in importlib.import_module("film")._PUBLIC.items(): self.full[f"film.{name}"] = f"{module}.{name}" if module in modules and name in modules[module][1] else None

    def find(self, name, called=False, module=None):
        "The full name, or None. Short lower-case words are names only when they are called: `train` may be a split."
        if "." not in name and not called and (name == name.lower() and "_" not in name): return None
        if module and name in self.modules[module][1]: return f"{module}.{name}"
        return self.full.get(name)


def rst(text, names, module):
    "A docstring (plain words, `code`, *titles*) as reStructuredText: formulas keep their stars and bars, public names become links."
    parts = re.split(r"(`[^`\n]+`)", text)
    for i, part in enumerate(parts):
        if i % 2:
            full = names.find(part.strip("`").removesuffix("()"), True, module)
            parts[i] = f":py:obj:`{part[1:-1]} <{full}>`" if full else f"``{part[1:-1]}``"
            if parts[i - 1][-1:].isalnum(): parts[i] = "\\ " + parts[i]
        else:
            part = re.sub(r"([\\|_]|:(?=//(?:127|localhost)))", r"\\\1", part)
            parts[i] = re.sub(r"(?<![\w*])(\*\w[^*\n]*\w\*)(?![\w*])|\*", lambda found: found[1] or r"\*", part)
            if i and parts[i][:1].isalnum(): parts[i] = "\\ " + parts[i]
    return "".join(parts)


def documented(app, what, name, obj, options, lines):
    "Docstring -> reStructuredText, docments -> one line for each parameter (autodoc adds the types)."
    names, module = app.film_names, ".".join(name.split(".")[:2])
    lines[:] = rst("\n".join(lines), names, module).splitlines()
    if what not in ("function", "method", "class", "exception"): return
    try: comments = docments(inspect.unwrap(obj), full=True)
    except (TypeError, ValueError, KeyError, OSError): return
    fields = getattr(obj, "__dataclass_fields__", {})
    told = {}
    for parameter, facts in comments.items():
        text = facts.get("docment") or (fields[parameter].metadata.get("help") if parameter in fields else None)
        if text: told[parameter] = rst(" ".join(text.split()), names, module)
    back = told.pop("return", None)
    if told or back: lines += ["", *(f":param {parameter}: {text}" for parameter, text in told.items() if parameter != "self"), *([f":return: {back}"] if back else []), ""]


def module_page(module, doc, names, chapter, all_names):
    "The page of one module, each public name in the order of its chapter."
    out = [module, "=" * len(module), "", f"*{rst(doc, all_names, module)}*" if "`" not in doc else rst(doc, all_names, module), "", f"Written in :doc:`/nbs/{chapter}`.", "", f".. py:module:: {module}", ""]
    for name, (node, comment) in names.items():
        if isinstance(node, ast.FunctionDef): out += [f".. autofunction:: {module}.{name}", ""]
        elif isinstance(node, ast.ClassDef): out += [f".. autoclass:: {module}.{name}", "   :members:", "   :member-order: bysource", ""]
        elif comment:
            value = ast.unparse(node.value)
            out += [f".. py:data:: {name}", *([f"   :value: {value}"] if len(value) < 80 else []), "", f"   {rst(comment, all_names, module)}", ""]
    return "\n".join(out)


def shell(cell):
    "A cell of shell commands as the commands, highlighted as such, and its output; any other cell as it is."
    if cell.cell_type != "code" or not cell.source.startswith("%%sh\n"): return [cell]
    commands = nbformat.v4.new_markdown_cell("```sh\n" + cell.source.removeprefix("%%sh\n") + "\n```")
    cell.metadata["tags"] = ["remove-input"]
    return [commands, cell]


def copy_linked(text, home, pages, top=False):
    "Copies what a text links to; returns the text as it reads from its new place (the index moves to the top)."
    def follow(found):
        target = (home / found[2]).resolve()
        if not target.exists(): raise SystemExit(f"{home.relative_to(ROOT)}: a link to {found[2]}, which is not there")
        inside = target.relative_to(ROOT)
        if target.suffix == ".md" and inside not in pages:
            pages.append(inside)
            place(inside, copy_linked(target.read_text(), target.parent, pages))
        elif target.suffix in (".png", ".jpg", ".svg"): (SOURCES / inside).parent.mkdir(parents=True, exist_ok=True), shutil.copy(target, SOURCES / inside)
        return found[1] + (str(inside) if top else os.path.relpath(target, home)) + (found[3] or "")
    return LINK.sub(follow, text)


def place(path, text):
    (SOURCES / path).parent.mkdir(parents=True, exist_ok=True)
    (SOURCES / path).write_text(text, encoding="utf-8")


def prepare():
    "build/docs: chapters without directives and hidden cells, a page a module, linked files; returns the names that can be linked to."
    shutil.rmtree(SOURCES, ignore_errors=True)
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    books = [path for path in chapters() if path.stem != "index"]
    source = {}  # module -> chapter
    for path in books:
        found = re.search(r"^#\|\s*default_exp\s+(\w+)", "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells), re.M)
        if found: source[f"film.{found[1]}"] = path.stem
    modules = {module: public_names(ROOT / f"{module.replace('.', '/')}.py") for module in source}
    names, pages = Names(modules), []
    for path in [*books, ROOT / "nbs" / "index.ipynb"]:
        nb, _ = Visible().preprocess(nbformat.read(path, as_version=4), {})
        module = next((module for module, chapter in source.items() if chapter == path.stem), None)
        def linked(found): return f"{{py:obj}}`{found[1]}{found[2] or ''} <{full}>`" if (full := names.find(found[1], bool(found[2]), module)) else found[0]
        nb.cells = [part for cell in nb.cells for part in shell(cell)]
        for cell in nb.cells:
            if cell.cell_type != "markdown": continue
            parts = re.split(r"(^```.*?^```)", cell.source, flags=re.M | re.S)
            parts[::2] = [copy_linked(CODE.sub(linked, part), path.parent, pages, top=path.stem == "index") for part in parts[::2]]
            cell.source = "".join(parts)
        if path.stem == "index":
            listing = lambda caption, entries: f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(map(str, entries)) + "\n```"
            nb.cells.append(nbformat.v4.new_markdown_cell("\n\n".join([listing("Chapters", [f"nbs/{path.stem}" for path in books]), listing("Library", [f"api/{module}" for module in modules]),
                                                                       *([listing("More", pages)] if pages else [])])))
        place("index.ipynb" if path.stem == "index" else path.relative_to(ROOT), nbformat.writes(nb))
    for module, (doc, members) in modules.items(): place(f"api/{module}.rst", module_page(module, doc, members, source[module], names))
    place("_static/film.css", STYLE)
    place("_static/icon.svg", ICON)
    mathjax = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax" / "tex-svg.js"
    shutil.copy(mathjax, SOURCES / "_static")  # one file, its fonts inside
    return names, config["DEFAULT"]


def build(folder=ROOT / "_docs"):
    "The site in `folder`, which is replaced when all went well; returns Sphinx's status, 0 if nothing was amiss."
    names, settings = prepare()
    made = ROOT / "build" / "site"
    shutil.rmtree(made, ignore_errors=True)
    options = dict(
        project="film", author=settings["author"], copyright=settings["copyright"], version=settings["version"], release=settings["version"],
        extensions=["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode", "sphinx_copybutton", "sphinx_book_theme"],
        nb_execution_mode="off", nb_merge_streams=True, nb_ipywidgets_js={}, myst_enable_extensions=["dollarmath"], myst_heading_anchors=3,
        mathjax_path="tex-svg.js", autodoc_typehints="description", autodoc_typehints_description_target="documented_params", autodoc_typehints_format="short", autodoc_preserve_defaults=True, autodoc_inherit_docstrings=False,
        add_module_names=False, toc_object_entries_show_parents="hide", maximum_signature_line_length=100, python_use_unqualified_type_names=True, nitpicky=False,
        html_theme="sphinx_book_theme", html_title="film", html_favicon="_static/icon.svg", html_static_path=["_static"], html_css_files=["film.css"], html_copy_source=False,
        html_show_sphinx=False, smartquotes_action="D", html_context=dict(default_mode="auto"), html_theme_options=dict(home_page_in_toc=False, use_download_button=False, show_toc_level=2, navigation_with_keys=False, navbar_persistent=[]),
    )
    app = Sphinx(SOURCES, None, made, ROOT / "build" / "doctrees", "html", confoverrides=options, status=None, warningiserror=True, freshenv=True)
    app.film_names = names
    app.connect("autodoc-process-docstring", documented)
    app.build()
    if not app.statuscode:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(made, folder)
    return app.statuscode


if __name__ == "__main__":
    folder = Path(sys.argv[1]).resolve() if sys.argv[1:] else ROOT / "_docs"
    status = build(folder)
    if not status: print(f"{sum(1 for _ in folder.rglob('*.html'))} pages: {os.path.relpath(folder / 'index.html')}")
    sys.exit(status)
