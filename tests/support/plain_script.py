"""A fine-tuning script as people have it, for a machine of several GPUs: started alone or by torchrun.

python -P plain_script.py MODEL ROWS FOLDER       writes what it saw to FOLDER/rank-N.json
"""

import json
import os
import sys
from pathlib import Path

from datasets import load_dataset

from whet.engine import FastLanguageModel, SFTConfig, SFTTrainer

model_name, rows, folder = sys.argv[1:]
model, tokenizer = FastLanguageModel.from_pretrained(model_name, max_seq_length=256, load_in_4bit=False)
model = FastLanguageModel.get_peft_model(model, r=8, lora_alpha=8)
trainer = SFTTrainer(
    model=model,
    processing_class=tokenizer,
    train_dataset=load_dataset("json", data_files=rows, split="train"),
    args=SFTConfig(
        output_dir=folder,
        max_steps=4,
        per_device_train_batch_size=4 // int(os.environ.get("WORLD_SIZE", "1")),
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        logging_steps=1,
        report_to="none",
    ),
)
trainer.train()
report = {
    "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    "device": str(trainer.args.device),
    "weights": str(next(model.parameters()).device),
    "gpus": trainer.args.n_gpu,
}
Path(folder, f"rank-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(report))
trainer.accelerator.end_training()  # processes that leave one another unannounced may abort
