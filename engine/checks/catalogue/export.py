"""Export: merged weights, GGUF, Modelfile."""

from __future__ import annotations

from .entry import Entry

ENTRIES: tuple[Entry, ...] = (
    Entry(
        id="X01",
        title="The merged model is not the trained one",
        symptom="With the adapter the model answers as trained; the merged model answers worse, or exactly "
        "as the base did before training.",
        seen="After merging, base and adapter (applied by PEFT) and the merged weights answer the same "
        "texts, your held-out rows first. The finding gives the mean and the largest KL divergence beside "
        "what rounding to the merged type costs by itself, and how far training moved the model from its "
        "base. A failed comparison keeps GGUF files from being made of it. What the merge itself has to say "
        "(a base that was held rounded while it trained, or exists only rounded) is X01 too. So is what "
        "becomes of the weights in 4 or 8 bits, read back by transformers, and of an adapter's GGUF, run by "
        "llama.cpp over its base.",
        why="The merge went onto another base, onto weights that were rounded to 4 bits, missed a part of "
        "the adapter, or an older shard stayed in the folder. A warning that nothing changes means that the "
        "adapter itself does nothing: it is untrained, or was trained with a vanishing learning rate.",
        fix="Merge again from the run's own base and adapter: `whet export RUN --merged`. Prove any merged "
        "folder, whichever tool wrote it: `whet smoke FOLDER --reference ADAPTER`. For a base that is "
        "rounded on disk, name the 16-bit original as `model.name`.",
    ),
    Entry(
        id="X02",
        title="Disk or memory runs out while saving",
        symptom="Hours of training end in `No space left on device`, or the process is killed, at a "
        "checkpoint, at the merge or at the export.",
        seen="Before training, the bytes of checkpoints, adapter, merged weights, GGUF files, downloads and "
        "temporary files are added up for each filesystem (the home of whet, the hub's cache, the folder "
        "for temporary files) and held against what is free there. If a disk fills all the same while a run "
        "or an export writes, the error becomes this finding.",
        why="Checkpoints hold optimizer states, a GGUF is made from a 16-bit file, and both lie beside the "
        "merged weights for a while. Folders that look alike may be on different disks; a temporary folder "
        "is often in memory.",
        fix="Point `WHET_HOME`, `HF_HOME` or `TMPDIR` to a larger disk, lower `training.keep_checkpoints`, "
        "export fewer types, or export elsewhere: `whet export RUN --out FOLDER`. Merging and converting "
        "hold at most a block of 1 GiB or one tensor; what needs memory is the proof: lower "
        "`export.maximum_memory_usage` (`--memory`). Nothing half-written is left, and `whet resume RUN` "
        "goes on from the last checkpoint.",
    ),
    Entry(
        id="X03",
        title="Gibberish in llama.cpp or Ollama",
        symptom="The model answers well in Python and writes nonsense, repeats itself or never stops once "
        "it is a GGUF.",
        seen="Each exported GGUF is run by llama.cpp beside the trained model in transformers: token ids of "
        "hundreds of texts, rendered conversations, BOS, end tokens, configuration, each quantised tensor "
        "beside the f16 file's, KL divergence and agreement of the most likely token, loss of held-out "
        "answers. The finding names what is wrong: tokenizer, chat template, BOS metadata, end tokens, "
        "configuration, tensors, weights, or a quantisation that loses too much.",
        why="Most often the file carries another chat template than the one trained with, or BOS is added "
        "twice or not at all. Less often the pre-tokenizer's name is wrong, a tensor is permuted, an "
        "epsilon or rotary base differs, or a small model was rounded to too few bits.",
        fix="Export again with the tokenizer folder that training wrote: `whet export RUN --gguf q8_0`. For "
        "a type that loses too much, the finding's patch sets a larger one in `export.gguf`. If the file "
        "passes and a client still writes nonsense, the client adds a template or BOS of its own: use its "
        "chat interface, not a completion of text that already has both.",
    ),
    Entry(
        id="X04",
        title="The export cannot be made, known before training",
        symptom="Training finishes, then the GGUF export fails: a converter or library is missing, or does "
        "not know the model.",
        seen="When `export` asks for files, the plan checks that the writer knows the architecture and the "
        "tokenizer, loads llama.cpp in a process of its own and lets it tokenise with this very vocabulary, "
        "that the base's weights can be merged into, and that what trains can be what is asked for.",
        why="llama-cpp-python is not installed, `LLAMA_CPP_LIB_PATH` points to a folder without its "
        "libraries, the family or kind of tokenizer has no GGUF writer here yet, or the base is held in a "
        "rounding that cannot be undone (GPTQ, AWQ).",
        fix="Install or repair llama-cpp-python with the finding's command. For a model without a GGUF "
        "writer set `export.gguf` to `[]` and use the merged weights (`export.merged`) or the adapter.",
    ),
    Entry(
        id="X05",
        title="Modelfile missing or wrong",
        symptom="`ollama create` fails, answers run on into the next turn, end too early, or come out empty, "
        "though the GGUF itself is fine.",
        seen="The Modelfile is read back after writing, and again by `whet smoke` when one lies beside the "
        "GGUF: FROM must name a file that is there, TEMPLATE must give the prompts of the chat template "
        "(both are rendered), the stops must be the tokens that end a turn or a text, and no token that the "
        "template writes elsewhere may be a stop.",
        why="Without TEMPLATE Ollama guesses one by its likeness to those it knows. A stop such as a header "
        "or start-of-turn token ends answers that should go on; a missing end-of-turn token lets them run. "
        "Some chat templates (with a date in them, or dropping earlier thoughts) cannot be written as "
        "Ollama's; then no Modelfile is written, and a note says why.",
        fix="Write it anew: `whet export RUN --modelfile`.",
    ),
)
