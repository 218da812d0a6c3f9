"""Chat templates as the served families lay their messages out, in a short form of each.

They differ in the place of a system message: a turn of its own, within the first user's turn,
within the last user's turn, refused, or left out.
"""

from __future__ import annotations

_ALTERNATE = (
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
_SPLIT = (
    "{% if messages[0].role == 'system' %}{% set pre = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set pre = '' %}{% set rest = messages %}{% endif %}"
)
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

FAMILIES = {
    "llama2": "{{ bos_token }}" + _SPLIT + _ALTERNATE + (
        "{% for m in rest %}{% if m.role == 'user' %}[INST] "
        "{{ '<<SYS>>\n' + pre + '\n<</SYS>>\n\n' if loop.first and pre else '' }}"
        "{{ m.content | trim }} [/INST]{% else %} {{ m.content | trim }} {{ eos_token }}{% endif %}"
        "{% endfor %}"
    ),
    "llama3": (
        "{% for m in messages %}{{ bos_token if loop.first else '' }}<|header|>{{ m.role }}<|end|>"
        "\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
        "{% if add_generation_prompt %}<|header|>assistant<|end|>\n\n{% endif %}"
    ),
    # a date stands before the system message, and a system turn is there without one
    "llama3.1": "{{ bos_token }}" + _SPLIT + (
        "<|header|>system<|end|>\n\nToday: 1 Dec 2026\n\n{{ pre }}<|eot|>"
        "{% for m in rest %}<|header|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|eot|>"
        "{% endfor %}{% if add_generation_prompt %}<|header|>assistant<|end|>\n\n{% endif %}"
    ),
    "gemma3": "{{ bos_token }}" + _SPLIT + _ALTERNATE + (
        "{% for m in rest %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ pre + '\n\n' if loop.first and pre else '' }}{{ m.content | trim }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    # the system message stands before the last user's
    "mistral0.3": "{{ bos_token }}" + _SPLIT + _ALTERNATE + (
        "{% for m in rest %}{% if m.role == 'user' %}[INST] "
        "{{ pre + '\n\n' if loop.last and pre else '' }}{{ m.content }}[/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "mistral0.1": "{{ bos_token }}{% set rest = messages %}" + _ALTERNATE + (
        "{% for m in rest %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}"
        "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
    ),
    "mistral7": "{{ bos_token }}" + (
        "{% for m in messages %}{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}"
        "[/SYSTEM_PROMPT]{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "phi3": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
    ),
    "chatml": _CHATML,
    # a default system turn where there is none
    "qwen2": (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n"
        "{% endif %}" + _CHATML
    ),
    # the last answer is written with an empty thought, earlier ones without
    "qwen3": (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ '<think>\n\n</think>\n\n' if m.role == 'assistant' and loop.index0 > ns.last else '' }}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "smollm3": _SPLIT + (
        "<|im_start|>system\n## Metadata\n\nToday: 1 December 2026\n\n## Instructions\n\n{{ pre }}"
        "\n\n<|im_end|>\n{% for m in rest %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n"
        "{% endif %}"
    ),
    # of the report: the system message waits for a user's
    "reported": "{{ bos_token }}" + _SPLIT + (
        "{% for m in rest %}[{{ m.role }}]{{ pre if loop.first else '' }}{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}[model]{% endif %}"
    ),
}  # fmt: skip

# leave a message out without a word
LOSSY = {
    "system": _SPLIT + "{% for m in rest %}[{{ m.role }}]{{ m.content }}{% endfor %}",
    "assistant": (
        "{% for m in messages %}{% if m.role != 'assistant' %}[{{ m.role }}]{{ m.content }}"
        "{% endif %}{% endfor %}"
    ),
    "user": (
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    ),
}
