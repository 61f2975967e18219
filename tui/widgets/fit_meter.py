"""The fit meter: memory by component against what the machine has, and what to change if it is too much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text
from textual.widgets import Static

from ..render.text import plain
from ..render.units import duration, size

if TYPE_CHECKING:
    from whet.engine.api import Plan

LOOKS = {
    "base": ("█", "blue"),
    "adapter": ("▚", "magenta"),
    "gradients": ("▞", "cyan"),
    "optimizer": ("▓", "green"),
    "activations": ("▒", "yellow"),
    "passing": ("▙", "yellow"),
    "loss": ("▛", "red"),
    "exchange": ("▜", "magenta"),
    "runtime": ("░", "white"),
}
"""A glyph and a colour for each component, so that a bar without colours still reads."""

ASCII = {"base": "B", "adapter": "A", "gradients": "G", "optimizer": "O", "activations": "#", "passing": "P",
         "loss": "L", "exchange": "X", "runtime": "R"}  # fmt: skip
EMPTY = "·"
SMALL = 0.02
"""Share of the whole below which a component is left out of the legend."""


def cells(parts: Sequence[int], whole: int, width: int) -> list[int]:
    """How many of ``width`` cells each part takes of ``whole``: rounded so that the sum is right, and no part
    of the sum is lost.

    Args:
        parts: sizes.
        whole: the size of the bar, at least the sum of the parts.
        width: of the bar in cells.
    """
    edges, total, taken = [0], 0, []
    for part in parts:
        total += part
        edges.append(round(width * total / whole) if whole else 0)
        taken.append(edges[-1] - edges[-2])
    return taken


def bar(plan: Plan, width: int, ascii: bool = False) -> Text:
    """The bar alone. Where it is too much, the machine's end is marked inside of it."""
    memory = plan.memory
    known = [(name, memory.components.get(name, 0)) for name in LOOKS]
    waste = memory.needed - memory.peak
    whole = max(memory.needed, memory.capacity)
    text, used = Text(no_wrap=True), 0
    taken = cells([count for _, count in known], whole, width)
    if not any(taken):  # however little it is, it is something
        taken[max(range(len(known)), key=lambda place: known[place][1])] = 1
    for (name, _), count in zip(known, taken, strict=True):
        glyph, style = LOOKS[name]
        text.append((ASCII[name] if ascii else glyph) * count, style)
        used += count
    lost = round(width * memory.needed / whole) - used
    text.append(("/" if ascii else "╱") * max(0, lost if waste else 0), "dim")
    text.append(("." if ascii else EMPTY) * (width - len(text.plain)), "dim")
    if not memory.fits:
        end = min(width - 1, int(width * memory.capacity / whole))
        text = text[:end] + Text("|" if ascii else "┃", "bold red") + text[end + 1 :]
    return text


def verdict(plan: Plan) -> Text:
    """``fits: 0.8 of 15.6 GiB`` or ``too much: ...``; and in a clause what else takes the rest now."""
    memory = plan.memory
    where = "GPU memory" if memory.where == "gpu" else "memory"
    ranks = plan.resolved.ranks
    numbers = f"{size(memory.needed)} of {size(memory.capacity)} {where}" + (
        f" × {ranks}" if ranks > 1 else ""
    )
    if not memory.fits:
        return Text.assemble(("too much", "bold red"), f"  {numbers}")
    if memory.needed > memory.available:
        return Text.assemble(("fits later", "bold yellow"), f"  {numbers}, {size(memory.available)} free now")
    return Text.assemble(("fits", "bold green"), f"  {numbers}")


def time_and_steps(plan: Plan) -> str:
    """``290 steps · about 5 min 00 s``."""
    steps = f"{plan.resolved.total_steps:,} steps"
    return steps if plan.seconds is None else f"{steps} · about {duration(plan.seconds)}"


def legend(plan: Plan, width: int, ascii: bool = False) -> list[Text]:
    """Components that are worth naming, largest first, in lines of at most ``width`` cells."""
    lines = [Text(no_wrap=True)]
    for name, count in sorted(plan.memory.components.items(), key=lambda item: -item[1]):
        if count < SMALL * plan.memory.peak:
            continue
        glyph, style = LOOKS[name]
        word = Text.assemble((ASCII[name] if ascii else glyph, style), f" {name} ", (size(count), "dim"))
        if lines[-1] and lines[-1].cell_len + 2 + word.cell_len > width:
            lines.append(Text(no_wrap=True))
        lines[-1].append_text(Text.assemble("  " if lines[-1] else "", word))
    return lines


def way_out(plan: Plan) -> str:
    """What to change where it does not fit; empty where it does."""
    fitting = next((one for one in plan.alternatives if one.memory.fits), None)
    if plan.memory.fits:
        return ""
    if fitting is None and plan.fitting_gpus is not None:
        return f"{plan.fitting_gpus} such GPUs would hold it in shares; here, choose a smaller model."
    if fitting is None:
        return "No setting of this recipe makes it fit: choose a smaller model, or rows that are shorter."
    return f"{plain(fitting.text)} ({size(fitting.memory.needed)})"


class FitMeter(Static):
    """One line where there is little room, else bar, legend and what to change."""

    DEFAULT_CSS = "FitMeter { height: auto; }"

    def __init__(self, *, tall: bool, id: str | None = None) -> None:
        super().__init__(id=id)
        self.tall = tall
        self.plan: Plan | None = None
        self.note, self.ascii = "", False
        self.drawn = False

    def show(self, plan: Plan | None, note: str = "", ascii: bool = False) -> None:
        """``plan`` None: nothing is known yet. ``note``: what is going on, such as rows being read."""
        if (plan, note, ascii) == (self.plan, self.note, self.ascii) and self.drawn:
            return
        self.plan, self.note, self.ascii = plan, note, ascii
        self._draw()

    def on_resize(self) -> None:
        self._draw()

    def _draw(self) -> None:
        width = self.content_size.width
        self.drawn = width > 0
        if not self.drawn:
            return
        if self.plan is None:
            self.update(
                Text(self.note or "memory and time show here once data is chosen", "dim", no_wrap=True)
            )
        elif self.tall:
            self.update(self._tall(self.plan, width))
        else:
            self.update(self._line(self.plan, width), layout=False)

    def _line(self, plan: Plan, width: int) -> Text:
        said = verdict(plan)
        said.append(f" · {self.note or time_and_steps(plan)}")
        said.truncate(max(10, width - 12), overflow="ellipsis")
        return Text(" ").join([bar(plan, max(8, width - said.cell_len - 1), self.ascii), said])

    def _tall(self, plan: Plan, width: int) -> Text:
        lines = [verdict(plan), bar(plan, width, self.ascii), *legend(plan, width, self.ascii)]
        lines.append(Text(self.note or time_and_steps(plan), "dim"))
        out = way_out(plan)
        if out:
            lines.append(Text.assemble((" m ", "reverse"), f" {out}"))
        return Text("\n").join(lines)
