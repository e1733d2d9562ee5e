"""What a GPU spends its time on. Each file: a plain reference, a Triton kernel, a function that picks one of them."""
