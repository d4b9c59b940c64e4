"""The search for the rates of fine-tuning."""
