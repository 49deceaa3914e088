"""Hugging Face's Trainer, its optimizer's state on devices; run it again and it goes on."""

import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from smart_infinity import SmartOptimizer, corpora

work, steps = Path(sys.argv[1]), int(sys.argv[2])
text = torch.tensor(list(corpora.load("python-topics").encode()))  # a byte is a token
windows = [{"input_ids": window, "labels": window} for window in text.split(64)[:-1]]
torch.manual_seed(0)
size = {"vocab_size": 256, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 2}
model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=0))
checkpoints = work / "checkpoints"
last = get_last_checkpoint(checkpoints) if checkpoints.is_dir() else None
arguments = TrainingArguments(
    str(checkpoints), max_steps=steps, save_steps=3, lr_scheduler_type="constant", report_to=[]
)
devices = [work / "state-0", work / "state-1"]
with SmartOptimizer(model.parameters(), lr=1e-3, devices=devices) as optimizer:
    trainer = Trainer(model, arguments, train_dataset=windows, optimizers=(optimizer, None))
    trainer.train(resume_from_checkpoint=last)
    print(f"step {trainer.state.global_step}, loss {trainer.state.log_history[-1]['train_loss']}")
