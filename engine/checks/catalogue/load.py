"""Load: weights, tokenizer, adapter, memory."""

from __future__ import annotations

from .entry import Entry

ENTRIES: tuple[Entry, ...] = (
    Entry(
        id="L01",
        title="Tokens whose rows were never trained",
        symptom="The model writes nonsense around special tokens, never ends its turn, or learns far more "
        "slowly than others do.",
        seen="The rows of every id that the data uses are read from the weight files: rows that are zero "
        "beside the usual one, and rows that equal another token's bit for bit, while embedding (or head) is "
        "frozen. Where the weights are downloaded after the plan, the worker looks before loading them.",
        why="Base models carry reserved tokens, chat markers among them, that no training ever touched. An "
        "adapter cannot tell such tokens apart, and a frozen head cannot write them.",
        fix="Train embedding and head beside the adapter, as the patch of `adapter.modules_to_save` says, or "
        "start from the instruct model, whose rows are trained.",
    ),
    Entry(
        id="L02",
        title="Token ids beyond the embedding",
        symptom="`device-side assert triggered` on a GPU, an index error on a CPU.",
        seen="The largest id in the prepared rows against the rows of the embedding, at plan time.",
        why="Tokens were added to the tokenizer and the embedding was not resized, or the tokenizer is "
        "another model's.",
        fix="Put the model's own tokenizer back. If the tokens are wanted: run the command of the finding, "
        "name the new folder as `model.name`, and train `embed_tokens` and `lm_head`.",
    ),
    Entry(
        id="L03",
        title="Tokenizer, config and embedding disagree",
        symptom="Weights cannot be loaded (size mismatch), or padding crashes on the GPU.",
        seen="Four numbers side by side: tokens of tokenizer.json, `vocab_size`, rows of the embedding, rows "
        "of the head; and the ids of the begin, end and pad tokens. More tokens than rows is only noted "
        "while neither rows nor special tokens use them: some models ship so.",
        why="One of the files was changed without the others, e.g. by a pad token that was added by hand.",
        fix="Write into config.json the number that the finding gives, name a pad token that the model has, "
        "or resize with the command of the finding and train both ends.",
    ),
    Entry(
        id="L04",
        title="A tied head that was trained apart",
        symptom="Answers are good right after training and bad once the model is loaded again or exported.",
        seen="The flag `tie_word_embeddings` against the weight files (both tables there, with other "
        "numbers), and in the worker against memory (two tensors where one was promised).",
        why="The flag says that the head is the embedding. Whoever follows it throws a head of its own away.",
        fix='Write `"tie_word_embeddings": false` into config.json; with PEFT by hand, set '
        "`ensure_weight_tying=True`. whet's own adapters keep tied tables tied.",
    ),
    Entry(
        id="L05",
        title="Numbers too large for fp16",
        symptom="The loss is NaN from the first steps on, on GPUs without bf16 above all.",
        seen="The family's descriptor (Gemma computes beyond fp16's range), and one row in fp16 through the "
        "loaded model: the first module whose output is not finite is named.",
        why="fp16 ends at 65,504. Hidden states of models trained in bf16 go beyond.",
        fix="`training.precision: fp32`, or a GPU with bf16 (compute capability 8.0 and up). The base can "
        "still be held in 4 bits: `model.precision: nf4`.",
    ),
    Entry(
        id="L06",
        title="A compute type this machine lacks",
        symptom="Training in bf16 is refused, or slow beyond reason, although a library said it is there.",
        seen="The compute capability of every GPU that the run may take: bf16 needs 8.0, whatever else "
        "claims to support it; fp16 needs a GPU.",
        why="Older GPUs emulate bf16; CPUs train in fp32.",
        fix="`training.precision: auto` picks what the hardware has; the patch names it.",
    ),
    Entry(
        id="L07",
        title="A way to hold or multiply weights that is not there",
        symptom="An error from deep inside a kernel or a quantisation library; or no gain where one was "
        "expected.",
        seen="At plan time: what the family, the checkpoint and the GPU allow. In the worker: a small kernel "
        "is launched before anything depends on it.",
        why="Quantised weights do not train; FP8 units begin at capability 8.9; a tied table cannot be held "
        "in two ways; a kernel may not compile for this GPU.",
        fix="The patch; `whet doctor --kernels` for what runs where; `WHET_KERNELS=reference` trains on "
        "plain torch.",
    ),
    Entry(
        id="L08",
        title="Slower than it could be",
        symptom="It trains, and takes longer than the same model elsewhere.",
        seen="The parts of the model that run fused are counted against all of them, with the reason for "
        "each that does not; settings of the adapter that cost speed have a patch.",
        why="DoRA, trained biases and dropout need more than the fused kernels do; families without a "
        "descriptor train on plain transformers.",
        fix="`adapter.kind: lora`, `adapter.bias: none`, `adapter.dropout: 0`, unless the slower setting is "
        "what you want.",
    ),
    Entry(
        id="L09",
        title="The adapter trains nothing",
        symptom="The loss does not move, and the tuned model answers like the base.",
        seen="Names of `adapter.target_modules` that match no layer, at plan time; no parameter with a "
        "gradient, after loading; gradients that are zero after the first step.",
        why="Names of another family, an adapter loaded for answering only, or layers that are not on the "
        "way to the loss.",
        fix="`adapter.target_modules: all-linear`, or names from the evidence. Embedding and head are "
        "trained whole where they are among the targets, which is noted.",
    ),
    Entry(
        id="L10",
        title="The loader changed the embeddings",
        symptom="Retrieval is worse before any training: recall drops by a quarter.",
        seen="Before the first step, sixteen of the run's texts are embedded by the loaded model, adapter "
        "and kernels included, and by plain sentence-transformers on the same folder, both without prompts: "
        "the smallest cosine must reach 0.999; where the base is held in 8 bits 0.98, in 4 bits 0.9, below "
        "which it is a warning. Not for a resume, a folder without modules.json, or where a second copy does "
        "not fit comfortably.",
        why="Pooling was overridden or lost, layers are missing, or the numbers are too narrow for this "
        "model.",
        fix="`method.pooling: auto` keeps the folder's pooling; `model.precision: auto` or "
        "`training.precision: fp32` are the wider numbers. Accept L10 where another pooling is meant.",
    ),
    Entry(
        id="L11",
        title="It does not fit, or memory runs out later",
        symptom="`CUDA out of memory`, at the start or at some step with long rows.",
        seen="The plan adds up weights, adapter, gradients, optimizer, activations of the longest row that "
        "the data holds, and the loss. Memory that runs out all the same becomes this finding, with the "
        "planner's ways out.",
        why="Activations grow with the longest row, not with the average one; other programs take memory; "
        "estimates of families off the fast path are coarser.",
        fix="The patch: the mildest setting that needs clearly less. The evidence lists the others.",
    ),
    Entry(
        id="L12",
        title="An FP8 base that is off",
        symptom="A run with `model.precision: fp8` ends with a higher loss than one in 16 bits.",
        seen="Before training, the FP8 model beside its 16-bit checkpoint on the first rows: errors layer by "
        "layer, loss, and how far predictions diverge.",
        why="A few numbers of a weight's row are so large that eight bits hold nothing of the others.",
        fix="`model.precision: auto` holds the base in 16 bits.",
    ),
)
