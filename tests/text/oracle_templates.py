#!/usr/bin/env python3
"""Compares operant's chat templates with jinja2 as transformers sets it up.

  oracle_templates.py TOOL [--gguf FILE] [--dir MODEL_DIR]...

Renders small templates, one for every construct, and the models' own templates with system, tool and multi-turn
messages. A template on which jinja2 fails must fail here too. Exits with 1 if anything differs.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from transformers.utils.chat_template_utils import _compile_jinja_template

parser = argparse.ArgumentParser()
parser.add_argument("tool")
parser.add_argument("--gguf")
parser.add_argument("--dir", action="append", default=[])
args = parser.parse_args()

V = {
    "name": "World", "n": 3, "x": 2.5, "yes": True, "no": False, "nothing": None, "empty": [], "word": "  héLLo wörld  ",
    "numbers": [3, 1, 2], "words": ["b", "A", "c", "a"], "d": {"a": 1, "b": [1, 2, {"c": None}], "ü": "é\"'\n"},
    "rows": [{"k": "x", "v": 1, "in": {"z": 5}}, {"k": "y", "v": 2, "in": {"z": 3}}, {"k": "x", "v": 3}], "text": "a,b,,c", "lines": "one\ntwo\n\nthree",
    "quote": "it's", "both": "it's \"x\"", "big": 1e22, "small": 1.5e-7, "tenth": 0.1, "whole": 100000.0, "html": "<b>&'\"</b>\u2028\x00\x1f\x7f😀",
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}],
}

SNIPPETS = r"""
{{ name }}|{{ n }}|{{ x }}|{{ yes }}|{{ no }}|{{ nothing }}|{{ missing }}|{{ empty }}
{{ d }}|{{ rows }}|{{ (1, 2) }}|{{ (1,) }}|{{ [1, 'a', 2.0, True, none] }}|{{ {'a': 1, 2: 'b'} }}
{{ quote }}|{{ [quote, both, html] }}|{{ [big, small, tenth, whole, 1e16, 123456789012345.0, 1e15, -0.0001, 0.00001] }}
{{ big|tojson }}|{{ d|tojson }}|{{ html|tojson }}|{{ rows|tojson(indent=2) }}|{{ d|tojson(sort_keys=true) }}|{{ [1, [], {}]|tojson(indent=4) }}
{{ d|tojson(separators=(',', ':')) }}|{{ html|tojson(ensure_ascii=true) }}|{{ nothing|tojson }}{{ yes|tojson }}{{ x|tojson }}
{{ 1 + 2 * 3 - 4 / 2 }}|{{ 7 // 2 }}|{{ -7 // 2 }}|{{ -7 % 3 }}|{{ 2 ** 10 }}|{{ 2 ** -1 }}|{{ 7.5 % 2 }}|{{ -7.5 // 2 }}|{{ 1 + 2.0 }}|{{ True + 1 }}
{{ 'a' + 'b' ~ 1 ~ none ~ 2.5 }}|{{ 'ab' * 3 }}|{{ [1] * 3 }}|{{ [1] + [2] }}|{{ 'a' 'b' }}
{{ 1 == 1.0 }}|{{ 1 == True }}|{{ 'a' < 'b' }}|{{ 1 < 2 < 3 }}|{{ 1 < 3 < 2 }}|{{ [1, 2] == [1, 2] }}|{{ (1, 2) == [1, 2] }}|{{ none == missing }}|{{ 'B' < 'a' }}
{{ 2 in [1, 2] }}|{{ 'a' in 'cat' }}|{{ 'x' not in d }}|{{ 'a' in d }}|{{ not 1 in [1] }}|{{ 1 not in numbers and true }}
{{ yes and n }}|{{ no or 'x' }}|{{ not yes }}|{{ '' or none }}|{{ 'a' if yes else 'b' }}|{{ 'a' if no }}|{{ 'a' if no else 'b' if no else 'c' }}
{{ -n }}|{{ +n }}|{{ -n|abs }}|{{ (-n)|abs }}|{{ 3|string + 'x' }}|{{ not yes == no }}
{{ words[0] }}|{{ words[-1] }}|{{ words[9] }}|{{ words[1:] }}|{{ words[:-1] }}|{{ words[::-1] }}|{{ words[::2] }}|{{ words[3:1:-1] }}|{{ word[2:5] }}|{{ word[::-1] }}|{{ words.0 }}|{{ word[-3] }}
{{ d.a }}|{{ d['a'] }}|{{ d.b[2].c }}|{{ d.nope }}|{{ d['nope'] is defined }}|{{ rows[0]['in'].z }}|{{ d.get('a') }}|{{ d.get('q', 7) }}|{{ d.get('q') }}
{{ missing.x }}
{{ missing['x'] }}
{{ missing + 1 }}
{{ d.a.b.c }}
{{ word|trim }}|{{ word.strip() }}|{{ word.lstrip() }}|{{ word.rstrip() }}|{{ word|upper }}|{{ word|lower }}|{{ word|title }}|{{ word.title() }}|{{ 'hELLO wORLD'|capitalize }}|{{ "x-y (z) it's"|title }}
{{ 'xxaxx'.strip('x') }}|{{ 'abcba'.strip('ab') }}|{{ 'xxaxx'|trim('x') }}|{{ 'héé'.rstrip('é') }}
{{ text.split(',') }}|{{ text.split(',', 1) }}|{{ ' a  b c '.split() }}|{{ ' a  b c '.split(none, 1) }}|{{ text.rsplit(',', 1) }}|{{ lines.splitlines() }}|{{ text.split('zz') }}|{{ 'a</think>b'.split('</think>')[-1] }}
{{ text.replace(',', ';') }}|{{ text|replace(',', '') }}|{{ text|replace(',', '-', 1) }}|{{ 'ab'.replace('', '.') }}|{{ text.startswith('a') }}|{{ text.endswith(('x', 'c')) }}|{{ text.find('b') }}|{{ text.find('z') }}|{{ 'héllo'.find('l') }}|{{ 'abab'.rfind('ab') }}
{{ 'abc'.removeprefix('a') }}|{{ 'abc'.removesuffix('c') }}|{{ '12'.isdigit() }}|{{ 'aXa'.count('a') }}|{{ ', '.join(words) }}|{{ 'a'.upper() }}
{{ words|join(', ') }}|{{ numbers|join }}|{{ rows|join('-', attribute='k') }}|{{ rows|map(attribute='k')|list }}|{{ rows|map(attribute='in.z', default=0)|list }}|{{ words|map('upper')|join('') }}
{{ rows|selectattr('k', 'equalto', 'x')|list|length }}|{{ rows|rejectattr('in')|list }}|{{ rows|selectattr('in', 'defined')|map(attribute='v')|list }}|{{ numbers|select('odd')|list }}|{{ numbers|reject('gt', 1)|list }}|{{ [0, 1, '']|select|list }}
{{ words|sort }}|{{ words|sort(case_sensitive=true) }}|{{ numbers|sort(reverse=true) }}|{{ rows|sort(attribute='v', reverse=true)|map(attribute='v')|list }}|{{ words|unique|list }}|{{ d|dictsort }}|{{ words|reverse|list }}|{{ 'abc'|reverse }}
{{ words|first }}|{{ words|last }}|{{ empty|first }}|{{ words|length }}|{{ 'héé'|length }}|{{ d|length }}|{{ d|count }}|{{ numbers|sum }}|{{ numbers|min }}|{{ numbers|max }}|{{ rows|sum(attribute='v') }}
{{ missing|default('x') }}|{{ ''|default('x') }}|{{ ''|default('x', true) }}|{{ none|d('x', boolean=True) }}|{{ missing|default }}
{{ '42'|int }}|{{ '4.7'|int }}|{{ 'x'|int }}|{{ 'x'|int(5) }}|{{ 4.9|int }}|{{ '3.5'|float }}|{{ 3|float }}|{{ 2.567|round(2) }}|{{ 2.5|round }}|{{ 3.5|round }}|{{ 2.1|round(method='ceil') }}|{{ 2|round }}
{{ d|items|list }}|{{ d.items()|list }}|{{ d.keys()|list }}|{{ d.values()|list }}|{{ name|list }}|{{ d|list }}
{{ lines|indent }}|{{ lines|indent(2, true) }}|{{ lines|indent(width=1, blank=true) }}|{{ lines|indent('> ') }}
{{ n is defined }}|{{ missing is undefined }}|{{ nothing is none }}|{{ name is string }}|{{ n is number }}|{{ x is number }}|{{ yes is number }}|{{ n is integer }}|{{ yes is integer }}|{{ x is float }}|{{ yes is boolean }}|{{ yes is true }}|{{ n is true }}|{{ no is false }}
{{ d is mapping }}|{{ words is iterable }}|{{ name is iterable }}|{{ n is iterable }}|{{ words is sequence }}|{{ d is sequence }}|{{ n is odd }}|{{ n is even }}|{{ 9 is divisibleby 3 }}|{{ 9 is divisibleby(2) }}|{{ 1 is in [1] }}|{{ n is eq 3 }}|{{ n is not none }}|{{ not n is none }}|{{ 'a' is lower }}|{{ 'A' is upper }}|{{ range is callable }}|{{ n is sameas 3 }}
{% for i in range(3) %}{{ i }},{% endfor %}|{% for i in range(1, 7, 2) %}{{ i }}{% endfor %}|{% for i in range(3, 0, -1) %}{{ i }}{% endfor %}|{% for i in [] %}x{% else %}none{% endfor %}
{% for r in rows if r.v > 1 %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{{ loop.revindex0 }}{{ r.k }};{% endfor %}
{% for w in words %}{{ loop.previtem }}<{{ w }}>{{ loop.nextitem }} {{ loop.cycle('a', 'b') }} {% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}{% for a, b in [(1, 2), [3, 4]] %}{{ a + b }}{% endfor %}{% for c in name %}{{ c }}.{% endfor %}
{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for i in range(2) %}{% for j in range(2) %}{{ loop.index }}{{ i }}{{ j }} {% endfor %}{{ loop.index }}{% endfor %}
{% set a = 1 %}{% for i in range(2) %}{{ a }}{% set a = 5 %}{{ a }}{% endfor %}{{ a }}
{% set ns = namespace(a=1, b='x') %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.c is defined }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (c, e) = (3, 4) %}{{ c }}{{ e }}{% set t = 1, 2 %}{{ t }}
{% set block %}in {{ name }} {% endset %}[{{ block }}]{% set block | upper | trim %} x {{ name }} {% endset %}[{{ block }}]
{% if n == 3 %}three{% elif n == 4 %}four{% else %}other{% endif %}{% if no %}a{% elif yes %}b{% endif %}{% if no %}a{% endif %}{% if rows|selectattr('k', 'eq', 'q') %}lazy{% endif %}
{% if yes %}{% set q = 5 %}{% endif %}{{ q }}
{% macro m(a, b='B', c=none) %}<{{ a }}{{ b }}{{ c }}{{ name }}>{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(a=3, c=4) }}{{ m('x')|length }}
{% macro f(k) %}{% if k > 0 %}{{ k }}{{ f(k - 1) }}{% endif %}{% endmacro %}{{ f(4) }}
{% set v = 1 %}{% macro g() %}{{ v }}{% endmacro %}{% for i in [7] %}{% set v = 9 %}{{ g() }}{% endfor %}{% set v = 2 %}{{ g() }}
{% raw %}{{ not }} {% this %}{% endraw %}|{# comment {{ x }} #}|{{ '}}' }}|{{ '{%' }}|{{ {'a': {'b': 1}}['a']['b'] }}|{{ {'a': {'b': 1}} }}
a{{- ' b ' -}} c {{ name -}}   d   {%- if yes -%}  e  {%- endif -%}  f {#- g -#} h
{{ "esc \n\t\\ \" \x41\u00e9 \q" }}|{{ 'a\'b' }}|{{ "\U0001F600" }}|{{ 1_000 }}|{{ 1.5e3 }}
{{ raise_exception('stop: ' + name) }}
{{ name|nofilter }}
{{ name is notest }}
{% include 'x' %}
{{ name.nomethod() }}
{{ 1 / 0 }}
{{ [1, 2|string ] }}{{ (1 if yes else 2) + 3 }}{{ {'a': 1}.a }}{{ 'x'.upper().lower() }}
{{ messages[-1].role }}{{ messages[-1]['content'] }}{{ messages|map(attribute='role')|join(',') }}{{ messages[0] == messages[0] }}{{ messages[1:] }}
{{ dict(a=1, b=2) }}{{ dict(d, z=3)|length }}{{ namespace(a=1).a }}
{{ strftime_now is defined }}{{ raise_exception is defined }}
{% generation %}x{{ n }}{% endgeneration %}
{% for m in messages %}{% if loop.first and m.role != 'system' %}S{% endif %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}
{{ words|tojson }}{{ 'ü'|tojson }}{{ "a/b</x>"|tojson }}{{ {1: 2, none: 3}|tojson }}
{{ missing|tojson }}
{% set x = {'a': [1, 2]} %}{{ x['a'][0] }}{{ x.a|last }}{% set y = x.a + [3] %}{{ y }}{{ x }}
{{ 'a' ~ missing ~ 'b' }}{{ missing|length }}{{ missing|list }}{% for i in missing %}x{% endfor %}{{ missing == '' }}{{ missing is none }}
{{ 9223372036854775807 }}{{ n if n > 2 and not no or yes else 0 }}{{ n is defined and n is not none }}
{{ [[1, 2], [3]]|map('first')|list }}{{ ['a b', 'c']|map('replace', ' ', '_')|list }}{{ rows|map(attribute='k')|unique|join }}
{{ 'x' if messages|length > 1 else 'y' }}{{ (messages|length - 1) - 0 }}{{ (words + ['z'])|last }}{{ words|list == words }}
{{ name|string|length }}{{ name|upper|lower|first }}{{ n|string ~ '!' }}{{ "%s" }}{{ '' is string }}
{{ x is defined and x is number }}{{ (n|int) + ('2'|int) }}{{ n == 3 == true }}
{% set s = 'abc' %}{{ s[0]|upper + s[1:] }}{{ s|first }}{{ s|last }}{{ s[0] == 'a' }}{{ s * 0 }}{{ s['upper']() }}
""".strip("\n").split("\n")

LAYOUT = [
    "{% if yes %}\n  a\n{% endif %}\nb\n", "  {% if yes %}  \n  a\n  {% endif %}  \nb\n\n", "x\n   {%- if yes %}\n  a{% endif %}\n\n   b",
    "{%+ if yes %}a{% endif +%}\nb", "  {%+ if yes %}a{% endif +%}\nb", "\n\n{# c #}\n\n  {# d #}  x\n", "{{ n }}\n{{ n }}\n", "a\r\nb\r{{ n }}\r\n",
    "{% for m in messages %}\n    {{ m.role }}\n\t{% if not loop.last %}\n,\n    {% endif %}\n{% endfor %}\nend", "   {{ n }}   {%- set a = 1 -%}\n\n  {{ a }}",
    "{% raw %}\n a {{ }}\n{% endraw %}\nb", "  {%- raw -%}  a  {%- endraw -%}  b", "{#- a -#}\n  x {%- if yes %}\n\n  y\n{%- endif %}\nz", "a {% if yes %}b{% endif %} c\n {% if yes %}\n d\n{% endif %}",
    "", "\n", "\n\n", "x", "{% set a %}\n  y\n{% endset %}\n[{{ a }}]", "{{ n\n}}{% if\nyes %}q{% endif %}{# multi\nline #}\nz", "{%if yes%}a{%endif%}", "{{n}}{{-n-}} {{n-1}}",
]

SYSTEM, USER, REPLY = {"role": "system", "content": " Be kind. "}, {"role": "user", "content": "What's 2+2?\n"}, {"role": "assistant", "content": " It is 4. "}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Gets the \"weather\" <b>", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "Où?"}, "days": {"type": "integer"}}, "required": ["city"]}, "return": {"type": "string"}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "abcdef123", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": 2, "x": 1.5, "ok": True, "no": None}}}]}
ANSWER = {"role": "tool", "name": "get_weather", "tool_call_id": "abcdef123", "content": "sunny, 20°"}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nFour."}
CHATS = [
    [USER], [SYSTEM, USER], [USER, REPLY], [SYSTEM, USER, REPLY, USER], [SYSTEM, USER, REPLY, USER, REPLY], [USER, CALL, ANSWER], [SYSTEM, USER, CALL, ANSWER, REPLY, USER],
    [USER, THOUGHT, USER], [USER, THOUGHT], [USER, dict(REPLY, reasoning_content="because")], [USER, CALL, ANSWER, ANSWER, REPLY], [REPLY], [USER, USER], [SYSTEM],
    [USER, dict(CALL, content="Let me see."), ANSWER], [USER, CALL, dict(ANSWER, content={"temp": 20, "list": [1, 2]}), REPLY],
    [USER, dict(CALL, tool_calls=CALL["tool_calls"] * 2), ANSWER], [{"role": "user", "content": "日本 😀 <|im_end|> {{ x }} {% y %}"}], [USER, dict(REPLY, content="")],
]


def chat_variables(special):
    for chat in CHATS:
        for tools in (None, TOOLS, TOOLS * 2):
            for prompt in (False, True):
                yield dict(special, messages=chat, tools=tools, documents=None, add_generation_prompt=prompt, date_string="26 Jul 2024")
                if tools is None and prompt:
                    yield dict(special, messages=chat, add_generation_prompt=True, enable_thinking=False, date_string="05 Mar 2025")
                    yield dict(special, messages=chat, tools=TOOLS, add_generation_prompt=True, tools_in_user_message=False, date_string="05 Mar 2025")


def reference(source, variables):
    try:
        return _compile_jinja_template(source).render(**variables)
    except Exception as error:
        return {"error": "%s: %s" % (type(error).__name__, error)}


def compare(name, cases):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as f:
        for source, variables in cases:
            f.write(json.dumps({"template": source, "vars": variables}, ensure_ascii=False) + "\n")
        f.flush()
        done = subprocess.run([args.tool, "render", "-", f.name], capture_output=True, text=True)
    ours = [json.loads(line) for line in done.stdout.split("\n") if line]
    if done.returncode or len(ours) != len(cases):
        sys.exit("%s: %s" % (name, done.stderr))
    differ = errors = 0
    for (source, variables), got in zip(cases, ours):
        want = reference(source, variables)
        errors += isinstance(want, dict)
        if got != want and not (isinstance(got, dict) and isinstance(want, dict)):
            differ += 1
            if differ <= 50:
                shown = source if len(source) < 400 else "messages %s" % json.dumps(variables["messages"])[:300]
                print("  %s\n   ours %s\n   want %s" % (shown, str(got)[:900] if isinstance(got, dict) else repr(got)[:900], repr(want)[:900]))
    print("%-50s %4d of %4d differ (%d are errors in both)" % (name, differ, len(cases), errors), flush=True)
    return differ


bad = compare("snippets", [(s, V) for s in SNIPPETS])
bad += compare("layout", [(s, V) for s in LAYOUT])
templates = []
if args.gguf:
    import gguf

    templates.append(("gguf", gguf.GGUFReader(args.gguf).fields["tokenizer.chat_template"].contents(), {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}))
for d in args.dir:
    config = json.load(open(d + "/tokenizer_config.json"))
    special = {k: v for k, v in config.items() if k in ("bos_token", "eos_token", "unk_token", "pad_token") and isinstance(v, str)}
    if "chat_template" in config:
        templates.append((pathlib.Path(d).resolve().parent.name, config["chat_template"], special))
for name, source, special in templates:
    bad += compare(name, [(source, v) for v in chat_variables(special)])
sys.exit(bad > 0)
