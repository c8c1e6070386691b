"""Names from outside that a terminal or a page would obey, and whether one did."""

import html.parser

from pipeline.display.outside import line, visible

NAMES = {
    "script": "<script>alert(1)</script>",
    "attribute": "\"'><img src=x onerror=alert(1)>",
    "comment": "<!-- </pre></table></style></title> ]]>",
    "entity": "&lt;b&gt; &#x3c;i>",
    "template": "{{ 7 * 7 }} {% raw %} {# x #}",
    "link": "[a](javascript:alert(1)) ![b](http://x/y.png) <http://x>",
    "cell": "a | b || `c` ``d`` ~~e~~ \\| \\",
    "emphasis": "**a** __b__ # c $d$ :smile:",
    "markup": "[red]a[/red] [/] [bold [link=http://x]b \\[c]",
    "title": "\x1b]0;mine\x07a",
    "colour": "\x1b[2J\x1b[31ma\x9b1mb\x08\x7f",
    "line": "a\rb\nc\r\nd\x0b\x0ce\u2028f\x85g",
    "direction": "a\u202egnp.exe\u202c\u2066b\u200f\u061c",
    "hidden": "a\u200b\ufeff\u00ad\U000e0041b\x00",
    "bytes": "caf\udce9",
}


EVERY = " ".join(NAMES.values())  # for what takes long


LEFT = set("\n\t")


def inert(text):
    """Whether nothing in a text is obeyed by a terminal, or turns the direction of reading."""
    text.encode()
    return all(c.isprintable() or c in LEFT for c in text)


class Skeleton(html.parser.HTMLParser):
    """The tags of a page with the names of their attributes, and its text.

    Of figures only which there are, for their axes depend on what fits.
    """

    def __init__(self, text):
        super().__init__()
        self.tags, self.drawn, self.text, self.figure = [], set(), "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = (tag, [key for key, _ in attributes])
        self.figure |= tag == "svg"
        self.drawn.add(tag) if self.figure else self.tags.append(found)

    def handle_endtag(self, tag):
        self.figure &= tag != "svg"

    def handle_data(self, data):
        self.text += data


def same(made, name):
    """Whether a page has the tags of one with a harmless name, and shows the name as text."""
    page, harmless = Skeleton(made(name)), Skeleton(made("harmless"))
    assert page.tags == harmless.tags
    assert page.drawn <= harmless.drawn | {"use"}
    assert inert(made(name))
    assert visible(name).strip() in page.text or line(name) in page.text
