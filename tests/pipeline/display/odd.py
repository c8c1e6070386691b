"""Provide hostile names that could control a terminal or a page, and checks that they do not."""

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


EVERY = " ".join(NAMES.values())  # all names in one, for slow tests


LEFT = set("\n\t")


def inert(text):
    """Whether a text has no character that controls a terminal or the direction of reading."""
    text.encode()
    return all(c.isprintable() or c in LEFT for c in text)


class Skeleton(html.parser.HTMLParser):
    """The text of a page, and its tags with the names of their attributes.

    Figures are reduced to the set of their tags, because the number of axis labels varies.
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
    """Check that a page has the same tags as with a harmless name, and shows the name as text."""
    page, harmless = Skeleton(made(name)), Skeleton(made("harmless"))
    assert page.tags == harmless.tags
    assert page.drawn <= harmless.drawn | {"use"}
    assert inert(made(name))
    assert visible(name).strip() in page.text or line(name) in page.text
