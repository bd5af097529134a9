"""Chat templates in Jinja: what they write around messages, and what of it people wrote.

A template is rendered once with a placeholder for each message, for each sequence of roles, and cut
at these. Each conversation is checked: a template may not change its messages, but for white space
at their ends. Imports no TensorFlow.
"""

import datetime
import functools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

Messages = Sequence[tuple[str, str]]  # role and content

_PLACEHOLDER = "\ufdd0{}\ufdd1"  # noncharacters, which no template writes
_PLACE = re.compile("\ufdd0([0-9]+)\ufdd1")
_SHOWN = 60  # characters of a template or message in errors


class Layout(NamedTuple):
    """What a template writes around messages.

    Attributes:
        around: before, between and behind the messages.
        order: which message stands in each gap.
    """

    around: tuple[str, ...]
    order: tuple[int, ...]


class ChatTemplate:
    """A template that is rendered as transformers does, in a sandbox."""

    def __init__(self, source: str, special: dict[str, str]):
        """Compiles the template.

        Args:
            source: Jinja.
            special: what it may name beside the messages: 'bos_token', 'eos_token', ...

        Raises:
            ValueError: it is no Jinja.
        """
        self._source, self._special = source, special
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise self._error(f"is no Jinja ({error}): correct it") from None
        self.layout = functools.cache(self._layout)

    def _layout(self, roles: tuple[str, ...]) -> Layout:
        """Returns what stands around messages of these roles; cached as `layout`."""
        places = [(role, _PLACEHOLDER.format(i)) for i, role in enumerate(roles)]
        parts = _PLACE.split(self._render(places))
        layout = Layout(tuple(parts[::2]), tuple(map(int, parts[1::2])))
        if layout.order[-1:] != (len(roles) - 1,):
            raise self._error(
                f"leaves out the last of the messages {', '.join(roles)}: use one that writes all"
            )
        return layout

    def contents(self, messages: Messages) -> list[str]:
        """Returns what stands in each gap of the layout: the messages, white space removed or not.

        Raises:
            ValueError: the template refuses these messages, or changes them otherwise.
        """
        around, order = self.layout(tuple(role for role, _ in messages))
        rendered, place, contents = self._render(messages), len(around[0]), []
        for message, after in zip(order, around[1:], strict=True):
            content = messages[message][1]
            forms = (content, content.strip(), content.lstrip(), content.rstrip())
            form = next((f for f in forms if rendered.startswith(f + after, place)), None)
            if form is None:
                break
            contents.append(form)
            place += len(form) + len(after)
        is_whole = len(contents) == len(order) and place == len(rendered)
        if not is_whole or not rendered.startswith(around[0]):
            content = messages[order[min(len(contents), len(order) - 1)]][1]
            raise self._error(
                f"changes what a message says ({content[:_SHOWN]!r}), so that its place is "
                "unknown: use another template, or change the message"
            )
        return contents

    def _render(self, messages: Messages) -> str:
        rows = [{"role": role, "content": content} for role, content in messages]
        try:
            return self._template.render(
                messages=rows, add_generation_prompt=False, tools=None, **self._special
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            roles = ", ".join(role for role, _ in messages)
            raise self._error(f"refuses messages of {roles}: {error}") from None

    def _error(self, what: str) -> ValueError:
        shown = self._source[:_SHOWN] + ("…" if len(self._source) > _SHOWN else "")
        return ValueError(f"config.generation.chat_template: the template {shown!r} {what}")


class _Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %} around answers, which mean nothing here."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Returns what stands between the tags."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    # Jinja's own escapes HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
