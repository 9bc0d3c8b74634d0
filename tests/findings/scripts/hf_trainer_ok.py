"""Tiny BERT sequence classifier, from scratch, with the Hugging Face Trainer."""

import tempfile

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

VOCAB, PAD, CLS = 64, 0, 1
POSITIVE, NEGATIVE = range(10, 20), range(20, 30)


class SentimentToy(Dataset):
    """Sentences of neutral words; the class is which kind of opinion word dominates."""

    def __init__(self, n, seed, max_len=20):
        rng = np.random.default_rng(seed)
        self.rows = []
        for _ in range(n):
            label = int(rng.integers(2))
            length = int(rng.integers(10, max_len))
            words = rng.integers(30, VOCAB, length)
            pos = rng.choice(length, 3, replace=False)
            words[pos] = rng.choice(list(POSITIVE if label else NEGATIVE), 3)
            ids = np.full(max_len, PAD)
            ids[0], ids[1 : length + 1] = CLS, words[: max_len - 1]
            self.rows.append((ids, (ids != PAD).astype(int), label))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        ids, mask, label = self.rows[i]
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor(label),
        }


def accuracy(eval_pred):
    logits, labels = eval_pred
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}


def main():
    set_seed(0)
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        num_labels=2,
        pad_token_id=PAD,
    )
    model = BertForSequenceClassification(config)
    with tempfile.TemporaryDirectory() as out:
        args = TrainingArguments(
            output_dir=out,
            num_train_epochs=5,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=128,
            learning_rate=2e-3,
            warmup_steps=20,
            eval_strategy="epoch",
            save_strategy="no",
            logging_steps=20,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=args,
            train_dataset=SentimentToy(1500, 0),
            eval_dataset=SentimentToy(300, 1),
            compute_metrics=accuracy,
        )
        trainer.train()
        print("final:", trainer.evaluate())


if __name__ == "__main__":
    main()
