"""Batches done by several processes, in order; small data never starts one. Light.

``multiprocessing`` would run a caller's script again in each child, and a fork would copy the threads of a
running front end half-way; a module of ours over two pipes does neither. Messages are pickled: both ends are
this program.
"""

from __future__ import annotations

import os
import pickle
import queue
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from ..errors import WhetError
from ..hardware import usable_cores
from ..processes import environment
from ..recipe import Recipe
from .batches import BatchTokenizer, RowBatch, TokenBatch

MODULE = "whet.engine.data.batch_process"
DONE_HERE = 4
"""Batches done before further processes are worth their start, about half a second."""

MOST_PROCESSES = 8
"""One process reads and writes for all; more than this it cannot feed."""

_SIZE = struct.Struct("<Q")


def in_order(
    batches: Iterable[RowBatch], here: BatchTokenizer, model_dir: Path, processes: int | None = None
) -> Iterator[TokenBatch]:
    """What becomes of each batch, in the batches' order, holding a few of them at a time.

    Args:
        batches: read as they are needed.
        here: does the first ones, and all where there is one core.
        model_dir: whose tokenizer the other processes load.
        processes: by default as many as there are usable cores.

    Raises:
        WhetError: as :meth:`BatchTokenizer.work`; ``data.process`` when a process is gone.
    """
    stream = iter(batches)
    processes = usable_cores() if processes is None else processes
    first = DONE_HERE if processes > 1 else None
    for batch in islice(stream, first):
        yield here.work(batch)
    rest = next(stream, None)
    if rest is None:
        return
    with _Pool(here.recipe, model_dir, min(processes, MOST_PROCESSES)) as pool:
        yield from pool.map(chain([rest], stream))


class _Pool:
    """One thread for each process waits for its answers."""

    def __init__(self, recipe: Recipe, model_dir: Path, count: int) -> None:
        self._count = count
        self._processes = [_start(recipe, model_dir) for _ in range(count)]
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for process in self._processes:
            self._free.put(process)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="whet-rows")

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *reason: object) -> None:
        """Kill first: a thread that waits for an answer then has one."""
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with suppress(BrokenPipeError):
                    pipe.close()

    def map(self, batches: Iterable[RowBatch]) -> Iterator[TokenBatch]:
        """At most two batches a process are under way."""
        waiting: deque[Future[TokenBatch]] = deque()
        for batch in batches:
            waiting.append(self._threads.submit(self._ask, batch))
            if len(waiting) >= 2 * self._count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _ask(self, batch: RowBatch) -> TokenBatch:
        process = self._free.get()
        try:
            assert process.stdin is not None and process.stdout is not None
            try:
                _write(process.stdin, batch)
                answer = _read(process.stdout)
            except (BrokenPipeError, EOFError) as error:
                raise WhetError(
                    "data.process",
                    f"A process that tokenises rows ended with code {process.wait()} and no answer.",
                    "It may have run out of memory; its last words are on the terminal.",
                ) from error
        finally:
            self._free.put(process)
        if isinstance(answer, dict):
            raise WhetError(**answer)
        return answer  # type: ignore[no-any-return]


def _start(recipe: Recipe, model_dir: Path) -> subprocess.Popen[bytes]:
    # One batch a process at a time: the tokenizer's own threads would only compete with the others.
    single = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment() | single,
        start_new_session=True,  # Ctrl-C is for us to handle; whoever leaves the pool kills them
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # whoever asks it first says that it is gone
        _write(process.stdin, (recipe.model_dump_json(), str(model_dir)))
    return process


def _write(pipe: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(_SIZE.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> Any:
    """Raises EOFError when the other side is gone."""
    head = pipe.read(_SIZE.size)
    if len(head) < _SIZE.size:
        raise EOFError
    (size,) = _SIZE.unpack(head)
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return pickle.loads(data)


def main() -> None:
    """The other side: batches until the pipe closes. Nothing but answers may go to the pipe."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    text, model_dir = _read(sys.stdin.buffer)
    worker = BatchTokenizer.of_model(Recipe.model_validate_json(text), Path(model_dir))
    while True:
        try:
            batch = _read(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer: TokenBatch | dict[str, str] = worker.work(batch)
        except WhetError as error:
            answer = error.as_dict()
        _write(out, answer)


if __name__ == "__main__":
    main()
