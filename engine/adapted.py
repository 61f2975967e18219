"""What an adapter trains: the layers it is put on, the modules that train whole, and their parameters."""

from __future__ import annotations

from .models.facts import LinearModule, ModelFacts, match_targets
from .models.families import Unsupported, family_of
from .recipe import ENDS as WHOLE
from .recipe import AdapterSection, Recipe


def with_family_targets(recipe: Recipe, facts: ModelFacts) -> tuple[Recipe, str]:
    """The adapter on the layers that this family has, where the recipe names none, and the reason for it.

    The recipe's default names the layers of decoders; those of encoders and of Whisper are called otherwise.
    """
    adapter, family = recipe.adapter, family_of(facts.model_type)
    decodes = not isinstance(family.capabilities.get("sft"), Unsupported)
    if adapter.kind == "none" or "target_modules" in adapter.model_fields_set or decodes:
        return recipe, ""
    targets = list(family.target_modules)
    changed = adapter.model_copy(update={"target_modules": targets})
    return recipe.model_copy(update={"adapter": changed}), f"the linear layers of {family.name}"


def trainable_parameters(facts: ModelFacts, adapter: AdapterSection) -> int:
    """Parameters that get a gradient: the adapter's, or all.

    LoRA adds ``rank * (inputs + outputs)`` a matched layer (arXiv:2106.09685), DoRA also one magnitude an
    output (arXiv:2402.09353); biases and whole modules are counted as PEFT trains them.
    """
    if adapter.kind == "none":
        return facts.parameters.total
    matched = adapted_layers(facts, adapter)
    total = sum(
        # PEFT gives a parameter that fuses two of an expert's matrices twice the rank
        module.count * adapter.rank * max(1, len(module.aliases)) * (module.inputs + module.outputs)
        for module in matched
    )
    if adapter.kind == "dora":
        total += sum(module.count * module.outputs for module in matched)
    if adapter.bias != "none":
        biased = facts.parameters.linear if adapter.bias == "all" else matched
        total += sum(module.count * module.outputs for module in biased if module.bias)
    return total + saved_module_parameters(facts, adapter)


def adapter_parts(adapter: AdapterSection) -> tuple[list[str] | str, list[str]]:
    """Targets of the adapter, and modules trained whole: head and embedding are always the latter.

    The loss multiplies with the head's weight itself, so an adapter on it would be left out.
    """
    saved = list(dict.fromkeys([*adapter.modules_to_save, *adapter.whole_ends()]))
    if isinstance(adapter.target_modules, str):
        return adapter.target_modules, saved
    return [name for name in adapter.target_modules if name not in WHOLE], saved


def moved_to_whole(adapter: AdapterSection) -> list[str]:
    """Head and embedding where they are among the targets: trained whole though an adapter was asked for."""
    targets = adapter.target_modules
    return [] if isinstance(targets, str) else [name for name in targets if name in WHOLE]


def adapted_layers(facts: ModelFacts, adapter: AdapterSection) -> list[LinearModule]:
    """The linear layers that get an adapter, each once."""
    targets, _ = adapter_parts(adapter)
    found = {module.pattern: module for group in match_targets(facts, targets).values() for module in group}
    return list(found.values())


def saved_module_parameters(facts: ModelFacts, adapter: AdapterSection) -> int:
    """Parameters of ``modules_to_save``, which PEFT copies and trains whole."""
    _, saved = adapter_parts(adapter)
    if facts.tied and "embed_tokens" in saved and "lm_head" in saved:
        saved.remove("lm_head")
    total = 0
    for name in saved:
        if name == "embed_tokens" or (name == "lm_head" and facts.tied):
            total += facts.parameters.embedding
        else:
            total += sum(module.parameters for module in match_targets(facts, [name])[name])
    return total
