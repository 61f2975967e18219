"""Arguments that scripts of any generation pass to TRL's trainers, brought to where they belong today."""

from __future__ import annotations

import copy
import inspect
from typing import Any, ClassVar

from datasets import Dataset

from ..errors import WhetError
from ..models.locate import resolve_model


class OlderTrainer:
    """Goes before one of TRL's trainers among a class's bases. Nothing is sent home.

    Args:
        model: loaded, or its name.
        positional: what follows it in TRL's order.
        args: the configuration; without one the class's own.
        tokenizer: older name of ``processing_class``.
        given: the trainer's arguments, and those that moved to the configuration. Rows may be a list.

    Raises:
        WhetError: ``python_api.conflict`` for two different tokenizers.
    """

    config_class: ClassVar[type[Any]]
    moved: ClassVar[tuple[str, ...]]
    """Arguments of older trainers that are the configuration's today."""
    output_dir: ClassVar[str]
    """Of a configuration that nobody gave."""

    def __init__(
        self,
        model: Any = None,
        *positional: Any,
        tokenizer: Any = None,
        processing_class: Any = None,
        **given: Any,
    ) -> None:
        if tokenizer is not None and processing_class is not None and tokenizer is not processing_class:
            raise WhetError(
                "python_api.conflict",
                "tokenizer= and processing_class= are two different tokenizers.",
                "Keep processing_class=.",
            )
        given |= self._by_name(positional)
        args = given.pop("args", None)
        moved = {name: given.pop(name) for name in self.moved if given.get(name) is not None}
        config = self.config_class(self.output_dir) if args is None else copy.copy(args)
        self._configure(config, model, moved)
        for name in ("train_dataset", "eval_dataset"):
            if isinstance(given.get(name), list):
                given[name] = Dataset.from_list(given[name])
        if isinstance(model, str):
            model = str(resolve_model(model, weights=True))
        if processing_class is None:
            processing_class = given.pop("processing_class", tokenizer)
        parent: Any = super()
        parent.__init__(model, args=config, processing_class=processing_class, **given)

    def _by_name(self, positional: tuple[Any, ...]) -> dict[str, Any]:
        """What stands behind the model, by the names of TRL's own arguments."""
        theirs = next(one for one in type(self).__mro__ if one.__module__.startswith("trl."))
        names = list(inspect.signature(theirs).parameters)[1:]
        if len(positional) > len(names):
            raise TypeError(f"{type(self).__name__} takes {len(names) + 1} arguments in order, not more")
        return dict(zip(names, positional, strict=False))

    def _configure(self, config: Any, model: Any, moved: dict[str, Any]) -> None:
        """Put into the configuration, which is this trainer's own, what trainer and model were told.

        Args:
            config: changed in place.
            model: loaded, or its name.
            moved: arguments named in :attr:`moved`.
        """
        for name, value in moved.items():
            setattr(config, name, value)

    def _send_telemetry(self) -> None:
        """Never."""
