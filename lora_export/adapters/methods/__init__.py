"""Methods of fine-tuning other than LoRA: what each does to a weight, in float32 without torch."""
