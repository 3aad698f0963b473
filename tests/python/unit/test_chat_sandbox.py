"""Chat templates without an end: what a template may not take of time, memory and output."""

import resource
import time

import pytest

from introspect import ConfigError
from introspect.chat import jinja_chat_template

MESSAGES = [{"role": "user", "content": "q" * 1000}, {"role": "assistant", "content": "a"}]


def looped(body, start="'x'"):
    return f"{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{body}{{% endfor %}}{{{{ ns.x }}}}"


BOMBS = {
    # loops
    "nested loops": "{% for i in range(30000) %}{% for j in range(30000) %}{% endfor %}{% endfor %}",
    "loops without a turn": "{% for i in range(30000) %}{% for j in range(30000) if false %}{% endfor %}{% endfor %}",
    "loops in filters": "{% for i in range(30000) %}{{ range(30000)|map('upper')|list|length }}{% endfor %}",
    "filters that choose": "{% for i in range(30000) %}{{ range(30000)|select('none')|list|length }}{% endfor %}",
    "macros": "{% macro m(n) %}{% for i in range(20) %}{{ m(n - 1) if n }}{% endfor %}{% endmacro %}{{ m(20) }}",
    # output
    "output": "{% for i in range(90000) %}{{ 'x' * 1000 }}{% endfor %}",
    "a long template": "x" * 2_000_000,
    # growth by doubling
    "joining": looped("{% set ns.x = ns.x ~ ns.x %}"),
    "adding": looped("{% set ns.x = ns.x + ns.x %}"),
    "blocks": looped("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "lists": looped("{% set ns.x = [ns.x, ns.x] %}"),
    "objects": looped("{% set ns.x = {'a': ns.x, 'b': ns.x} %}"),
    "dict()": looped("{% set ns.x = dict(a=ns.x, b=ns.x) %}"),
    "namespaces": looped("{% set ns.x = namespace(a=ns.x, b=ns.x) %}"),
    "numbers": looped("{% set ns.x = ns.x * ns.x %}", start="7"),
    # one step
    "indent of tojson": "{{ [[1]]|tojson(indent=3000000000)|length }}",
    "repeated text": "{{ ('x' * 3000000000)|length }}",
    "repeated list": "{{ ([1] * 3000000000)|length }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "ljust": "{{ 'x'.ljust(3000000000)|length }}",
    "zfill": "{{ 'x'.zfill(3000000000)|length }}",
    "expandtabs": "{{ '\t'.expandtabs(2000000000)|length }}",
    "center": "{{ 'x'|center(3000000000)|length }}",
    "center block": "{% filter center(3000000000) %}x{% endfilter %}",
    "format": "{{ '{:3000000000}'.format('x')|length }}",
    "format with a width that is an argument": "{{ '{:{}}'.format('x', 3000000000)|length }}",
    "format_map": "{{ '{a:3000000000}'.format_map({'a': 1})|length }}",
    "percent": "{{ ('%3000000000d' % 1)|length }}",
    "percent with a width that is an argument": "{{ ('%*d' % (2000000000, 1))|length }}",
    "filter format": "{{ '%3000000000d'|format(1)|length }}",
    "replace": "{% set s = 'x' * 1000000 %}{{ s.replace('x', s)|length }}",
    "filter replace": "{% set s = 'x' * 1000000 %}{{ s|replace('x', s)|length }}",
    "join": "{% set s = 'x' * 1000000 %}{{ s.join(s)|length }}",
    "filter join": "{% set s = 'x' * 1000000 %}{{ s|join(s)|length }}",
    "translate": "{% set s = 'x' * 1000000 %}{{ s.translate({120: s})|length }}",
    "filter indent": "{{ ('\n' * 100000)|indent(3000000000)|length }}",
    "filter wordwrap": "{{ ('x y ' * 100000)|wordwrap(1, wrapstring='x' * 1000000)|length }}",
    "filter batch": "{{ [1]|batch(3000000000, 'x')|list|length }}",
    "filter slice": "{{ [1]|slice(3000000000)|list|length }}",
    "sum of lists": "{% set l = [[1]] * 100000 %}{{ l|sum(start=[])|length }}",
    "to_bytes": "{{ (1).to_bytes(3000000000, 'big')|length }}",
    "parentheses": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_without_bounds_is_a_config_error_soon(name):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
    with pytest.raises(ConfigError, match=r"chat template: (TemplateTooLarge|RecursionError|MemoryError)"):
        jinja_chat_template(BOMBS[name]).render(MESSAGES)
    assert time.thread_time() - start < 15
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024  # KiB


ORDINARY = {
    "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ m.role.upper() if not loop.last }}{% endfor %}":
        "1/2USER2/2",
    "{% for m in messages|rejectattr('role', 'equalto', 'user')|list %}{{ m.content }}{% else %}-{% endfor %}": "a",
    "{% set n = namespace(n=0) %}{% for m in messages[::-1] %}{% set n.n = n.n + loop.index0 %}{% endfor %}{{ n.n }}":
        "1",
    "{% for a, b in {'x': 1, 'y': 2}.items() %}{{ a ~ '=' ~ b }};{% endfor %}": "x=1;y=2;",
    "{{ [1, 'é', {'a': None}]|tojson }} {{ {'a': [1]}|tojson(indent=2) }}":
        '[1, "é", {"a": null}] {\n  "a": [\n    1\n  ]\n}',
    "{{ 'a-b-c'.split('-')|join('+') }}{{ 'x'.join(['1', '2']) }}": "a+b+c1x2",
    "{{ '%s:%03d' % ('n', 7) }}{{ '{:>4}'.format(5) }}": "n:007   5",
    "{{ 'a b'|replace(' ', '') }}{{ 'a\nb'|indent(2) }}{{ 'x'.replace('x', 'yy') }}": "aba\n  byy",
    "{{ 'ab'|center(6) }}|": "  ab  |",
    "{% macro m(x) %}<{{ x }}{{ caller() if caller }}>{% endmacro %}{{ m(1) }}{% call m(2) %}in{% endcall %}":
        "<1><2in>",
    "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}": "02",
    "{{ (1, 2)|sum }}{{ none }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ [1] + [2] }}{{ 'ab' * 2 }}": "3None10243[1, 2]abab",
    "{% for x in missing %}{% endfor %}{{ missing }}": "",
    "{% generation %}{% set y %}a{{ 1 }}{% endset %}{{ y }}{% endgeneration %}": "a1",
    "{% filter upper %}b{% endfilter %}{% set a, b = 1, 2 %}{{ b }}": "B2",
    "{% for i in range(5) recursive %}{{ loop.cycle('a', 'b') }}{% endfor %}": "ababa",
}  # fmt: skip


@pytest.mark.parametrize("source", ORDINARY)
def test_what_templates_ordinarily_do_is_written_as_jinja_writes_it(source):
    assert jinja_chat_template(source).render(MESSAGES) == ORDINARY[source]


def test_a_long_conversation_is_rendered():
    source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{{ (messages|last).role }}\n{% endfor %}"
    turns = [{"role": ("user", "assistant")[i % 2], "content": "word " * 400} for i in range(2000)]
    text = jinja_chat_template(source).render(turns)
    assert text == "".join(f"<{turn['role']}>{turn['content'].strip()}assistant\n" for turn in turns)
