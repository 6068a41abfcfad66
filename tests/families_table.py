"""Print which vision-language families of the installed transformers tokens can be removed from, and why others not.

Run it as ``python -m tests.families_table > results/families.md``; it takes some seconds.
"""

from __future__ import annotations

from collections.abc import Mapping

import transformers
from tabulate import tabulate
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vtw_eval.families import LAYERS, REFUSED, standing

_WORDS = {
    "tested": "served",
    "decoder tested": "served, but for methods that read the vision tower",
    "refused": "refused",
    "untested": "refused unless `allow_untested=True`",
}


def rows(families: Mapping[str, str] = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) -> list[list[str]]:
    """Return a row for each family: its type, class, whether it is served, and what is tested or why it is refused.

    Parameters
    ----------
    families
        ``config.model_type`` to the name of its class, as transformers maps them.
    """
    return [[name, class_name, *_verdict(name)] for name, class_name in sorted(families.items())]


def _verdict(name: str) -> tuple[str, str]:
    found = standing(name)
    if found == "untested" and (unknown := sorted(set(_kinds(name)) - LAYERS)):
        return _WORDS["refused"], f"has layers of type {', '.join(unknown)}"
    reasons = {
        "tested": "compared with masked attention, vision tower and all",
        "decoder tested": "decoder compared with masked attention",
        "refused": REFUSED.get(name, ""),
        "untested": "no test compares it",
    }
    return _WORDS[found], reasons[found]


def _kinds(name: str) -> list[str]:
    """Return the kinds of layers of a family's default config, none where it names none or there is no such family."""
    try:
        text = AutoConfig.for_model(name).get_text_config(decoder=True)
    except ValueError:
        return []
    return list(getattr(text, "layer_types", None) or ())


def main() -> None:
    """Print the table."""
    print("# Vision-language families of transformers\n")
    print(
        "What `AutoModelForImageTextToText` opens, by `config.model_type`. A family that transformers gains later is\n"
        "untested until somebody compares it. internvl_chat, whose code comes with its checkpoints, is served too.\n"
        f"Made by `python -m tests.families_table` with transformers {transformers.__version__}.\n"
    )
    print(tabulate(rows(), headers=["model type", "class", "tokens removed", "why"], tablefmt="github"))


if __name__ == "__main__":
    main()
