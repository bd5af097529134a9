"""--mode=verify: logits compared with a reference."""
