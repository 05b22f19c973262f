"""Making and changing the elements of the page, from Pyodide and MicroPython alike.

Text always goes in as text: nothing here, and nothing that uses this, ever parses HTML.
"""

from pyscript import document
from pyscript.ffi import create_proxy

SVG = "http://www.w3.org/2000/svg"


def find(id):
    """The element of that id."""
    return document.getElementById(id)


def make(tag, attributes=None, *children):
    """An element such as ``make("td", {"class": "number"}, "12")``; its children are elements and texts."""
    return _fill(document.createElement(tag), attributes, children)


def make_svg(tag, attributes=None, *children):
    """The same, for the inside of a drawing."""
    return _fill(document.createElementNS(SVG, tag), attributes, children)


def make_table(caption, heads, rows, numeric=()):
    """A table of texts and elements. The first cells name the rows; ``numeric`` holds the indexes of number columns."""

    def cell(index, content, scope):
        attributes = {"scope": scope} if scope else {}
        if index in numeric:
            attributes["class"] = "number"
        return make("th" if scope else "td", attributes, content)

    def line(row):
        cells = [cell(index, content, None if index else "row") for index, content in enumerate(row)]
        return make("tr", None, *cells)

    head = [cell(index, content, "col") for index, content in enumerate(heads)]
    body = [line(row) for row in rows]
    return make(
        "table",
        None,
        make("caption", {"class": "visually-hidden"}, caption),
        make("thead", None, make("tr", None, *head)),
        make("tbody", None, *body),
    )


def _fill(element, attributes, children):
    for name, value in (attributes or {}).items():
        element.setAttribute(name, str(value))
    if children:
        element.append(*children)
    return element


def write(id, text):
    """Set the text of the element of that id, if it is another one."""
    element = find(id)
    if element.textContent != text:
        element.textContent = text


def show(id, visible=True):
    """Show or hide the element of that id."""
    find(id).hidden = not visible


def listen(element, kind, handler):
    """Call ``handler(event)`` for every event of that kind."""
    element.addEventListener(kind, create_proxy(handler))
