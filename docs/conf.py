"""How ``make docs`` builds the site: Sphinx, its pages in MyST Markdown, its tutorials run."""

import inspect
import os
import pathlib
import re
import sys

from sphinx.domains.python import PyObject
from sphinx.util.inspect import stringify_signature

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# The tutorials' own processes find the library and the configs by it.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

import awp_jax  # noqa: E402
from awp_jax.words import KnownNames  # noqa: E402

project = "awp_jax"
author = "awp_jax contributors"
project_copyright = "awp_jax contributors"
version = release = awp_jax.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
# "norm" is an attribute of many classes, and a word of their docstrings.
suppress_warnings = ["ref.python"]

# Pages. Headings have anchors, so that links to "page.md#heading" work here as on GitHub.
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

# Tutorials run from an empty folder each time something in them has changed.
nb_execution_mode = "cache"
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

# Docstrings: Google's form, in reStructuredText.
autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
autodoc_typehints = "none"  # docstrings give shapes and units
default_role = "code"
autodoc_default_options = {"members": True, "imported-members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "awp_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


# Napoleon calls them variables; here and in the code they are attributes.
for field in PyObject.doc_field_types:
    if field.name == "variable":
        field.label = "Attributes"


def ours(value):
    """Whether a member of a package is this library's, not something that it imports."""
    module = getattr(value, "__module__", "") or ""
    return module.startswith("awp_jax.") and (inspect.isclass(value) or inspect.isroutine(value))


def skip(app, what, name, value, skipped, options):
    """Leaves out what a package only imports, and what named tuples say of their own fields."""
    if what == "module":
        return None if ours(value) and not name.startswith("_") else True
    return True if type(value).__name__ == "_tuplegetter" else None


def contents(app, what, name, value, options, lines):
    """Gives a package's page a table of what there is, a line each."""
    if what == "module":
        names = [n for n, v in sorted(vars(value).items()) if ours(v) and not n.startswith("_")]
        if len(names) > 3:
            lines += ["", ".. list-table::", "   :widths: 30 70", ""]
            for public in names:
                first = inspect.getdoc(getattr(value, public)).split("\n")[0]
                lines += [f"   * - :py:obj:`~{name}.{public}`", f"     - {first}"]
            lines.append("")
    # "epsilon, steps: ..." would be read as a name and its type.
    together = re.compile(r"^( *)((?:\*{0,2}\w+, )+\*{0,2}\w+): ")
    for i, line in enumerate(lines):
        lines[i] = together.sub(lambda m: f"{m[1]}{m[2].replace(', ', ',')}: ", line)


def signature(app, what, name, value, options, arguments, returned):
    """Shows the fields of dataclasses whose ``__new__`` takes anything."""
    if what == "class" and issubclass(value, KnownNames):
        return stringify_signature(inspect.signature(value), show_annotation=False), None
    return None


def setup(app):
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", contents, priority=100)  # before Napoleon
    app.connect("autodoc-process-signature", signature)
