"""Training: what shows while it runs."""

from __future__ import annotations

from .entry import Entry

ENTRIES: tuple[Entry, ...] = (
    Entry(
        id="T01",
        title="NaN, infinity or a spike",
        symptom="The loss is NaN or jumps up; answers turn into noise.",
        seen="Loss and gradient norm of every step. Where one is not finite, the run ends before the weights "
        "change, and the step runs again without gradients to name the first module whose output is broken. "
        "A spike is a loss far above the median of the last 20, with a gradient to match.",
        why="A learning rate that is too high, fp16's range, a broken number in the weight files, or a "
        "broken row.",
        fix="The patch lowers `training.learning_rate` and turns clipping on; in fp16, "
        "`training.precision: fp32`; where a weight is named that was broken from the start, download again.",
    ),
    Entry(
        id="T02",
        title="Gradient accumulation of the wrong scale",
        symptom="The same data trains differently with 4 x 1 rows a step than with 1 x 4.",
        seen="Before the first step, three short rows of uneven length go through as one micro-batch and as "
        "three: losses and gradients must agree.",
        why="A loss that is the mean of its own micro-batch gives short micro-batches too much weight, and "
        "too much altogether. whet divides by the supervised tokens of the whole step; a script's own loss "
        "may not.",
        fix="Divide the summed loss by `num_items_in_batch`, or set `training.gradient_accumulation: 1`.",
    ),
    Entry(
        id="T03",
        title="Packed rows see each other",
        symptom="Packing makes the model worse; answers mix the topics of several rows.",
        seen="Before the first step, hidden states of short rows that share a sequence are compared with "
        "those of each row alone.",
        why="Attention was not told where one row ends: positions that count on, an attention mask that "
        "allows everything, or a cache that makes the implementation ignore positions.",
        fix="`method.packing: false`, or a collator whose positions restart at each row, without a mask. "
        "whet's own packing is held apart.",
    ),
    Entry(
        id="T04",
        title="A first loss that cannot be",
        symptom="Training starts at a loss above 10, or below 0.3.",
        seen="The loss of step 1 against ln(vocabulary), which guessing gives, and 0.3, which no model "
        "reaches on text it has not seen.",
        why="Too high: ids mean something else to these weights (another tokenizer, rows in another order). "
        "Too low: the answers stand in the prompts, supervision is on fixed text, or the model was trained "
        "on these rows.",
        fix="`whet template MODEL DATA` shows a row as the model sees it. With chats, "
        "`method.supervise: responses`.",
    ),
    Entry(
        id="T05",
        title="A resume that does not go on",
        symptom="After a resume the loss jumps, or rows come twice.",
        seen="Before the checkpoint is loaded: names and shapes of its weights, its random numbers and "
        "optimizer, the sums of its files, and what the order of the rows follows from. After three steps: "
        "the loss against the last 20 before.",
        why="The checkpoint is another run's, the model or adapter was changed in between, or the rows a "
        "step were: the data cursor is the step. Or the disk changed its bytes: it is then set aside, and "
        "the run goes on from the one before it.",
        fix="Put the run's own files back, or resume with the settings of before, which the patch names. A "
        "resume with nothing changed is exact.",
    ),
    Entry(
        id="T06",
        title="The reward is flat",
        symptom="Reinforcement learning runs and nothing changes.",
        seen="When the run is planned: fewer than 500 prompts, fewer than 300 steps or a model below 1.5 "
        "billion parameters, a note. While it runs: the share of groups whose answers all score the same, "
        "over 20 steps, and the share of answers cut off; what rewards warn of.",
        why="All answers of a group get the same reward, so that none is better than another.",
        fix="A finer reward beside this one, `method.max_completion_length`, prompts that the model answers "
        "right now and then, or fine-tuning on a few right answers first.",
    ),
    Entry(
        id="T07",
        title="Overfitting, a plateau, divergence",
        symptom="Held-out rows get worse while training improves; or the loss stays; or it climbs.",
        seen="Held-out loss against its lowest while the training loss falls; means over the last steps "
        "against the first and the best. Chats usually come to a training loss of 0.5 to 1.0; below 0.2 a "
        "model recites its rows, which is said where no rows are held out.",
        why="Too many epochs on too few rows; too little to learn with; a rate that is too high.",
        fix="Overfitting: fewer epochs with `eval.early_stopping`, a lower rate, more weight decay, half of "
        "alpha. Plateau: a larger rank and alpha, more epochs, better rows. Divergence: a lower "
        "`training.learning_rate`. What an error does to the run is `checks.on_error`.",
    ),
    Entry(
        id="T08",
        title="Memory runs out in evaluation",
        symptom="Training works, the first evaluation dies.",
        seen="At plan time, off the fast path: a held-out batch against the device. With `compute_metrics` "
        "in a script: the logits of all held-out rows, before the evaluation starts.",
        why="Held-out batches are padded and go through whole, and predictions keep rows x tokens x "
        "vocabulary numbers in fp32.",
        fix="`eval.batch_size: 2`; in scripts `bf16_full_eval=True, per_device_eval_batch_size=2, "
        "eval_accumulation_steps=4`, and `preprocess_logits_for_metrics` to keep the argmax alone.",
    ),
    Entry(
        id="T09",
        title="Steps are slow",
        symptom="The GPU idles, or steps take twice as long as they did.",
        seen="The time that goes into fetching rows, seconds a token against the best so far, how busy the "
        "GPU is and who else computes on it.",
        why="Rows on a slow disk, transforms in the loop, another process, a GPU that is hot or capped.",
        fix="Keep the prepared rows on a local disk, let workers fetch them, stop what else runs; "
        "`nvidia-smi` shows it.",
    ),
)
